"""Anthropic's protocol: keys, headers, errors in its shape, streams, lists of models, names for its models."""

import json
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import pytest

import wire
from faces import Address, Answer, ask, log_lines, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, nobody
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

PATH = "/v1/messages"
VERSION = {"anthropic-version": "2023-06-01"}
BODY: Dict[str, Any] = {"model": "chat", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def gateway(*urls: str, aliases: Any = None, keys: Any = (), **more: Any) -> Iterator[Address]:
    config = {"keys": [{"url": url, "aliases": aliases or {}} for url in urls],
              "network_config": {"retry_backoff_initial_ms": 1, "max_retries": 0}}
    settings = Settings(ProviderConfig.from_dict(config, environ={}), keys, log_format="json", **more)
    with own(Gateway(settings)) as address:
        yield address


def stream_of(name: str) -> List[Any]:
    return ["request", SSE_HEAD, *(chunk(frame) for frame in wire.load(name).frames), LAST_CHUNK]


def assert_anthropic(found: Answer, status: int, kind: str, words: str) -> None:
    assert found.status == status, found.body
    told = found.json
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert words in told["error"]["message"] and set(told["error"]) == {"type", "message"}
    assert told["request_id"] == found.headers["x-request-id"]


# ---------------------------------------------------------------- who may come in


def test_either_header_carries_the_key() -> None:
    with EchoServer(models=None) as server, gateway(server.url, keys=("sk-a", "sk-b")) as address:
        for headers in ({"x-api-key": "sk-b"}, {"Authorization": "Bearer sk-a"}):
            assert ask(address, "POST", PATH, BODY, {**VERSION, **headers}).status == 200
            sent = server.requests[-1].headers
            assert "x-api-key" not in sent and "authorization" not in sent
        refused: List[Dict[str, str]] = [{}, {"x-api-key": "sk-c"}, {"x-api-key": ""}, {"Authorization": "Basic sk-a"}]
        for headers in refused:
            found = ask(address, "POST", PATH, BODY, {**VERSION, **headers})
            assert_anthropic(found, 401, "authentication_error", "x-api-key")
        assert len(server.requests) == 2


def test_anthropics_headers_go_up() -> None:
    given = {**VERSION, "anthropic-beta": "tools-2024", "Anthropic-Dangerous-Direct-Browser-Access": "true"}
    with EchoServer(models=None) as server, gateway(server.url) as address:
        found = ask(address, "POST", PATH + "?beta=true", BODY, given)
        assert found.status == 200 and found.headers["request-id"] == found.headers["x-request-id"]
        sent = server.requests[-1].headers
        assert {name: sent[name] for name in sent if name.startswith("anthropic-")} == {
            name.lower(): value for name, value in given.items()}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("name, kind", [
    ("messages_unknown_model", "not_found_error"), ("messages_missing_max_tokens", "invalid_request_error"),
    ("messages_too_long_stream", "invalid_request_error"), ("messages_count_tokens_unknown_model", "not_found_error"),
    ("messages_unknown_model_stream", "not_found_error"),
])
def test_a_servers_error_in_anthropics_shape(name: str, kind: str) -> None:
    recorded = wire.load(name)
    reply = answer(recorded.body, recorded.status_line.partition(" ")[2])
    with Scripted(["request", reply, "again"]) as server, gateway(server.url) as address:
        found = ask(address, "POST", recorded.request["path"], recorded.request["body"])
        assert_anthropic(found, recorded.status, kind, recorded.json["error"]["message"])


@pytest.mark.parametrize("status, kind", [
    ("401 Unauthorized", "authentication_error"), ("429 Too Many Requests", "rate_limit_error"),
    ("500 Internal Server Error", "api_error"), ("503 Service Unavailable", "overloaded_error"),
    ("504 Gateway Timeout", "timeout_error"), ("413 Content Too Large", "request_too_large"),
])
def test_the_type_goes_with_the_status(status: str, kind: str) -> None:
    with Scripted(["request", answer({"error": {"message": "so", "type": "x"}}, status), "again"]) as server:
        with gateway(server.url) as address:
            assert_anthropic(ask(address, "POST", PATH, BODY), int(status[:3]), kind, "")


def test_the_gateways_own_errors() -> None:
    with gateway(nobody(), max_body_mb=0.001) as address:
        assert_anthropic(ask(address, "POST", PATH, BODY), 502, "api_error", "Connection refused")
        assert_anthropic(ask(address, "POST", PATH, b"{"), 400, "invalid_request_error", "JSON")
        assert_anthropic(ask(address, "POST", PATH, {}), 400, "invalid_request_error", "model is required")
        assert_anthropic(ask(address, "POST", PATH, b" " * 2000), 413, "request_too_large", "")
        assert_anthropic(ask(address, "GET", PATH), 405, "invalid_request_error", "POST")
        assert_anthropic(ask(address, "POST", "/v1/messages/batches", {}), 404, "not_found_error", "Route not found")
        nowhere = ask(address, "GET", "/v1/me", None, VERSION)
        assert_anthropic(nowhere, 404, "not_found_error", "Route not found")
        assert nowhere.headers["request-id"] == nowhere.headers["x-request-id"]
        assert "type" not in ask(address, "GET", "/v1/me").json


def test_a_stream_that_breaks_off_ends_with_an_error_event() -> None:
    frames = wire.load("messages_stream").frames[:4]
    script = ["request", SSE_HEAD, *(chunk(frame) for frame in frames), ("rst", 0.2)]
    with log_lines() as lines, Scripted(script) as server, gateway(server.url) as address:
        found = ask(address, "POST", PATH, {**BODY, "stream": True})
        assert found.status == 200 and found.body.startswith(b"".join(frames))
        head, data = found.body[len(b"".join(frames)):].decode().rstrip("\n").split("\n")
        told = json.loads(data[len("data: "):])
        assert (head, told["type"], told["error"]["type"]) == ("event: error", "error", "api_error")
        assert set(told["error"]) == {"type", "message"}
        until(lambda: lines)
    assert lines[-1]["status"] == 502


def test_an_error_that_a_stream_carries() -> None:
    with Scripted(stream_of("messages_bad_regex_stream"), stream_of("messages_stream")[:4] + [
            chunk(b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"it broke"}}\n\n'),
            LAST_CHUNK]) as server, gateway(server.url) as address:
        first = ask(address, "POST", PATH, {**BODY, "stream": True})
        assert_anthropic(first, 500, "api_error", "")  # nothing had come before it
        later = ask(address, "POST", PATH, {**BODY, "stream": True})
        assert later.status == 200
        assert later.body.endswith(
            b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"it broke"}}\n\n')


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("name", [
    name for name in wire.names("messages_") + wire.names("think_messages_")
    if wire.load(name).streams and "bad_regex" not in name
])
def test_a_stream_passes_as_it_is(name: str) -> None:
    recorded = wire.load(name)
    body = {**recorded.request["body"], "model": "vllm/chat"}
    with log_lines() as lines, Scripted(stream_of(name)) as server, gateway(server.url) as address:
        found = ask(address, "POST", PATH, body)
        assert found.body == recorded.body
        assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert server.requests[0].json == {**body, "model": "chat"}
    usage = recorded.payloads[-2]["usage"]
    assert (lines[-1]["tokens_in"], lines[-1]["tokens_out"]) == (usage["input_tokens"], usage["output_tokens"])
    assert lines[-1]["first_token_ms"] is not None and lines[-1]["status"] == 200


def test_pings_and_comments_pass() -> None:
    frames = wire.load("messages_stream").frames
    more = [b'event: ping\ndata: {"type": "ping"}\n\n', b": keep-alive\n\n"]
    script = ["request", SSE_HEAD, *(chunk(frame) for frame in frames[:2] + more + frames[2:]), LAST_CHUNK]
    with Scripted(script) as server, gateway(server.url) as address:
        found = ask(address, "POST", PATH, {**BODY, "stream": True})
        assert found.body == b"".join(frames[:2] + more + frames[2:])


def test_what_vllm_cannot_read_is_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    tool = {"name": "ls", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a page"}}
    scan = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
    content = [document, scan, scan, {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    body = {**BODY, "tools": [search, tool], "messages": [{"role": "user", "content": content}], "new_field": {"a": 1}}
    with Scripted(["request", answer(wire.load("messages_plain").body), "again"]) as server:
        with gateway(server.url) as address:
            assert ask(address, "POST", PATH, body).status == 200
            sent = server.requests[0].json
            assert sent == {**body, "tools": [tool], "messages": [{"role": "user", "content": [
                {"type": "text", "text": "a page"}, content[-1]]}]}
            assert [record.getMessage() for record in caplog.records if record.name == "vllm_bridge"] == [
                "messages: the tool web_search_20250305 is left out: a vLLM server does not have it",
                "messages: a block of type document is left out: a vLLM server does not have it",
            ]
            only = {**body, "tools": [search], "tool_choice": {"type": "auto"}}
            assert ask(address, "POST", PATH, only).status == 200
            assert "tools" not in server.requests[1].json and "tool_choice" not in server.requests[1].json


# ---------------------------------------------------------------- models


def test_models_in_anthropics_form() -> None:
    with EchoServer(models=("a", "b", "c")) as server, gateway(server.url) as address:
        plain = ask(address, "GET", "/v1/models").json
        assert plain["object"] == "list" and "has_more" not in plain
        found = ask(address, "GET", "/v1/models", None, VERSION).json
        assert [model["id"] for model in found["data"]] == ["vllm/a", "vllm/b", "vllm/c"]
        assert (found["has_more"], found["first_id"], found["last_id"]) == (False, "vllm/a", "vllm/c")
        one = found["data"][0]
        assert (one["type"], one["display_name"]) == ("model", "vllm/a") and one["created_at"].endswith("Z")
        assert ask(address, "GET", "/v1/models/b", None, VERSION).json["id"] == "vllm/b"
        assert ask(address, "GET", "/anthropic/v1/models").json["has_more"] is False
        missing = ask(address, "GET", "/v1/models/nope", None, VERSION)
        assert_anthropic(missing, 404, "not_found_error", "nope")


@pytest.mark.parametrize("query, names, more", [
    ("limit=2", "ab", True), ("limit=3", "abc", False), ("limit=2&after_id=vllm/a", "bc", False),
    ("limit=1&before_id=vllm/c", "b", True), ("before_id=vllm/a", "", False), ("after_id=vllm/c", "", False),
])
def test_models_page_by_page(query: str, names: str, more: bool) -> None:
    with EchoServer(models=("a", "b", "c")) as server, gateway(server.url) as address:
        found = ask(address, "GET", "/v1/models?" + query, None, VERSION).json
        assert "".join(model["id"][-1] for model in found["data"]) == names and found["has_more"] is more
        for wrong in ("0", "1001", "x"):
            refused = ask(address, "GET", "/v1/models?limit=" + wrong, None, VERSION)
            assert_anthropic(refused, 400, "invalid_request_error", "limit")


def test_an_alias_with_a_star() -> None:
    aliases = {"claude-*": "Qwen/Qwen3-Coder", "claude-haiku*": "never", "Claude-Opus": "big"}
    with EchoServer(models=("Qwen/Qwen3-Coder", "big")) as server, gateway(server.url, aliases=aliases) as address:
        for name, real in (("claude-sonnet-4-5-20250929", "Qwen/Qwen3-Coder"), ("vllm/claude-x", "Qwen/Qwen3-Coder"),
                           ("CLAUDE-haiku-4", "Qwen/Qwen3-Coder"), ("claude-opus", "big"), ("big", "big")):
            assert ask(address, "POST", PATH, {**BODY, "model": name}).status == 200
            assert server.requests[-1].json["model"] == real, name
        found = ask(address, "GET", "/v1/models").json
        assert [model["id"] for model in found["data"]] == ["vllm/Qwen/Qwen3-Coder", "vllm/big", "vllm/Claude-Opus"]
        assert ask(address, "POST", PATH, {**BODY, "model": "aclaude-x"}).status == 404


def test_a_star_chooses_the_server_that_has_it() -> None:
    with EchoServer(models=("small",)) as one, EchoServer(models=("coder",)) as two:
        with gateway(one.url, two.url, aliases={"claude-*": "coder"}) as address:
            for _ in range(4):
                assert ask(address, "POST", PATH, {**BODY, "model": "claude-x"}).status == 200
            assert len([request for request in two.requests if request.path == PATH]) == 4
