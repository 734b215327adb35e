"""The wheel: built from a copy of the checkout, installed into a fresh environment, and run there."""

import configparser
import email.parser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from vllm_bridge.echo import EchoServer
from vllm_bridge.version import __version__

ROOT = Path(__file__).resolve().parents[1]
LONG = 300.0  # seconds: no verdict hangs on it
NOT_THERE = "No matching distribution found for "  # pip's words, also when it reaches no index


def environ() -> Dict[str, str]:
    unwanted = ("VLLM_", "COV_", "COVERAGE_", "PYTHON", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    return {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}


def call(*command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=str(cwd), env=environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)


def pip_for(folder: Path) -> List[str]:
    """Return the command of a pip that works on the environment ``fresh``: a recent one that is there, or its own."""
    for python in (sys.executable, getattr(sys, "_base_executable", sys.executable)):
        found = re.match(r"pip (\d+)\.(\d+)", call(python, "-m", "pip", "--version", cwd=folder).stdout)
        if found and (int(found.group(1)), int(found.group(2))) >= (22, 3):
            call(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=folder)
            return [python, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "fresh")]
    made = call(sys.executable, "-m", "venv", "fresh", cwd=folder)
    if made.returncode:
        pytest.skip("this Python makes no environments: %s" % made.stderr[-200:])
    return [str(folder / "fresh" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[Path, Path]]:
    """The wheel, and the Python of an environment in which nothing but it, and what it needs, is installed."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(str(ROOT / "vllm_bridge"), str(source / "vllm_bridge"), ignore=ignored)
    for name in ("tests", "scripts"):  # must not get into the wheel
        (source / name).mkdir()
        (source / name / "__init__.py").write_text("")
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "README.md", "LICENSE"):
        shutil.copy(str(ROOT / name), str(source / name))
    pip = pip_for(folder)
    ran = call(*pip, "wheel", "--no-deps", "--wheel-dir", "dist", "./source", cwd=folder)
    if ran.returncode and NOT_THERE in ran.stderr:
        pytest.skip("no index within reach: %s" % ran.stderr[-200:])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    wheels = list((folder / "dist").iterdir())
    assert len(wheels) == 1
    ran = call(*pip, "install", "--no-compile", str(wheels[0]), cwd=folder)
    if ran.returncode and NOT_THERE in ran.stderr:
        pytest.skip("no index within reach: %s" % ran.stderr[-200:])
    assert ran.returncode == 0, ran.stderr
    yield wheels[0], folder / "fresh" / "bin" / "python"


def test_the_version_is_the_same_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    assert setup["metadata"]["version"] == __version__


def test_one_wheel_for_every_python(built: Tuple[Path, Path]) -> None:
    wheel, _ = built
    assert wheel.name == "vllm_bridge-%s-py3-none-any.whl" % __version__


def test_the_wheel_holds_the_package_and_nothing_else(built: Tuple[Path, Path]) -> None:
    with zipfile.ZipFile(str(built[0])) as wheel:
        names = wheel.namelist()
    held = {name for name in names if ".dist-info/" not in name}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vllm_bridge").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"}
    assert held == here
    assert "vllm_bridge/py.typed" in held


def test_the_license_comes_along(built: Tuple[Path, Path]) -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert text.startswith(b"MIT License\n\nCopyright (c) 2026 The vllm-bridge authors\n")
    with zipfile.ZipFile(str(built[0])) as wheel:
        places = [name for name in wheel.namelist() if name.rpartition("/")[2] == "LICENSE"]
        assert [wheel.read(place) for place in places] == [text]


def test_the_wheel_needs_requests_alone(built: Tuple[Path, Path]) -> None:
    with zipfile.ZipFile(str(built[0])) as wheel:
        place = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(wheel.read(place).decode("utf-8"))
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(needed) == 1 and needed[0].replace(" ", "").replace("(", "").startswith("requests>=2.28")
    assert metadata["Requires-Python"] == ">=3.8" and metadata["Version"] == __version__
    assert "# vllm-bridge" in str(metadata.get_payload())


def test_the_installed_wheel_runs(built: Tuple[Path, Path], tmp_path: Path) -> None:
    _, python = built
    code = "import importlib.metadata as m; print(*sorted(d.metadata['Name'] for d in m.distributions()))"
    listed = call(str(python), "-c", code, cwd=tmp_path).stdout.lower().replace("_", "-").split()
    assert set(listed) - {"pip", "setuptools", "wheel"} == {
        "vllm-bridge", "requests", "urllib3", "certifi", "idna", "charset-normalizer"}
    command = python.parent / "vllm-bridge"
    with EchoServer() as server:
        said = call(str(command), "chat", "--base-url", server.url, "Hello", cwd=tmp_path)
        assert (said.returncode, said.stdout, said.stderr) == (0, "You said: Hello\n", "")
        checked = call(str(python), "-W", "error", "-m", "vllm_bridge", "check", "--base-url", server.url, cwd=tmp_path)
        assert checked.returncode == 0 and checked.stdout.endswith("\nok\n")
    assert call(str(command), "serve", "--help", cwd=tmp_path).returncode == 0
    assert call(str(command), cwd=tmp_path).returncode == 2
