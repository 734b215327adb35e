"""What is not there on every platform is taken away, and everything has to work without: no Windows is at hand."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Dict

import pytest

from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[1]
LONG = 60.0  # seconds: no verdict hangs on it

# What Python's documentation calls "Unix" or "Linux" alone, as far as this package or what it imports may ask for it.
WINDOWS = """
import os, select, signal, socket, sys
for module, names in (
    (os, "fork register_at_fork getuid killpg waitid sched_getaffinity posix_spawn"),
    (select, "poll epoll kqueue POLLRDHUP POLLIN POLLOUT POLLERR POLLHUP"),
    (signal, "SIGHUP SIGQUIT SIGALRM SIGUSR1 SIGUSR2 pthread_sigmask SIG_BLOCK SIG_UNBLOCK setitimer siginterrupt"),
    (socket, "MSG_DONTWAIT SO_REUSEPORT"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios", "readline", "syslog"):
    sys.modules[name] = None
"""
LIBRARY = WINDOWS + """
from vllm_bridge import APITimeoutError, VLLMProvider
from vllm_bridge.echo import EchoServer

ask = [{"role": "user", "content": "Hi"}]
with EchoServer(models=None) as server, VLLMProvider(server.url) as vllm:
    assert vllm.chat_completion(model="m", messages=ask).text == "You said: Hi"
    with vllm.chat_completion_stream(model="m", messages=ask) as stream:
        assert "".join(chunk.text for chunk in stream) == "You said: Hi"
    assert vllm.transcription(model="m", file=b"RIFF0000WAVE").text
    server.script("!stall 30")
    try:
        vllm.with_options(timeout=0.2, max_retries=0).chat_completion(model="m", messages=ask)
    except APITimeoutError:
        print("done")
"""
PROGRAM = WINDOWS + """
from vllm_bridge.cli.parser import main
sys.exit(main(sys.argv[1:]))
"""


def environ(tmp_path: Path) -> Dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(ROOT), VLLM_BRIDGE_CONVERSATION=str(tmp_path / "kept"), PYTHONUNBUFFERED="1")


def test_the_library(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", LIBRARY], env=environ(tmp_path), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("argv, out", [
    (["chat", "-m", "echo", "Hi"], "You said: Hi\n"), (["models"], "echo\n"), (["embed", "--json", "Hi"], None),
])
def test_the_command_line(argv: list, out: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with EchoServer() as server:
        ran = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, *argv, "--base-url", server.url],
                             env=environ(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert out in (None, ran.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_gateway(number: signal.Signals, tmp_path: Path) -> None:
    with EchoServer() as server:
        command = [sys.executable, "-W", "error", "-c", PROGRAM, "serve", "--port", "0", "--workers", "2", "--upstream"]
        with subprocess.Popen(command + [server.url], env=environ(tmp_path), stdin=subprocess.DEVNULL,
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
                body = json.dumps({"model": "vllm/echo", "messages": [{"role": "user", "content": "Hi"}]}).encode()
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                for more in (b"", b', "stream": true'):
                    asked = urllib.request.Request(found.group(1) + "/v1/chat/completions", body[:-1] + more + b"}",
                                                   {"Content-Type": "application/json"})
                    with opener.open(asked, timeout=LONG) as reply:
                        assert b"said" in reply.read()
                process.send_signal(number)
                said += process.stdout.read()
                assert process.wait(LONG) == 0, said
                assert "Traceback" not in said
            finally:
                killer.cancel()
                killer.join()
                process.kill()
