"""scripts/release: what speaks against a release, and that two builds of one commit are the same bytes."""

import importlib.util
import io
import json
import os
import subprocess
import tarfile
import types
from pathlib import Path
from typing import List, Tuple

import pytest

from vllm_bridge.version import __version__

ROOT = Path(__file__).resolve().parents[1]
LONG = 600.0  # seconds: no verdict hangs on it


@pytest.fixture(scope="module")
def releasing() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("releasing", str(ROOT / "scripts" / "releasing.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("changelog, changed, found", [
    ("# Changelog\n\n## 1.2.0, 2026-11-25\n\n## 1.1.0, 2026-01-01\n", "", []),
    ("# Changelog\n\n## 1.2.0, unreleased\n", "", ["CHANGELOG.md gives 1.2.0 no date"]),
    ("# Changelog\n\n## 1.1.0, 2026-01-01\n", "", ["the first heading of CHANGELOG.md is not 1.2.0"]),
    ("", "", ["the first heading of CHANGELOG.md is not 1.2.0"]),
    ("## 1.2.0, 2026-11-25\n", " M README.md\n", ["there are changes that are not committed"]),
])
def test_what_speaks_against_a_release(
    releasing: types.ModuleType, changelog: str, changed: str, found: List[str]
) -> None:
    assert releasing.problems("1.2.0", changelog, changed) == found


def test_the_version(releasing: types.ModuleType, tmp_path: Path) -> None:
    assert releasing.version_of(ROOT) == __version__
    (tmp_path / "vllm_bridge").mkdir()
    (tmp_path / "vllm_bridge" / "version.py").write_text('__version__ = "1.0"\n')
    (tmp_path / "setup.cfg").write_text("[metadata]\nversion = 1.1\n")
    with pytest.raises(releasing.Problem, match="different versions"):
        releasing.version_of(tmp_path)


def tar(*members: Tuple[str, int, int, int]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, uid, date, mode in members:
            entry = tarfile.TarInfo(name)
            entry.uid, entry.mtime, entry.mode, entry.size = uid, date, mode, len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    return written.getvalue()


def test_archives_made_at_other_times_by_others_are_the_same(releasing: types.ModuleType) -> None:
    one = releasing.levelled(tar(("a", 0, 1, 0o644), ("b", 0, 2, 0o755)), 1000)
    other = releasing.levelled(tar(("b", 7, 99, 0o775), ("a", 7, 98, 0o600)), 1000)
    assert one == other
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        assert [(entry.name, entry.mtime, entry.mode) for entry in archive] == [
            ("a", 1000, 0o644), ("b", 1000, 0o755)]
        assert archive.extractfile("b").read() == b"b"  # type: ignore[union-attr]


@pytest.mark.skipif(os.environ.get("VLLM_BRIDGE_LONG") != "1", reason="VLLM_BRIDGE_LONG=1 makes a release")
def test_a_release(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    target = tmp_path / "release"
    ran = subprocess.run([str(ROOT / "scripts" / "release"), "--draft", "--to", str(target)], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)
    assert ran.returncode == 0, ran.stderr
    name = "vllm_bridge-%s" % __version__
    wheel, sdist = name + "-py3-none-any.whl", name + ".tar.gz"
    assert sorted(path.name for path in target.iterdir()) == ["requirements.txt", "sbom.cdx.json", wheel, sdist]
    bom = json.loads((target / "sbom.cdx.json").read_text())
    listed = {component["name"] for component in bom["components"]}
    assert bom["bomFormat"] == "CycloneDX" and {"vllm-bridge", "requests", "urllib3", "certifi", "idna"} <= listed
    needed = (target / "requirements.txt").read_text()
    assert "requests==" in needed and "--hash=sha256:" in needed and "://" not in needed
    with tarfile.open(str(target / sdist)) as archive:
        names = archive.getnames()
    assert {name + "/LICENSE", name + "/CHANGELOG.md", name + "/vllm_bridge/vllm.py"} <= set(names)
    assert [entry for entry in names if "/tests" in entry] == []
