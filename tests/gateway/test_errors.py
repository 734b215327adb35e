"""What a client is told of an error that is the operator's matter."""

import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import pytest

from faces import Address, ask, chat, own
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, event
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway, errors
from vllm_bridge.gateway.settings import Settings

CHAT = "/v1/chat/completions"
MINE = {"Authorization": "Bearer sk-mine"}
MESSAGE = "the vLLM server refused the gateway's own key; the gateway's log names the server"
VLLM: Dict[str, Any] = {"error": "Unauthorized"}  # vllm/entrypoints/openai/server_utils.py, AuthenticationMiddleware
OPENAI: Dict[str, Any] = {"error": {"message": "Incorrect API key provided: sk-up. Find it on our page",
                                    "type": "invalid_request_error", "param": "key", "code": "invalid_api_key"}}
HTML = b"<html><title>403 Forbidden</title>nginx</html>"
STREAM = SSE_HEAD + event({"error": {"message": "who?", "type": "x", "code": 401}}) + LAST_CHUNK


@contextmanager
def gateway(*servers: Scripted) -> Iterator[Address]:
    keys = [{"value": "sk-up", "url": server.url} for server in servers]
    settings = Settings(ProviderConfig.from_dict({"keys": keys}, environ={}), ("sk-mine",))
    with own(Gateway(settings)) as address:
        yield address


@pytest.mark.parametrize("path, body", [
    (CHAT, chat("x")), (CHAT, chat("x", stream=True)), ("/v1/models", None), ("/v1/models/echo", None),
    ("/v1/responses", {"model": "m", "input": "x"}), ("/v1/responses", {"model": "m", "input": "x", "stream": True}),
    ("/v1/embeddings", {"model": "m", "input": "x"}), ("/v1/rerank", {"model": "m", "query": "x", "documents": ["y"]}),
])
@pytest.mark.parametrize("reply, status", [
    (answer(VLLM, "401 Unauthorized", extra="WWW-Authenticate: Bearer realm=vllm\r\n"), 401),
    (answer(OPENAI, "401 Unauthorized"), 401),
    (answer(HTML, "403 Forbidden", "text/html", extra="WWW-Authenticate: Basic\r\n"), 403),
    (answer({"error": {"message": "sk-up?", "type": "x", "code": 401}}), 401),
])
def test_a_refused_key_of_the_gateway_is_not_the_clients(
    path: str, body: Any, reply: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(["request", reply, "again"]) as server, gateway(server) as address:
        found = ask(address, "GET" if body is None else "POST", path, body, MINE)
        assert found.status == status
        assert found.error == {"message": MESSAGE, "type": "authentication_error" if status == 401 else
                               "permission_error", "param": None, "code": "upstream_authentication_error"}
        assert "www-authenticate" not in found.headers
        (warning,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
        assert server.url in warning and "sk-up" not in warning
        metrics = ask(address, "GET", "/metrics", None, MINE).body.decode()
        assert 'vllm_bridge_upstream_authentication_errors_total{server="%s"} 1\n' % server.url in metrics


def test_a_refusal_inside_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    with Scripted(["request", STREAM, "again"]) as server, gateway(server) as address:
        found = ask(address, "POST", CHAT, chat("x", stream=True), MINE)
        assert (found.status, found.error["code"]) == (401, "upstream_authentication_error")
        assert server.url in caplog.text


def test_the_log_names_a_server_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(errors.time, "monotonic", lambda: now)  # type: ignore[attr-defined]
    refusal = ["request", answer(VLLM, "401 Unauthorized"), "again"]
    with Scripted(refusal) as one, Scripted(refusal) as other, gateway(one, other) as address:
        for _ in range(20):
            assert ask(address, "POST", CHAT, chat("x"), MINE).status == 401
        assert caplog.text.count("refused the gateway's key") == len({one.url, other.url})
        now += 61
        for _ in range(20):
            ask(address, "POST", CHAT, chat("x"), MINE)
        assert caplog.text.count("refused the gateway's key") == 4


def test_a_refusal_by_one_of_several_servers(caplog: pytest.LogCaptureFixture) -> None:
    models = answer({"object": "list", "data": [{"id": "m", "object": "model"}]})
    with Scripted(["request", models, "again"]) as one, \
            Scripted(["request", answer(VLLM, "401 Unauthorized"), "again"]) as other, gateway(one, other) as address:
        found = ask(address, "GET", "/v1/models", None, MINE)
        assert (found.status, [model["id"] for model in found.json["data"]]) == (200, ["vllm/m"])
        good, bad = found.json["key_statuses"]
        assert "error" not in good
        assert (bad["error"]["message"], bad["error"]["code"]) == (MESSAGE, "upstream_authentication_error")
        assert "key 1 refused the gateway's key (401)" in caplog.text


def test_a_fallback_hides_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    script = ["request", answer(VLLM, "401 Unauthorized"), "request", answer(completion()), "again"]
    with Scripted(script) as server, gateway(server) as address:
        assert ask(address, "POST", CHAT, chat("x", fallbacks=["b"]), MINE).status == 200
        assert server.url in caplog.text


def test_a_clients_own_key_stays_its_own_matter(caplog: pytest.LogCaptureFixture) -> None:
    with Scripted(["request", answer(completion()), "again"]) as server, gateway(server) as address:
        for headers in ({}, {"Authorization": "Bearer sk-up"}):
            found = ask(address, "POST", CHAT, chat("x"), headers)
            assert (found.status, found.error["code"]) == (401, "invalid_api_key")
            assert found.headers["www-authenticate"] == "Bearer"
        assert not server.requests and not caplog.records
        assert b"authentication_errors_total{" not in ask(address, "GET", "/metrics", None, MINE).body
