"""The commands that look at the servers, and the one that waits for them."""

import json
from typing import Any, Callable, Iterator, List, NamedTuple

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, address_of_nobody, answer, delta, event, nobody
from vllm_bridge.cli import parser as cli
from vllm_bridge.client import readiness
from vllm_bridge.echo import EchoServer

# As vLLM 0.32 has it, of two engines.
BUSY = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="chat"} 3.0
vllm:num_requests_running{engine="1",model_name="chat"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="chat"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in ("VLLM_BASE_URL", "VLLM_API_KEY", "VLLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(readiness, "_PAUSE", 0.02)

    def run_it(*argv: str) -> Ran:
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run_it


@pytest.fixture
def fleet() -> Iterator[List[EchoServer]]:
    with EchoServer(models=("chat", "lora")) as one, EchoServer(models=("embed",)) as other:
        yield [one, other]


def at(*urls: str) -> List[str]:
    return [word for url in urls for word in ("--base-url", url)]


@pytest.fixture
def busy() -> Iterator[str]:
    """A server that says how much it has to do."""
    listed = answer({"object": "list", "data": [{"id": "chat", "object": "model"}]})
    numbers = answer(BUSY, content_type="text/plain; version=1.0.0; charset=utf-8")

    class Server(Scripted):
        def _do_reply(self, state: Any) -> None:
            line = self.requests[-1].line
            if line.startswith("POST"):
                state["sock"].sendall(SSE_HEAD + event(delta("Hi", "stop")) + event("[DONE]") + LAST_CHUNK)
            elif "/is_sleeping" in line:
                state["sock"].sendall(answer({"detail": "Not Found"}, "404 Not Found"))
            else:
                state["sock"].sendall(numbers if "/metrics" in line else listed)

    with Server(["request", "reply", "again"]) as server:
        yield server.url


def test_models_of_several_servers(run: Run, fleet: List[EchoServer], busy: str) -> None:
    gone = nobody()
    ran = run("models", *at(fleet[0].url, fleet[1].url, busy, gone))
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "chat\t%s\t0 running" % fleet[0].url, "lora\t%s\t0 running" % fleet[0].url,
        "embed\t%s\t0 running" % fleet[1].url, "chat\t%s\t5 running, 7 queued" % busy,
    ]
    assert ran.err.startswith("vllm-bridge: %s is away: cannot connect" % gone) and ran.err.count("\n") == 1


def test_models_as_json_tells_of_each_server(run: Run, fleet: List[EchoServer], busy: str) -> None:
    found = json.loads(run("models", "--json", *at(fleet[0].url, busy, nobody())).out)
    assert [model["id"] for model in found["data"]] == ["chat", "lora"]
    assert [server["state"] for server in found["servers"]] == ["ready", "ready", "away"]
    assert [server["load"] for server in found["servers"]] == [{"running": 0}, {"running": 5, "queued": 7}, None]
    assert "cannot connect" in found["servers"][2]["error"] and found["servers"][2]["models"] == []


def test_models_of_one_server_are_names_alone(run: Run, fleet: List[EchoServer]) -> None:
    assert run("models", *at(fleet[0].url)).out == "chat\nlora\n"


def test_check_shows_each_server(run: Run, fleet: List[EchoServer]) -> None:
    gone = nobody()
    ran = run("check", *at(fleet[0].url, fleet[1].url, gone))
    assert "%s is there (0 running): chat, lora\n" % fleet[0].url in ran.out
    assert "%s is there (0 running): embed\n" % fleet[1].url in ran.out
    assert "\n%s is away: cannot connect" % gone in ran.out
    assert "\nchat (32768 tokens) answers chat" in ran.out and "\nembed (32768 tokens) answers" in ran.out


def test_check_of_one_server_shows_what_it_has_to_do(run: Run, busy: str) -> None:
    ran = run("check", *at(busy))
    assert "\n%s has 5 running, 7 queued\n" % busy in ran.out
    assert json.loads(run("check", "--json", *at(busy)).out)["servers"][0]["load"] == {"running": 5, "queued": 7}


@pytest.mark.parametrize("numbers", [
    b"", b"\xff\xfe", b"<html>", b"vllm:num_requests_running x", b"vllm:num_requests_running 1e999", b"{}",
])
def test_odd_numbers_are_none(run: Run, fleet: List[EchoServer], numbers: bytes) -> None:
    class Server(Scripted):
        def _do_reply(self, state: Any) -> None:
            listed = answer({"object": "list", "data": [{"id": "m"}]})
            state["sock"].sendall(answer(numbers) if "/metrics" in self.requests[-1].line else listed)

    with Server(["request", "reply", "again"]) as server:
        ran = run("models", *at(fleet[1].url, server.url))
    assert (ran.code, ran.err) == (0, "")
    assert "m\t%s\n" % server.url in ran.out


def test_wait_ends_at_once_where_all_is_there(run: Run, fleet: List[EchoServer]) -> None:
    assert run("wait", *at(fleet[0].url, fleet[1].url)) == Ran(0, "ready: chat, embed, lora\n", "")
    assert run("wait", "--model", "embed", *at(fleet[0].url, fleet[1].url)).code == 0
    assert json.loads(run("wait", "--json", *at(fleet[0].url)).out)["data"][0]["id"] == "chat"


def test_wait_says_what_it_waits_for_and_gives_up(run: Run, fleet: List[EchoServer]) -> None:
    gone = nobody()
    ran = run("wait", "--timeout", "0.2", *at(fleet[0].url, gone))
    assert (ran.code, ran.out) == (1, "")
    first, last = ran.err.splitlines()[0], ran.err.splitlines()[-1]
    assert first.startswith("vllm-bridge: waiting: cannot connect to %s" % gone)
    assert last.startswith("vllm-bridge: not ready after 0.2 seconds: ") and gone in last
    ran = run("wait", "-m", "big", "--timeout", "0.1", *at(fleet[0].url))
    assert ran.code == 1
    assert "waiting: no server has the model big; %s has chat, lora" % fleet[0].url in ran.err


def test_wait_sees_a_server_come(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = address_of_nobody()
    servers: List[EchoServer] = []
    real = readiness._pause

    def pause(*rest: Any) -> None:
        if not servers:
            servers.append(EchoServer(port, models=("late",)))
            servers[0].start()
        real(*rest)

    monkeypatch.setattr(readiness, "_pause", pause)
    try:
        ran = run("wait", "--model", "late", "--timeout", "30", *at("http://%s:%d" % (host, port)))
    finally:
        servers[0].stop()
    assert (ran.code, ran.out) == (0, "ready: late\n")
    assert ran.err.count("\n") == 1


def test_wait_with_a_wrong_key_does_not_wait(run: Run) -> None:
    with EchoServer(api_key="sk-1") as server:
        ran = run("wait", "--api-key", "sk-2", *at(server.url))
    assert ran.code == 1 and "401" in ran.err or "Unauthorized" in ran.err


@pytest.mark.parametrize("argv, told", [
    (["--timeout", "soon"], "invalid float value"), (["--timeout", "-1"], "wait_ready: timeout: expected a number"),
    (["words"], "unrecognized arguments: words"), (["-p", "a=1"], "unrecognized arguments"),
])
def test_wrong_usage_of_wait(run: Run, argv: List[str], told: str) -> None:
    ran = run("wait", *argv)
    assert ran.code == 2 and told in ran.err
