"""``--max-queued``: a server that has enough to do is given no more, and who is refused learns it at once."""

import threading
from typing import Any, Dict, Iterator, List

import pytest

from faces import LONG, ask, chat, log_lines, own, until
from vllm_bridge import ConfigError
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import read

CHAT = "/v1/chat/completions"
SLOW = "!slow 0.02 !count 40"
ORIGIN = {"Origin": "http://localhost:3000"}


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


def gateway(*urls: str, **flags: Any) -> Gateway:
    return Gateway(read({"upstream": list(urls), "log_format": "json", **flags}, {}))


class Crowd:
    """Clients that ask for long streams until they are let go."""

    def __init__(self, address: Any) -> None:
        self.address = address
        self.threads: List[threading.Thread] = []
        self.answers: List[Any] = []

    def add(self) -> None:
        body = chat(SLOW, stream=True)
        self.threads.append(threading.Thread(
            target=lambda: self.answers.append(ask(self.address, "POST", CHAT, body))))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(LONG)


def test_beyond_the_limit_the_answer_is_429_at_once(echo: EchoServer) -> None:
    with own(gateway(echo.url, max_queued="2")) as address, log_lines() as lines:
        crowd = Crowd(address)
        for number in (1, 2):
            crowd.add()
            until(lambda: echo.running == number)
        for body in (chat("x"), chat("x", stream=True)):
            refused = ask(address, "POST", CHAT, body, ORIGIN)
            assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
            assert (refused.error["code"], refused.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
            assert "as many requests as it gets at once (2)" in refused.error["message"]
            assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
            assert echo.running == 2
        assert ask(address, "POST", "/v1/embeddings", {"model": "echo", "input": "x"}).status == 429
        assert ask(address, "POST", "/v1/responses", {"model": "echo", "input": "x"}).status == 429
        for path in ("/v1/models", "/ready", "/health"):
            assert ask(address, "GET", path).status == 200
        crowd.join()
        assert [answer.events()[-1] for answer in crowd.answers] == ["[DONE]"] * 2
        until(lambda: ask(address, "POST", CHAT, chat("x")).status == 200)  # there is room again
        text = ask(address, "GET", "/metrics").body.decode()
        until(lambda: any(line["path"] == "/metrics" for line in lines))
    assert 'requests_total{operation="chat_completion",model="other",status="429"}' in text
    refusals = [line for line in lines if line["status"] == 429]
    assert len(refusals) >= 4 and refusals[0]["model"] == "echo" and max(line["total_ms"] for line in refusals) < 5000


def test_another_server_takes_what_one_has_no_room_for(echo: EchoServer) -> None:
    with EchoServer() as other, own(gateway(echo.url, other.url, max_queued="1")) as address:
        crowd = Crowd(address)
        for number in (1, 2):
            crowd.add()
            until(lambda: echo.running + other.running == number)
        assert (echo.running, other.running) == (1, 1)
        assert ask(address, "POST", CHAT, chat("x")).status == 429
        crowd.join()


def test_what_was_given_up_or_failed_makes_room(echo: EchoServer) -> None:
    with own(gateway(echo.url, max_queued="1")) as address:
        for _ in range(3):
            assert ask(address, "POST", CHAT, chat("!error 400")).status == 400
            assert ask(address, "POST", CHAT, chat("!error 400", stream=True)).status == 400
        assert ask(address, "POST", CHAT, chat("x")).status == 200


def test_workers_share_the_limit_and_a_new_configuration_may_have_another(echo: EchoServer) -> None:
    flags: Dict[str, Any] = {"upstream": [echo.url]}
    before = Gateway(read({**flags, "max_queued": "5", "workers": "2"}, {}))
    assert before.provider._caller.fleet.most == 3
    after = before.succeeded_by(read(flags, {}))
    assert after.provider._caller.fleet.most is None
    after.close()


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_is_a_number(value: str) -> None:
    with pytest.raises(ConfigError, match="^--max-queued: expected a whole number from 1"):
        read({"max_queued": value}, {})
