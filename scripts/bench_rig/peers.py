"""The peers: each in an environment of its own under the user's cache, installed only when asked for."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, Dict, List, Optional

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "vllm-bridge-bench"
PYTHON_PEERS: Dict[str, List[str]] = {
    "httpx": ["httpx", "httpx-sse"],
    "openai": ["openai"],
    "aiohttp": ["aiohttp"],
    "litellm": ["litellm[proxy]"],
    "vllm-router": ["vllm-router"],
    "smg": ["smg"],
}
PORTKEY = "@portkey-ai/gateway"


def python_of(name: str) -> Optional[pathlib.Path]:
    """Return the interpreter of a peer's environment, ``None`` if the peer is not installed."""
    path = CACHE / name / "bin" / "python"
    done = CACHE / name / "installed"
    return path if path.exists() and done.exists() else None


def portkey() -> Optional[pathlib.Path]:
    """Return the folder of Portkey's gateway, ``None`` if it or node is not there."""
    path = CACHE / "portkey" / "node_modules" / PORTKEY
    return path if shutil.which("node") and (path / "build" / "start-server.js").exists() else None


def install(note: Any) -> int:
    """Install every peer that is missing; return how many could not be."""
    failed = 0
    for name, packages in PYTHON_PEERS.items():
        if python_of(name) is not None:
            continue
        folder = CACHE / name
        ok = _run([sys.executable, "-m", "venv", "--clear", str(folder)]) and _run(
            [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        )
        if ok:
            (folder / "installed").touch()
        failed += not ok
        note("%s: %s" % (name, "installed" if ok else "could not be installed"))
    if portkey() is None:
        folder = CACHE / "portkey"
        folder.mkdir(parents=True, exist_ok=True)
        ok = shutil.which("npm") is not None and _run(["npm", "install", "--silent", "--prefix", str(folder), PORTKEY])
        failed += not ok
        note("portkey: %s" % ("installed" if ok else "could not be installed (it needs node and npm)"))
    if shutil.which("nginx") is None:
        note("nginx: not on the PATH; install it with the system's packages to have it in the table")
    return failed


def _run(command: List[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
