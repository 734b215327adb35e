"""``import vllm_bridge`` in a fresh interpreter: what it loads, and what it leaves alone."""

import json
import subprocess
import sys

import pytest

HEAVY = ["http.server", "argparse", "sqlite3", "concurrent.futures", "dataclasses", "asyncio", "multiprocessing", "xml",
         "ctypes", "unittest", "importlib.metadata", "vllm_bridge.gateway", "vllm_bridge.echo", "vllm_bridge.cli",
         "vllm_bridge.server", "vllm_bridge.api.responses", "vllm_bridge.api.parameters"]

PROGRAM = """
import json, sys, threading, sysconfig
import requests
import requests.adapters  # all of requests, and of urllib3 what requests loads
before = set(sys.modules)
told = []
def hook(event, args):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "urllib.")):
        told.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        told.append("open %r %s" % args[:2])
sys.addaudithook(hook)
import logging
handlers = list(logging.root.handlers)
import vllm_bridge
new = sorted(set(sys.modules) - before)
standard = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")]
def is_standard(name):
    file = getattr(sys.modules[name], "__file__", None)
    return file is None or (file.startswith(tuple(standard)) and "site-packages" not in file)
print(json.dumps({
    "told": told,
    "new": new,
    "foreign": [name for name in new if name.partition(".")[0] != "vllm_bridge" and not is_standard(name)],
    "threads": threading.active_count(),
    "handlers": logging.root.handlers == handlers,
    "names": [name for name in vllm_bridge.__all__ if not hasattr(vllm_bridge, name)],
}))
"""


@pytest.fixture(scope="module")
def seen():
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return json.loads(done.stdout)


def test_nothing_foreign_is_loaded(seen):
    assert "vllm_bridge.vllm" in seen["new"]
    assert [name for name in seen["foreign"] if name.partition(".")[0] not in ("requests", "urllib3")] == []


def test_nothing_heavy_is_loaded(seen):
    assert [name for name in seen["new"] if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)] == []
    assert [name for name in seen["new"] if name.partition(".")[0] == "email"] == []  # requests has what it needs of it


def test_no_socket_is_opened_no_file_written_no_thread_started(seen):
    assert seen["told"] == []
    assert seen["threads"] == 1


def test_logging_is_left_as_it_is(seen):
    assert seen["handlers"] is True


def test_every_public_name_is_there(seen):
    assert seen["names"] == []


def test_the_audit_would_notice():
    """The hook of the test above hears of a socket and of a file that is written."""
    loud = "import vllm_bridge, socket, os\nsocket.socket().close()\nopen(os.devnull, 'w').close()\n"
    program = PROGRAM.replace("import vllm_bridge\n", loud)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=120, check=True)
    told = json.loads(done.stdout)["told"]
    assert "socket.__new__" in told and any(event.startswith("open ") for event in told)
