"""The steps of ./scripts/release: check, build twice and compare, list what is in it."""

import argparse
import configparser
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
MODULE = [sys.executable, "-m"]


class Problem(Exception):
    """What has to be mended before a release."""


def problems(version: str, changelog: str, changed: str) -> List[str]:
    """Return what speaks against a release of `version`; `changed` is what git says of files not committed."""
    found = []
    heading = re.search(r"^## (.+)$", changelog, re.M)
    if heading is None or heading.group(1).split(",")[0] != version:
        found.append("the first heading of CHANGELOG.md is not %s" % version)
    elif not re.search(r"\d{4}-\d\d-\d\d$", heading.group(1)):
        found.append("CHANGELOG.md gives %s no date" % version)
    if changed.strip():
        found.append("there are changes that are not committed")
    return found


def version_of(folder: Path) -> str:
    """Return the version, which setup.cfg and version.py have to agree on."""
    setup = configparser.ConfigParser()
    setup.read(str(folder / "setup.cfg"), encoding="utf-8")
    code = (folder / "vllm_bridge" / "version.py").read_text(encoding="utf-8")
    named = re.search(r'^__version__ = "(.+)"$', code, re.M)
    version = setup["metadata"]["version"]
    if named is None or named.group(1) != version:
        raise Problem("setup.cfg and vllm_bridge/version.py name different versions")
    return version


def levelled(sdist: bytes, epoch: int) -> bytes:
    """Return a .tar.gz with its members in order, of one owner and date: setuptools writes the present ones."""
    written = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(sdist), mode="r:gz") as old, tarfile.open(
            fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = epoch
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(written.getvalue(), mtime=epoch)


def build(commit: str, epoch: int) -> Dict[str, bytes]:
    """Build the sdist and the wheel of a commit and return them by name."""
    with tempfile.TemporaryDirectory() as name:
        source = subprocess.check_output(["git", "archive", commit], cwd=str(ROOT))
        with tarfile.open(fileobj=io.BytesIO(source)) as archive:
            archive.extractall(name)
        run(MODULE + ["build", "--no-isolation", "--outdir", "built", "."], name, SOURCE_DATE_EPOCH=str(epoch))
        made = {path.name: path.read_bytes() for path in sorted(Path(name, "built").iterdir())}
    return {name: levelled(data, epoch) if name.endswith(".tar.gz") else data for name, data in made.items()}


def run(command: List[str], folder: str, data: str = "", **environ: str) -> str:
    """Run a command and return what it says; raise `Problem` with all that it said if it fails."""
    ran = subprocess.run(command, cwd=folder, env=dict(os.environ, **environ), input=data, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, universal_newlines=True)
    if ran.returncode:
        raise Problem("%s failed:\n%s%s" % (" ".join(command[2:4]), ran.stdout, ran.stderr))
    return ran.stdout


def release(draft: bool, target: Path) -> None:
    """Make all files of a release in `target`."""
    version = version_of(ROOT)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = problems(version, changelog, run(["git", "status", "--porcelain"], str(ROOT)))
    if found and not draft:
        raise Problem("; ".join(found) + " (--draft makes the files all the same)")
    epoch = int(run(["git", "log", "-1", "--format=%ct"], str(ROOT)))
    made = build("HEAD", epoch)
    if build("HEAD", epoch) != made:
        raise Problem("two builds of one commit differ")
    shutil.rmtree(str(target), ignore_errors=True)
    target.mkdir(parents=True)
    for name, data in made.items():
        (target / name).write_bytes(data)
    run(MODULE + ["twine", "check", "--strict"] + sorted(made), str(target))
    setup = configparser.ConfigParser()
    setup.read(str(ROOT / "setup.cfg"), encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        Path(name, "requirements.in").write_text(setup["options"]["install_requires"], encoding="utf-8")
        run(MODULE + ["piptools", "compile", "--quiet", "--generate-hashes", "--strip-extras", "--no-header",
                      "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"], name)
        needed = Path(name, "requirements.txt").read_text(encoding="utf-8")
    (target / "requirements.txt").write_text(needed, encoding="utf-8")
    run(MODULE + ["cyclonedx_py", "requirements", "--output-reproducible", "--of", "JSON", "-o", "sbom.cdx.json", "-"],
        str(target), "vllm-bridge==%s\n%s" % (version, needed), SOURCE_DATE_EPOCH=str(epoch))
    for path in sorted(target.iterdir()):
        print("%s  %s" % (hashlib.sha256(path.read_bytes()).hexdigest(), path.name))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Make a release and return the exit code."""
    parser = argparse.ArgumentParser(prog="./scripts/release", description=__doc__)
    parser.add_argument("--draft", action="store_true", help="also without a date in the changelog, or with changes")
    parser.add_argument("--to", type=Path, default=ROOT / "dist" / "release", help="the folder (default: dist/release)")
    asked = parser.parse_args(argv)
    try:
        release(asked.draft, asked.to)
    except (Problem, OSError) as error:
        print("release: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
