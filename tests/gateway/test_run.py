"""``serve`` as a person starts it: a process of its own, its banner, its workers, its end."""

import argparse
import http.client
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from faces import LONG, ROOT, Process, ask, chat, children_of, running, until, watched
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway.run import main, serve
from vllm_bridge.gateway.settings import add_arguments, read

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("vllm_bridge", "vllm_bridge.access")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


def test_the_banner_the_log_and_the_end(echo: EchoServer) -> None:
    echo.models = ("echo", "\x1b]0;pwned\x07\nvllm-bridge listens on http://evil")
    with running("--upstream", echo.url, "--upstream", "http://127.0.0.1:9") as process:
        assert ask(process.address, "POST", CHAT, chat("hidden words")).status == 200
        until(lambda: len(process.out) == 4)
        assert process.stop() == 0
    assert re.match(r"vllm-bridge \S+ listens on http://127\.0\.0\.1:\d+ ", process.out[0])
    rest = "".join(process.out[1:])
    assert re.search(r"(?m)^  %s  echo, \\x1b\]0;pwned\\x07\\nvllm-bridge" % re.escape(echo.url), rest)
    assert re.search(r"(?m)^  http://127\.0\.0\.1:9  does not answer yet: ", rest)
    assert re.search(r"(?m)^time=\S+ client=127\.0\.0\.1 method=POST path=/v1/chat/completions status=200 model=echo ",
                     rest)
    assert "hidden" not in rest
    warnings = [line for line in process.errors if " INFO " not in line]
    assert len(warnings) == 1 and "http://127.0.0.1:9: away (cannot connect" in warnings[0]


def test_what_is_wrong_with_the_settings_is_told_before_the_banner(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"providers": {"openai": {}, "vllm": {
        "keys": [{"value": "env.NO_SUCH_VARIABLE", "url": "http://127.0.0.1:9"}], "network_config": {"lean_http": True},
    }}}))
    with running("--config", str(config)) as process:
        assert ask(process.address, "GET", "/health").status == 200
        assert process.stop() == 0
    told = [line for line in process.errors if line.startswith("vllm-bridge: ")]
    assert len(told) == 3 and "'openai'" in told[0]
    assert "lean_http: does nothing" in told[1] and "NO_SUCH_VARIABLE is not set" in told[2]


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("program", [["-m", "vllm_bridge", "serve"], [str(ROOT / "scripts" / "gateway.py")]])
def test_a_service_needs_no_standard_streams(redirect: str, program: List[str], echo: EchoServer) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["sh", "-c", 'exec "$@" ' + redirect, "sh", sys.executable, *program, "--upstream", echo.url]
    wrong = subprocess.run([*command, "--port", "-1"], env=environ, cwd=str(ROOT), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, timeout=LONG)
    assert wrong.returncode == 2
    assert wrong.stderr.count(b"\n") == ("2>" not in redirect) and b"Traceback" not in wrong.stderr
    with subprocess.Popen([*command, "--port", str(port)], env=environ, cwd=str(ROOT)) as process:
        until(lambda: is_open(port))
        assert ask(("127.0.0.1", port), "POST", CHAT, chat("Hi")).status == 200
        process.terminate()
        assert process.wait(LONG) == 0


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_nothing_is_loaded_before_the_first_answer_that_it_can_do_without(echo: EchoServer) -> None:
    noted = {"PYTHONPROFILEIMPORTTIME": "1"}  # the interpreter writes a line for each module that it loads
    with watched(Process("--upstream", echo.url, environ=noted, program=["-m", "vllm_bridge", "serve"])) as process:
        assert ask(process.address, "POST", CHAT, chat("Hi")).status == 200
        assert process.stop() == 0
    loaded = {line.rpartition("|")[2].strip() for line in process.errors}
    assert loaded > {"vllm_bridge.cli", "vllm_bridge.gateway.app", "http.server", "requests"}
    needless = {"vllm_bridge." + name for name in ("cli.check", "cli.commands", "echo", "api.responses", "api.audio")}
    assert not loaded & (needless | {"asyncio", "dataclasses", "difflib", "sqlite3", "wave"})


def test_ctrl_c_lets_a_running_answer_finish(echo: EchoServer) -> None:
    with running("--upstream", echo.url, "--log-format", "json") as process:
        answers: List[Any] = []
        address = process.address
        asking = threading.Thread(
            target=lambda: answers.append(ask(address, "POST", CHAT, chat("!slow 0.05 !count 20", stream=True)))
        )
        asking.start()
        until(lambda: echo.running)
        process.popen.send_signal(signal.SIGINT)
        asking.join(LONG)
        assert process.wait() == 0
        assert answers[0].events()[-1] == "[DONE]"
    lines = [json.loads(line) for line in process.out]
    assert lines[0]["message"] == "listening"
    assert lines[-1]["status"] == 200


@pytest.mark.parametrize("path, body, last", [
    (CHAT, chat("!slow 0.05 !count 100000", stream=True), '"code":"gateway_stopping"'),
    ("/v1/responses", {"model": "echo", "input": "!slow 0.05 !count 100000", "stream": True}, "event: response.failed"),
    ("/v1/responses", {"model": "echo", "input": "!stall-after 3 %g a b c d" % LONG, "stream": True},
     "event: response.failed"),
    (CHAT, chat("!stall %g x" % LONG, stream=True), '"code":"gateway_stopping"'),
    (CHAT, chat("!stall %g x" % LONG), '"code":"gateway_stopping"'),
])
def test_what_has_no_time_to_finish_ends_in_an_error(echo: EchoServer, path: str, body: Any, last: str) -> None:
    with running("--upstream", echo.url, "--graceful-timeout", "0.5", "--log-format", "json") as process:
        address, answers = process.address, []  # type: ignore[var-annotated]
        asking = threading.Thread(target=lambda: answers.append(ask(address, "POST", path, body)))
        asking.start()
        until(lambda: echo.running)
        assert process.stop() == 0
        asking.join(LONG)
    assert last in answers[0].body.decode()[-2000:]
    assert [json.loads(line)["status"] for line in process.out if '"status"' in line] == [503]
    until(lambda: echo.running == 0)


def test_a_log_that_nobody_reads_holds_nothing_up(echo: EchoServer) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "gateway.py"), "--port", "0", "--upstream", echo.url]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean) as popen:
        assert popen.stdout is not None
        found = re.search(rb"http://127\.0\.0\.1:(\d+)", popen.stdout.readline())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found.group(1)), timeout=LONG)
        for _ in range(1200):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
        connection.close()
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(LONG) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no worker processes here")
def test_workers_are_counted_together_and_replaced(echo: EchoServer) -> None:
    with running("--upstream", echo.url, "--workers", "3", "--graceful-timeout", "2") as process:
        address = process.address

        def total() -> float:
            text = ask(address, "GET", "/metrics").body.decode()
            found = re.findall(r'(?m)^vllm_bridge_requests_total\{operation="chat_completion".*\} (\d+)$', text)
            return sum(map(float, found))

        for _ in range(30):
            assert ask(address, "POST", CHAT, chat("x")).status == 200
        until(lambda: total() == 30)  # another worker's numbers are there a moment later
        assert {total() for _ in range(10)} == {30.0}
        children = children_of(process.popen.pid)
        assert len(children) == 3
        os.kill(children[1], signal.SIGKILL)
        until(lambda: len(set(children_of(process.popen.pid)) - set(children)) == 1)
        for _ in range(30):
            assert ask(address, "POST", CHAT, chat("x")).status == 200
        until(lambda: total() == 60)
        assert {total() for _ in range(10)} == {60.0}
        text = ask(address, "GET", "/metrics").body.decode()
        assert 'in_flight{operation="chat_completion"} 0\n' in text
        assert process.stop() == 0
    assert sum("listens on" in line for line in process.out) == 1
    assert sum(line.startswith("  http") for line in process.out) == 1
    assert any("replaced" in line for line in process.errors)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no worker processes here")
def test_the_last_requests_of_a_worker_are_in_the_log(echo: EchoServer) -> None:
    with running("--upstream", echo.url, "--workers", "2") as process:
        for _ in range(5):
            assert ask(process.address, "GET", "/version").status == 200
        assert process.stop() == 0
    assert sum("path=/version" in line for line in process.out) == 5


def test_a_taken_port(echo: EchoServer) -> None:
    with running("--port", str(echo.port)) as process:
        assert process.wait() == 1
    assert process.errors[0].startswith("vllm-bridge: cannot listen on 127.0.0.1:%d: " % echo.port)
    assert len(process.errors) == 1


@pytest.mark.parametrize("flags, message", [
    (("--host", "0.0.0.0"), "host: '0.0.0.0' can be reached from other machines"),
    (("--port", "high"), "--port: expected a whole number"),
    (("--config", "/nowhere/at/all"), "/nowhere/at/all: cannot be read"),
])
def test_wrong_settings_are_one_line(flags: List[str], message: str) -> None:
    with running(*flags) as process:
        assert process.wait() == 2
    assert process.errors[0].startswith("vllm-bridge: " + message)
    assert len(process.errors) == 1 and process.out == []


def test_a_config_file_with_keys_for_clients(echo: EchoServer, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({
        "client": {"api_keys": ["env.GATE_KEY"], "log_format": "json"},
        "providers": {"vllm": {"keys": [{"name": "a", "vllm_key_config": {"url": echo.url}}]}},
    }))
    with running("--host", "0.0.0.0", VLLM_BRIDGE_CONFIG=str(path), GATE_KEY="sk-1") as process:
        until(lambda: len(process.out) == 2)
        port = int(json.loads(process.out[0])["url"].rpartition(":")[2])
        server = json.loads(process.out[1])
        assert (server["url"], server["name"], server["models"]) == (echo.url, "a", "echo")
        address = ("127.0.0.1", port)
        assert ask(address, "POST", CHAT, chat("x")).status == 401
        assert ask(address, "POST", CHAT, chat("x"), {"Authorization": "Bearer sk-1"}).status == 200
        assert process.stop() == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_serve_in_this_process(log_format: str) -> None:
    out, errors = io.StringIO(), io.StringIO()
    models = tuple("m%d" % number for number in range(7))
    answers: List[Any] = []

    def use() -> None:
        until(lambda: "http://" in out.getvalue())
        port = int(re.findall(r"http://[^ ]+:(\d+)", out.getvalue())[0])
        answers.append(ask(("127.0.0.1", port), "GET", "/v1/models"))
        os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    with EchoServer(models=models) as many:
        user.start()
        settings = read({"upstream": [many.url, "http://127.0.0.1:9"], "port": "0", "host": "0.0.0.0",
                         "insecure": "true", "log_format": log_format}, {})
        assert serve(settings, out, errors) == 0
        user.join(LONG)
    assert [model["id"] for model in answers[0].json["data"]] == ["vllm/" + name for name in models]
    assert "m0, m1, m2, m3, m4, and 2 more" in out.getvalue()
    assert "does not answer yet: cannot connect" in out.getvalue()
    if log_format == "text":
        assert "without an API key: everybody" in out.getvalue()
    else:
        assert [json.loads(line) for line in out.getvalue().splitlines()]
    told = errors.getvalue()
    assert "http://127.0.0.1:9: away (cannot" in told and told.count("WARNING") == 1


def test_run_in_this_process(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)
    errors = io.StringIO()
    assert serve(read({"port": str(echo.port)}, {}), io.StringIO(), errors) == 1
    assert "cannot listen" in errors.getvalue()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert main(parser.parse_args(["--port", "-1"])) == 2
    assert main(parser.parse_args(["--host", "0.0.0.0"])) == 2
    assert main(parser.parse_args(["--port", str(echo.port)])) == 1


def test_the_flags(capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = parser.parse_args(["--insecure", "--native-responses", "--upstream", "http://a", "--upstream", "http://b"])
    assert (given.insecure, given.native_responses) == ("true", "true")
    assert given.upstream == ["http://a", "http://b"]
    assert (given.port, given.api_key) == (None, None)
    assert parser.parse_args(["--native-responses", "auto"]).native_responses == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--stream-idle-timeout SECONDS" in capsys.readouterr().out
