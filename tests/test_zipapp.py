"""scripts/zipapp: one file that runs on this Python with nothing installed beside it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
import zipfile
from pathlib import Path
from typing import Dict

import pytest

from vllm_bridge.echo import EchoServer
from vllm_bridge.version import __version__

ROOT = Path(__file__).resolve().parents[1]
_BASE = Path(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
PYTHON = str(_BASE) if _BASE.exists() else sys.executable  # an environment of ./scripts/test has no pip
LONG = 120.0  # seconds: no verdict hangs on it
NO_INDEX = "No matching distribution found for requests"  # pip's words, also when it reaches no index


def environ(**more: str) -> Dict[str, str]:
    unwanted = ("VLLM_", "COV_", "COVERAGE_", "PYTHON")
    return dict({key: value for key, value in os.environ.items() if not key.startswith(unwanted)},
                VLLM_BRIDGE_CONVERSATION="", **more)


def call(*command: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=environ(**more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)


def make(target: Path) -> None:
    made = call(PYTHON, str(ROOT / "scripts" / "zipapp"), str(target))
    if made.returncode and (NO_INDEX in made.stderr or "No module named pip" in made.stderr):
        pytest.skip("no pip that reaches an index: %s" % made.stderr[-200:])
    assert (made.returncode, made.stdout) == (0, "%s\n" % target), made.stderr


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("zipapp") / "made" / "vllm-bridge.pyz"
    make(target)
    return target


def run(file: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the file on this Python, in an environment without any packages."""
    return call(PYTHON, "-S", "-W", "error", str(file), *arguments)


def test_it_is_the_command_line(file: Path) -> None:
    assert run(file, "--version").stdout == "vllm-bridge %s\n" % __version__
    with EchoServer() as server:
        said = run(file, "chat", "Hi", "--base-url", server.url)
        assert (said.returncode, said.stdout, said.stderr) == (0, "You said: Hi\n", "")
    assert run(file, "chat", "Hi", "--base-url", server.url).returncode == 1
    assert run(file, "chta").returncode == 2


def test_it_is_the_gateway(file: Path) -> None:
    with EchoServer() as server:
        command = [PYTHON, str(file), "serve", "--port", "0", "--upstream", server.url]
        with subprocess.Popen(command, env=environ(PYTHONUNBUFFERED="1"), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True) as process:
            killer = threading.Timer(LONG, process.kill)
            killer.start()
            try:
                assert process.stdout is not None
                said = ""
                for line in process.stdout:
                    said += line
                    if "listens on" in line:
                        break
                found = re.search(r"listens on (http://[^\s/,]+)", said)
                assert found, said
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(found.group(1) + "/v1/models", timeout=LONG) as reply:
                    assert [row["id"] for row in json.load(reply)["data"]] == ["vllm/echo"]
                process.send_signal(signal.SIGTERM)
                process.stdout.read()
                assert process.wait(LONG) == 0
            finally:
                killer.cancel()
                killer.join()
                process.kill()


def test_it_is_the_library_and_brings_certificates(file: Path) -> None:
    program = ("import os, requests.certs, vllm_bridge\n"
               "assert vllm_bridge.__file__.startswith(%r), vllm_bridge.__file__\n"
               "assert os.path.getsize(requests.certs.where()) > 100000\n" % str(file))
    ran = call(PYTHON, "-S", "-c", "import sys; del sys.path[0]\n" + program, PYTHONPATH=str(file))
    assert (ran.returncode, ran.stderr) == (0, "")


def test_it_holds_pure_python_alone_and_is_the_same_each_time(file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(str(file)) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith((".so", ".pyd", ".pyc"))] == []
    assert {"vllm_bridge/__init__.py", "requests/__init__.py", "LICENSE", "__main__.py"} <= set(names)
    again = tmp_path / "again.pyz"
    make(again)
    assert again.read_bytes() == file.read_bytes()


def test_a_target_that_cannot_be_written_is_one_line(file: Path) -> None:
    made = call(PYTHON, str(ROOT / "scripts" / "zipapp"), str(file / "below"))
    assert made.returncode == 1
    assert made.stderr.splitlines()[-1].startswith("zipapp: ") and "Traceback" not in made.stderr
