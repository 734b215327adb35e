"""What the log and the numbers tell of each server, over real sockets."""

from typing import Any, Dict, Iterator, List

import pytest

from faces import ask, chat, log_lines, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event, nobody
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import read
from vllm_bridge.vllm import VLLMProvider

CHAT = "/v1/chat/completions"
# As vLLM has it with --enable-prompt-tokens-details.
USAGE = {"prompt_tokens": 30, "total_tokens": 34, "completion_tokens": 4,
         "prompt_tokens_details": {"cached_tokens": 16}}
BUSY = answer({"error": {"message": "busy", "code": 503}}, "503 Service Unavailable")
WHOLE = answer({**completion(), "usage": USAGE})
STREAM: List[Any] = [
    SSE_HEAD, event(delta("a")), event(delta("", "stop")),
    event({**delta(""), "choices": [], "usage": USAGE}), event("[DONE]"), LAST_CHUNK,
]


@pytest.fixture
def lines() -> Iterator[List[Dict[str, Any]]]:
    with log_lines() as found:
        yield found


def served(url: str) -> Any:
    config = ProviderConfig({"base_url": url, "retry_backoff_initial_ms": 1, "retry_backoff_max_ms": 1})
    return own(Gateway(read({"log_format": "json"}, {}), VLLMProvider(config=config)))


@pytest.mark.parametrize("stream", [False, True])
def test_each_request_tells_of_its_server(lines: List[Dict[str, Any]], stream: bool) -> None:
    with Scripted(["request", BUSY, "request", *(STREAM if stream else [WHOLE])]) as server:
        with served(server.url) as address:
            assert ask(address, "POST", CHAT, chat("x", stream=stream)).status == 200
            until(lambda: lines)
            text = ask(address, "GET", "/metrics").body.decode()
    line = lines[0]
    assert (line["server"], line["attempts"]) == (server.url, 2)
    assert (line["tokens_in"], line["tokens_out"], line["tokens_cached"]) == (30, 4, 16)
    assert 0 < line["gateway_ms"] <= line["total_ms"]
    if stream:
        assert line["gateway_ms"] <= line["first_token_ms"] <= line["total_ms"]
    found = dict(row.rsplit(" ", 1) for row in text.splitlines() if row.startswith("vllm_bridge_server_"))
    of = '{server="%s"' % server.url
    assert found['vllm_bridge_server_requests_total%s,status="200"}' % of] == "1"
    assert found["vllm_bridge_server_attempts_total%s}" % of] == "2"
    assert found["vllm_bridge_server_requests_in_flight%s}" % of] == "0"
    assert found["vllm_bridge_server_delay_seconds_count%s}" % of] == "1"
    assert found["vllm_bridge_server_first_token_seconds_count%s}" % of] == ("1" if stream else "0")
    assert found['vllm_bridge_server_tokens_total%s,direction="cached"}' % of] == "16"


def test_a_request_that_reached_no_server_tells_of_the_attempts(lines: List[Dict[str, Any]]) -> None:
    with Scripted(["request", BUSY, "again"]) as server, served(server.url) as address:
        assert ask(address, "POST", CHAT, chat("x")).status == 503
        assert ask(address, "POST", CHAT, {"model": "m"}).status == 400
        until(lambda: len(lines) == 2)
        text = ask(address, "GET", "/metrics").body.decode()
    assert [line["attempts"] for line in lines[:2]] == [3, None]
    assert lines[1]["gateway_ms"] is lines[1]["tokens_cached"] is None
    assert 'server_attempts_total{server="%s"} 3\n' % server.url in text
    assert 'server_requests_total{server="%s",status="503"} 1\n' % server.url in text


def test_a_server_that_is_not_there_is_counted(lines: List[Dict[str, Any]]) -> None:
    url = nobody()
    with served(url) as address:
        assert ask(address, "POST", CHAT, chat("x")).status >= 500
        text = ask(address, "GET", "/metrics").body.decode()
    assert 'vllm_bridge_server_changes_total{server="%s",change="away"} 1\n' % url in text
    assert (lines[0]["server"], lines[0]["attempts"]) == (url, 3)
