"""The application: keys, several servers, fallbacks, secrets, accounts."""

import errno
import gc
import http.client
import io
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple, cast

import pytest

from faces import LONG, Address, Answer, ask, chat, log_lines, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.errors import ConfigError
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway import app as app_module
from vllm_bridge.gateway import create_app
from vllm_bridge.gateway.settings import Settings
from vllm_bridge.server.request import Request as ServerRequest
from vllm_bridge.vllm import VLLMProvider

CHAT = "/v1/chat/completions"


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer(models=("echo", "other")) as server:
        yield server


@contextmanager
def gateway(
    *servers: EchoServer, api_keys: Tuple[str, ...] = (), provider: Any = None, **more: Any
) -> Iterator[Address]:
    config = dict({"keys": [{"url": server.url} for server in servers]}, **(provider or {}))
    config.setdefault("network_config", {"retry_backoff_initial_ms": 1})
    with own(Gateway(Settings(ProviderConfig.from_dict(config, environ={}), api_keys, **more))) as address:
        yield address


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# ---------------------------------------------------------------- who may come in


def test_everything_but_health_is_behind_the_key(echo: EchoServer) -> None:
    with gateway(echo, api_keys=("sk-a", "sk-b")) as address:
        assert ask(address, "GET", "/health").status == 200
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/ready"),
                             ("GET", "/version"), ("POST", "/v1/audio/speech"), ("GET", "/nowhere"),
                             ("PUT", "/health")):
            answer = ask(address, method, path, None, {"Authorization": "Bearer sk-c"})
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key"), path
            assert answer.headers["www-authenticate"] == "Bearer"
        assert not echo.requests
        for key in ("sk-a", "sk-b"):
            assert ask(address, "POST", CHAT, chat("x"), {"Authorization": "Bearer " + key}).status == 200
            # The client's key is the gateway's own matter.
            assert "authorization" not in echo.requests[-1].headers
        asked = {"Origin": "http://localhost", "Access-Control-Request-Method": "POST"}
        assert ask(address, "OPTIONS", CHAT, headers=asked).status == 200  # a browser asks without the key


def test_a_key_or_the_operator_lets_in_under_any_name(echo: EchoServer) -> None:
    foreign = {"Host": "gateway.example"}
    with gateway(echo, api_keys=("sk-a",)) as address:
        assert ask(address, "GET", "/version", None, {"Authorization": "Bearer sk-a", **foreign}).status == 200
        assert ask(address, "GET", "/version", None, foreign).status == 401
    for more in ({"allowed_host": ["gateway.example"]}, {"allowed_host": ["*"]}, {"host": "Gateway.Example"}):
        with gateway(echo, **more) as address:
            assert ask(address, "GET", "/version", None, foreign).status == 200
    with gateway(echo, allowed_host=["other.example"], insecure=True, host="0.0.0.0") as address:
        refused = ask(address, "GET", "/v1/models", None, {"Origin": "http://localhost", **foreign})
        assert refused.status == 403 and "gateway.example" in refused.error["message"]
        assert refused.headers["access-control-allow-origin"] == "http://localhost"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["", "vllm/", "team/"])
def test_ids_are_listed_with_the_prefix_and_taken_with_it_and_without(echo: EchoServer, prefix: str) -> None:
    with gateway(echo, model_prefix=prefix) as address:
        listed = [model["id"] for model in ask(address, "GET", "/v1/models").json["data"]]
        assert sorted(listed) == [prefix + "echo", prefix + "other"]
        for name in (prefix + "echo", "echo", "vllm/echo"):
            assert ask(address, "GET", "/v1/models/" + name).json["id"] == prefix + "echo"
            for body in (chat("x", fallbacks=["other"]), chat("x", fallbacks=[prefix + "other"])):
                assert ask(address, "POST", CHAT, dict(body, model=name)).status == 200
                assert echo.requests[-1].json["model"] == "echo"
                assert ask(address, "POST", CHAT, dict(body, model="nobody")).status == 200
                assert echo.requests[-1].json["model"] == "other"


@pytest.mark.parametrize("sent, arrived", [
    ("vllm/org/model", "org/model"), ("org/model", "org/model"), ("vllm//data/x", "/data/x"),
    ("vllm/vllm/x", "vllm/x"), ("VLLM/x", "VLLM/x"), ("vllmx/y", "vllmx/y"),
])
def test_one_literal_prefix_is_taken_off(sent: str, arrived: str) -> None:
    with EchoServer(models=(arrived,)) as echo, gateway(echo) as address:
        assert ask(address, "POST", CHAT, chat("x", model=sent)).status == 200
        assert echo.requests[-1].json["model"] == arrived
        assert ask(address, "GET", "/v1/models").json["data"][0]["id"] == "vllm/" + arrived


def test_a_model_that_is_no_text(echo: EchoServer) -> None:
    with gateway(echo) as address:
        answer = ask(address, "POST", CHAT, chat("x", model=5))
        assert (answer.status, answer.error["message"]) == (400, "model must be a string")


@pytest.mark.parametrize("stream, streams", [("true", True), ("False", False), ("0", False), (1, True), (None, False)])
def test_stream_in_the_words_that_vllm_takes(echo: EchoServer, stream: Any, streams: bool) -> None:
    with gateway(echo) as address:
        answer = ask(address, "POST", CHAT, chat("x", stream=stream))
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream") is streams


def test_a_model_is_found_whatever_slashes_its_name_has() -> None:
    with EchoServer(models=("/data/m/", "echo", "org/x")) as server, gateway(server) as address:
        for path, name in (("//data/m/", "/data/m/"), ("/vllm//data/m/", "/data/m/"), ("/%2Fdata%2Fm%2F", "/data/m/"),
                           ("/vllm%2F%2Fdata%2Fm%2F", "/data/m/"), ("/echo/", "echo"), ("/vllm/org/x/", "org/x")):
            found = ask(address, "GET", "/v1/models" + path)
            assert (found.status, found.json["id"]) == (200, "vllm/" + name)
        for path in ("//data/m", "/echo//", "/data/m/"):
            assert ask(address, "GET", "/v1/models" + path).status == 404


def test_models_of_all_servers(echo: EchoServer) -> None:
    port = free_port()
    with EchoServer(models=("echo", "third")) as second:
        keys = [{"url": echo.url, "name": "one"}, {"url": second.url, "name": "two"},
                {"url": "http://127.0.0.1:%d" % port, "name": "dead", "value": "sk-dead"}]
        with gateway(provider={"keys": keys}) as address:
            answer = ask(address, "GET", "/v1/models")
            assert [model["id"] for model in answer.json["data"]] == ["vllm/echo", "vllm/other", "vllm/third"]
            statuses = {status["key_id"]: status["status"] for status in answer.json["key_statuses"]}
            assert statuses == {"one": "success", "two": "success", "dead": "list_models_failed"}
            assert str(port) not in answer.body.decode()
            assert ask(address, "GET", "/ready").status == 200


# ---------------------------------------------------------------- several servers, fallbacks


def test_a_dead_server_costs_nothing(echo: EchoServer) -> None:
    keys = [{"url": "http://127.0.0.1:%d" % free_port(), "weight": 100}, {"url": echo.url, "weight": 0.01}]
    with gateway(provider={"keys": keys}) as address:
        for stream in (False, True, False):
            assert ask(address, "POST", CHAT, chat("x", stream=stream)).status == 200
        text = ask(address, "GET", "/metrics").body.decode()
        assert 'vllm_bridge_retries_total{operation="chat_completion"}' not in text, "it was not there when asked"
        assert "vllm_bridge_cooled_servers 1\n" in text


@pytest.mark.parametrize("count", [1, 2])
def test_one_prefix_is_taken_off_whatever_the_servers_have(echo: EchoServer, count: int) -> None:
    with EchoServer(models=("other",)) as second:
        with gateway(provider={"keys": [{"url": echo.url}, {"url": second.url}][:count]}) as address:
            assert ask(address, "POST", CHAT, chat("x", model="vllm/echo")).status == 200
            for _ in range(2):
                found = ask(address, "POST", CHAT, chat("x", model="vllm/vllm/echo"))
                assert found.status == 404 and "`vllm/echo` does not exist" in found.error["message"]


def test_keys_by_model_and_by_name(echo: EchoServer) -> None:
    with EchoServer(models=("big",)) as second:
        keys = [{"url": echo.url, "models": ["echo"], "name": "small", "id": "1"},
                {"url": second.url, "models": ["big", "echo"], "name": "large", "id": "2"}]
        with gateway(provider={"keys": keys}) as address:
            assert ask(address, "POST", CHAT, chat("x", model="vllm/big")).status == 200
            assert second.requests[-1].json["model"] == "big"
            for header in ({"x-bf-api-key-id": "1"}, {"x-bf-api-key": "small"}):
                before = len(echo.requests)
                assert ask(address, "POST", CHAT, chat("x"), header).status == 200
                assert len(echo.requests) == before + 1
            assert ask(address, "POST", CHAT, chat("x"), {"x-bf-api-key": "none"}).error["code"] == "no_keys_found"
            unknown = ask(address, "POST", CHAT, chat("x", model="vllm/none"))
            assert (unknown.status, unknown.error["code"]) == (400, "no_keys_found")


@pytest.mark.parametrize("path, body", [
    (CHAT, chat("x")), (CHAT, chat("x", stream=True)), ("/v1/completions", {"prompt": "x"}),
    ("/v1/embeddings", {"input": "x"}), ("/v1/rerank", {"query": "x", "documents": ["x"]}),
    ("/v1/responses", {"input": "x"}), ("/v1/responses", {"input": "x", "stream": True}),
])
def test_rules_and_log_see_the_model_that_the_server_sees(echo: EchoServer, path: str, body: Dict[str, Any]) -> None:
    keys = [{"url": echo.url, "blacklisted_models": ["other"]}]
    with gateway(provider={"keys": keys}, log_format="json") as address, log_lines() as lines:
        extras: List[Any] = [{"model": "other"}, {"model": None}, {"model": ["other"]}, {"model": 5, "n": 9}, "x", [1]]
        for extra in extras:
            echo.requests.clear()
            found = ask(address, "POST", path, dict(body, model="vllm/echo", extra_body=extra, seed=None))
            assert found.status == 200, found.body
            (sent,) = echo.requests
            assert sent.json["model"] == "echo" and "seed" not in sent.json
            assert sent.json.get("extra_body", extra) == extra
            if path != "/v1/responses":  # which goes over chat: an unknown field is the chat's too
                assert sent.json["extra_body"] == extra
        echo.requests.clear()
        for extra in [{"model": "vllm/other"}, *extras]:
            found = ask(address, "POST", path, dict(body, model="echo", extra_params=extra))
            assert (found.status, len(echo.requests)) == (400, 0), extra
        found = ask(address, "POST", path, dict(body, model="other", extra_params={"model": "vllm/echo", "top_k": 3}))
        assert found.status == 200 and echo.requests[-1].json["model"] == "echo"
        assert "extra_params" not in echo.requests[-1].json and echo.requests[-1].json["top_k"] == 3
        until(lambda: len(lines) == 14)
        assert [line["model"] for line in lines if line["status"] == 200] == ["echo"] * 7
        assert sorted(str(line["model"]) for line in lines if line["status"] != 200) == ["None"] * 5 + ["other"] * 2


def test_fallbacks_in_their_order(echo: EchoServer) -> None:
    with gateway(echo) as address:
        body = chat("x", model="gone", fallbacks=["vllm/gone-too", 5, "", "vllm/other", "echo"])
        for stream in (False, True):
            assert ask(address, "POST", CHAT, dict(body, stream=stream)).status == 200
            sent = [request.json for request in echo.requests if request.path == CHAT]
            assert [request["model"] for request in sent[-3:]] == ["gone", "gone-too", "other"]
            assert not any("fallbacks" in request for request in sent)
        text = ask(address, "GET", "/metrics").body.decode()
        assert 'vllm_bridge_fallbacks_total{operation="chat_completion"} 4\n' in text
        assert 'vllm_bridge_requests_total{operation="chat_completion",model="other",status="200"} 2\n' in text
        assert "retries" not in re.sub("(?m)^#.*", "", text)


def test_when_all_fail_the_first_error_stands(echo: EchoServer) -> None:
    with gateway(echo) as address:
        answer = ask(address, "POST", CHAT, chat("x", model="gone", fallbacks=["vllm/gone-too"]))
        assert answer.status == 404
        assert "`gone`" in answer.error["message"]
        assert ask(address, "POST", CHAT, chat("x", model="gone", fallbacks="vllm/other")).status == 404


@pytest.mark.parametrize("stream", [False, True])
def test_at_most_ten_fallbacks_are_tried(stream: bool) -> None:
    reply = answer({"error": {"message": "no", "code": 404}}, "404 Not Found")
    names = ["m%d" % number for number in range(3000)]
    with Scripted(["request", reply, "again"]) as server, gateway(provider={"keys": [{"url": server.url}]}) as address:
        found = ask(address, "POST", CHAT, chat("x", model="first", fallbacks=names, stream=stream))
        assert found.status == 404
        assert [request.json["model"] for request in server.requests] == ["first", *names[:10]]


def test_no_fallback_is_tried_for_a_client_that_has_left(echo: EchoServer) -> None:
    """Also where its leaving and the answer of the first model come together."""
    settings = Settings(ProviderConfig.from_dict({"keys": [{"url": echo.url}]}, environ={}))
    body = json.dumps(chat("x", model="gone", fallbacks=["echo"])).encode()
    app = Gateway(settings)
    try:
        request = ServerRequest("POST", CHAT, "HTTP/1.1", {}, "", _Body(body), lambda: bool(echo.requests))
        assert app.answer(request).status == 499
        assert [each.json["model"] for each in echo.requests] == ["gone"]
    finally:
        app.close()


class _Body:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, limit: int) -> bytes:
        return self.data

    def blocks(self, limit: int) -> Iterator[bytes]:
        yield self.data


def test_no_fallback_after_the_first_event_nor_for_a_wrong_body(echo: EchoServer) -> None:
    with gateway(echo) as address:
        events = ask(address, "POST", CHAT, chat("!die-after 2 one two", stream=True, fallbacks=["other"])).events()
        assert "error" in json.loads(events[-1])
        assert ask(address, "POST", CHAT, {"model": "echo", "fallbacks": ["other"]}).status == 400
        assert [request.json["model"] for request in echo.requests] == ["echo"]


# ---------------------------------------------------------------- errors


def test_no_address_and_no_key_of_a_server_in_a_reply() -> None:
    port = free_port()
    url = "http://127.0.0.1:%d" % port
    with gateway(provider={"keys": [{"url": url, "value": "sk-up"}]}) as address:
        for path, body in ((CHAT, chat("x")), (CHAT, chat("x", stream=True)),
                           ("/v1/responses", {"model": "m", "input": "x"}),
                           ("/v1/rerank", {"model": "m", "query": "q", "documents": ["d"]})):
            answer = ask(address, "POST", path, body)
            assert answer.status == 502, answer.body
            assert answer.error["type"] == "provider_connection_failed"
            assert "cannot connect to the vLLM server" in answer.error["message"]
            assert str(port) not in answer.body.decode() and "sk-up" not in answer.body.decode()
        for path in ("/v1/models", "/ready"):
            answer = ask(address, "GET", path)
            assert answer.status == (502 if path == "/v1/models" else 503)
            assert str(port) not in answer.body.decode()


def test_a_server_that_repeats_its_key() -> None:
    with stub(b"HTTP/1.1 500 No\r\nContent-Length: 21\r\n\r\nsk-up is wrong, sk-up") as url:
        keys = [{"url": url, "value": "sk-up"}]
        with gateway(provider={"keys": keys, "network_config": {"max_retries": 0}}) as address:
            answer = ask(address, "POST", CHAT, chat("x"))
            assert answer.status == 500 and "sk-up" not in answer.body.decode()


def test_a_redirect_names_no_address() -> None:
    with stub(b"HTTP/1.1 307 Go\r\nLocation: http://inner.example/v1\r\nContent-Length: 0\r\n\r\n") as url:
        with gateway(provider={"keys": [{"url": url}]}) as address:
            answer = ask(address, "POST", CHAT, chat("x"))
            assert answer.status == 502 and "inner" not in answer.body.decode()


def test_a_server_that_speaks_no_tls() -> None:
    with stub(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as url:
        with gateway(provider={"keys": [{"url": url.replace("http:", "https:")}]}) as address:
            answer = ask(address, "POST", CHAT, chat("x"))
            assert answer.status == 502 and "://" not in answer.body.decode()


@contextmanager
def stub(reply: bytes) -> Iterator[str]:
    """Answer every connection with the same bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def run() -> None:
            while True:
                try:
                    sock = listener.accept()[0]
                except OSError:
                    return
                with sock:
                    sock.recv(65536)
                    sock.sendall(reply)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield "http://127.0.0.1:%d" % listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# ---------------------------------------------------------------- the bytes of a request


ODD = b'{ "messages" : [{"role":"user","content":"a \\u00e9 \xc3\xa9 \\"model\\""}],"model":%b,\n "top_p":1.0e-0 %b}'


@pytest.mark.parametrize("model", [b'"vllm/echo"', b'"echo"'])
@pytest.mark.parametrize("more", [b"", b',"stream":true,"stream_options":{"include_usage":true}'])
def test_a_request_that_needs_no_change_goes_up_as_it_came_but_for_the_model(
    echo: EchoServer, model: bytes, more: bytes
) -> None:
    with gateway(echo) as address:
        assert ask(address, "POST", CHAT, ODD % (model, more)).status == 200
    assert [request.body for request in echo.requests if request.path == CHAT] == [ODD % (b'"echo"', more)]


def test_an_alias_is_put_into_the_bytes_too(echo: EchoServer) -> None:
    with gateway(provider={"keys": [{"url": echo.url, "aliases": {"short": "echo"}}]}) as address:
        assert ask(address, "POST", CHAT, ODD % (b'"vllm/short"', b"")).status == 200
    assert [request.body for request in echo.requests if request.path == CHAT] == [ODD % (b'"echo"', b"")]


@pytest.mark.parametrize("more, has", [
    (b',"temperature":null', {"top_p": 1.0}),
    (b',"stream":true', {"stream": True, "stream_options": {"include_usage": True}}),
    (b',"stream":"no"', {"stream": False}),
    (b',"fallbacks":["other"]', {"top_p": 1.0}),
    (b',"metadata":{"model":"vllm/echo"}', {"metadata": {"model": "vllm/echo"}}),
    (b',"model":"vllm/echo"', {"model": "echo"}),
])
def test_a_request_that_needs_a_change_is_printed_anew(echo: EchoServer, more: bytes, has: Dict[str, Any]) -> None:
    with gateway(echo) as address:
        assert ask(address, "POST", CHAT, ODD % (b'"vllm/echo"', more)).status == 200
    (body,) = [request.json for request in echo.requests if request.path == CHAT]
    assert {**body, **has} == body and body["model"] == "echo" and "temperature" not in body and "fallbacks" not in body


@pytest.mark.parametrize("more", [b',"model":"echo"', b',"mod\\u0065l":"echo"', b',"metadata":{"model":"other"}'])
def test_a_request_with_two_models_goes_up_with_one(echo: EchoServer, more: bytes) -> None:
    first = b'"echo"' if b"metadata" in more else b'"forbidden"'
    with gateway(echo) as address:
        assert ask(address, "POST", CHAT, ODD % (first, more)).status == 200
    (request,) = [request for request in echo.requests if request.path == CHAT]
    assert b"forbidden" not in request.body and request.json["model"] == "echo"


class Broken(VLLMProvider):
    """A provider with a defect."""

    def forward(self, operation: str, body: Any, data: Any = None) -> Any:
        raise KeyError("a secret")

    def responses_stream(self, /, **wire: Any) -> Any:
        stream = super().responses_stream(**wire)

        def bad(events: Iterator[Any]) -> Iterator[Any]:
            yield next(events)
            raise KeyError("a secret")

        return stream.converted(bad)


def test_a_defect_of_ours_tells_nothing_and_is_logged(echo: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    config = ProviderConfig(keys=[{"url": echo.url}])
    broken = Gateway(Settings(config), Broken(config=config))
    with own(broken) as address:
        answer = ask(address, "POST", CHAT, chat("x"), {"X-Request-Id": "r-7"})
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert answer.headers["x-request-id"] == "r-7"
        assert "secret" not in answer.body.decode()
        stream = ask(address, "POST", "/v1/responses", {"model": "echo", "input": "x", "stream": True})
        last = stream.body.decode().split("\n\n")[-2].split("\n")
        assert last[0] == "event: response.failed"
        payload = json.loads(last[1][len("data: "):])
        assert (payload["type"], payload["sequence_number"]) == ("response.failed", 1)
        assert payload["response"]["error"]["upstream_code"] == "internal_error"
        assert "secret" not in stream.body.decode()
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["'a secret'"] * 2


def test_native_responses_end_in_an_error_event(echo: EchoServer) -> None:
    begun = b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with stub(head + b"%x\r\n%b\r\n" % (len(begun), begun)) as url:
        with gateway(provider={"keys": [{"url": url}], "native_responses": True}) as address:
            answer = ask(address, "POST", "/v1/responses", {"model": "m", "input": "x", "stream": True})
            blocks = answer.body.decode().split("\n\n")
            assert blocks[0].startswith("event: response.created\n")
            assert blocks[1].startswith("event: error\n")
            assert json.loads(blocks[1].partition("data: ")[2])["sequence_number"] == 1


# ---------------------------------------------------------------- accounts


def test_the_log_tells_what_became_of_each_request_but_not_what_was_said(echo: EchoServer) -> None:
    with log_lines() as lines, gateway(echo, log_format="json") as address:
        ask(address, "POST", CHAT + "?key=hidden", chat("private words"), {"X-Request-Id": "r-1"})
        ask(address, "POST", CHAT, chat("private words", stream=True))
        ask(address, "POST", "/v1/embeddings", {"model": "gone", "input": "private words"})
        ask(address, "POST", "/v1/rerank", {"model": "echo", "query": "private words", "documents": ["private words"]})
        ask(address, "POST", "/v1/responses", {"model": "echo", "input": "private words", "stream": True})
        until(lambda: len(lines) == 5)
        ask(address, "POST", CHAT, b"private words")
        until(lambda: len(lines) == 6)
    assert "private" not in json.dumps(lines) and "hidden" not in json.dumps(lines)
    first = lines[0]
    assert (first["method"], first["path"], first["status"], first["model"]) == ("POST", CHAT, 200, "echo")
    assert (first["server"], first["request_id"], first["client"]) == (echo.url, "r-1", "127.0.0.1")
    assert first["first_token_ms"] is None and first["total_ms"] > 0
    # Three words in, and "You said:" before them: the stand-in counts words.
    assert (first["tokens_in"] or 0) > 0 and first["tokens_out"] == 4
    assert lines[1]["first_token_ms"] > 0 and lines[1]["tokens_out"] == 4
    assert [line["status"] for line in lines] == [200, 200, 404, 200, 200, 400]
    assert lines[3]["tokens_in"] > 0 and lines[4]["tokens_out"] == 4


def test_a_client_that_leaves_is_counted_as_such(echo: EchoServer) -> None:
    with log_lines() as lines, gateway(echo, log_format="json") as address:
        body = json.dumps(chat("!stall %g x" % LONG)).encode()
        with socket.create_connection(address) as sock:
            head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT, len(body))
            sock.sendall(head.encode() + body)
            until(lambda: echo.running == 1)
        until(lambda: lines)
        assert lines[0]["status"] == 499
        text = ask(address, "GET", "/metrics").body.decode()
        assert 'vllm_bridge_requests_in_flight{operation="chat_completion"} 0\n' in text
        assert 'vllm_bridge_requests_total{operation="chat_completion",model="other",status="499"} 1\n' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_during_a_fallback_ends_it_all(stream: bool) -> None:
    missing = answer({"error": {"message": "no", "code": 404}}, "404 Not Found")
    with log_lines() as lines, Scripted(["request", missing, "request", "hold"]) as server:
        with gateway(provider={"keys": [{"url": server.url}]}, log_format="json") as address:
            body = json.dumps(chat("x", model="gone", fallbacks=["other", "echo"], stream=stream)).encode()
            with socket.create_connection(address) as sock:
                head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT, len(body))
                sock.sendall(head.encode() + body)
                server.until("request", 2)
            until(lambda: lines)
            assert lines[0]["status"] == 499
        assert [request.json["model"] for request in server.requests] == ["gone", "other"]


def test_a_stream_gives_its_connection_back() -> None:
    for path, body in ((CHAT, chat("x", stream=True)),
                       ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
                       ("/v1/responses", {"model": "m", "input": "x", "stream": True})):
        chunks = [event(delta("a")), event(delta("b", "stop")), event("[DONE]")]
        for reply in ([b"".join([SSE_HEAD, *chunks, LAST_CHUNK])], [SSE_HEAD, *chunks, LAST_CHUNK]):
            with Scripted(["request", *reply, "again"]) as server:
                with gateway(provider={"keys": [{"url": server.url}]}) as address:
                    for _ in range(4):
                        assert ask(address, "POST", path, body).status == 200
                assert (server.connections, len(server.requests)) == (1, 4)


def test_a_body_that_does_not_come_is_counted(echo: EchoServer) -> None:
    with log_lines() as lines, gateway(echo, log_format="json") as address:
        with socket.create_connection(address, timeout=LONG) as sock:
            sock.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{" % CHAT.encode())
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")
        until(lambda: lines)
        assert lines[0]["status"] == 400


def test_a_transcription_falls_back_with_its_whole_file(echo: EchoServer) -> None:
    transcribe_with_a_fallback(echo)


def test_a_container_without_a_folder_for_temporary_files(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a read-only root: the upload stays in memory."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    transcribe_with_a_fallback(echo)


def transcribe_with_a_fallback(echo: EchoServer) -> None:
    with gateway(echo) as address:
        data = b"RIFF1234WAVE" + bytes(range(256)) * 8192  # 2 MiB: on disk
        boundary = b"xyz"
        fields = ((b"model", b"gone"), (b"fallbacks", b"none"), (b"fallbacks", b"other"))
        body = b"".join(b'--xyz\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % pair for pair in fields)
        body += b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + data
        body += b"\r\n--" + boundary + b"--\r\n"
        answer = ask(address, "POST", "/v1/audio/transcriptions", body,
                     {"Content-Type": "multipart/form-data; boundary=xyz"})
        assert answer.status == 200
        last = echo.requests[-1]
        assert data in last.body and ("model", "other") in last.form
        assert not any(name == "fallbacks" for name, _ in last.form)


def test_the_operators_headers_win(echo: EchoServer) -> None:
    network = {"extra_headers": {"X-Tenant": "guest", "CF-Access-Client-Secret": "s3cret", "traceparent": "ours"}}
    sent = {"x-bf-eh-x-tenant": "admin", "x-bf-eh-cf-access-client-secret": "mine", "traceparent": "theirs",
            "X-Team": "red", "x-bf-eh-x-forwarded-for": "1.2.3.4", "x-bf-eh-content-encoding": "gzip"}
    for body in (chat("x"), chat("x", stream=True)):
        with gateway(echo, provider={"network_config": network}, allowed_header=("x-team", "x-tenant")) as address:
            assert ask(address, "POST", CHAT, body, sent).status == 200
            seen = echo.requests[-1].headers
            assert (seen["x-tenant"], seen["traceparent"], seen["x-team"]) == ("guest", "ours", "red")
            assert seen["cf-access-client-secret"] == "s3cret"
            assert "x-forwarded-for" not in seen and "content-encoding" not in seen


@pytest.mark.parametrize("path, body, reply", [
    (CHAT, chat("x"), completion("your key is sk-0123456789")),
    ("/v1/responses", {"model": "m", "input": "x"}, completion("your key is sk-0123456789")),
    ("/v1/models", None, {"object": "list", "data": [{"id": "sk-0123456789"}]}),
    ("/v1/rerank", {"model": "m", "query": "x", "documents": ["y"]},
     {"results": [{"index": 0, "relevance_score": 1, "document": {"text": "sk-0123456789"}}]}),
    ("/v1/completions", {"model": "m", "prompt": "x"}, {"choices": [{"text": "sk-0123456789"}]}),
])
def test_an_answer_that_repeats_the_key_is_kept_back(
    path: str, body: Any, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(["request", answer(reply), "again"]) as server:
        with gateway(provider={"keys": [{"url": server.url, "value": "sk-0123456789"}]}) as address:
            found = ask(address, "GET" if body is None else "POST", path, body)
            assert (found.status, found.error["code"]) == (502, "key_in_reply")
            assert "sk-0" not in str(found.headers) and b"sk-0" not in found.body
        with gateway(provider={"keys": [{"url": server.url, "value": "sk-9876543210"}]}) as address:
            assert ask(address, "GET" if body is None else "POST", path, body).status == 200
    assert "holds a key of the gateway" in caplog.text and "sk-0" not in caplog.text


def test_what_clients_and_servers_say_is_one_line_of_any_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = "x' was left out\n2026-11-23T00:00:00Z ERROR worker 0 died\x1b[31m"
    bad = answer({"error": {"message": forged, "type": "x", "code": 401}}, "401 Unauthorized")
    moved = answer(b"", "302 Found", extra="Location: http://a/\x85\r\n")
    broken = answer(forged.encode() + b"{")
    ask_for = {"model": "m", "input": [{"type": forged}, {"role": "user", "content": "x"}], "tools": [{"type": forged}]}
    with Scripted(["request", bad, "request", moved, "request", broken, "again"]) as server:
        with gateway(provider={"keys": [{"url": server.url}]}) as address:
            for status in (401, 502, 502):
                assert ask(address, "POST", "/v1/responses", ask_for).status == status
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) >= 6 and all(message.isprintable() for message in messages), messages


def test_of_a_servers_headers_a_list_goes_down() -> None:
    theirs = ("X-RateLimit-Remaining-Tokens: 5\r\nSet-Cookie: a=b\r\nAlt-Svc: h3=\":443\"\r\nX-Served-By: gpu-1\r\n"
              "Strict-Transport-Security: max-age=1\r\nX-Debug-Request: x\r\nopenai-model: m\r\nX-Request-Id: a\r\n")
    reply = answer(completion(), extra=theirs)
    with Scripted(["request", reply, "again"]) as server:
        keys = [{"url": server.url}]
        with gateway(provider={"keys": keys}, passed_header=("x-served-by",)) as address:
            found = ask(address, "POST", CHAT, chat("x"), {"X-Request-Id": "mine"})
    names = {name.lower() for name, _ in found.headers.items()}  # type: ignore[attr-defined]
    assert names - {"date", "content-length", "content-type", "x-content-type-options", "x-frame-options"} == {
        "x-request-id", "x-ratelimit-remaining-tokens", "openai-model", "x-served-by"}
    assert found.headers["x-request-id"] == "mine"


def test_the_headers_of_a_provider_win(echo: EchoServer) -> None:
    provider = VLLMProvider(echo.url, headers={"X-Tenant": "guest"})
    with own(Gateway(Settings(ProviderConfig()), provider)) as address:
        assert ask(address, "POST", CHAT, chat("x"), {"x-bf-eh-x-tenant": "admin"}).status == 200
        assert echo.requests[-1].headers["x-tenant"] == "guest"


def test_a_wrong_extra_header_is_the_clients_fault(echo: EchoServer) -> None:
    with gateway(echo) as address:
        answer = ask(address, "POST", CHAT, chat("x"), {"x-bf-eh-upgrade": "h2c", "x-bf-eh-x-ok": "1"})
        assert answer.status == 200 and "upgrade" not in echo.requests[-1].headers
        twice = ask(address, "POST", CHAT, chat("x"), {"X-Session-ID": "1", "x-bf-eh-x-session-id": "2"})
        assert twice.status == 400 and "x-session-id" in twice.error["message"]


def test_a_compressed_body_is_refused(app: Gateway) -> None:
    answer = call(app, CONTENT_LENGTH="2", HTTP_CONTENT_ENCODING="gzip", **{"wsgi.input": io.BytesIO(b"{}")})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_encoding")


def test_a_models_name_beyond_ascii() -> None:
    with EchoServer(models=("模型/ä",)) as echo, gateway(echo) as address:
        answer = ask(address, "GET", "/v1/models/%E6%A8%A1%E5%9E%8B/%C3%A4")
        assert answer.json["id"] == "vllm/模型/ä"
        assert ask(address, "GET", "/v1/models/%FF%FE").status == 404


def test_a_responses_stream_that_has_ended_ends_but_once(echo: EchoServer) -> None:
    """A connection that breaks after the last event is no failure."""
    done = b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":null}}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    with stub(head + b"%x\r\n%b\r\n" % (len(done), done)) as url:
        with gateway(provider={"keys": [{"url": url}], "native_responses": True}) as address:
            answer = ask(address, "POST", "/v1/responses", {"model": "m", "input": "x", "stream": True})
            assert answer.body.count(b"event: ") == 1 and b"response.completed" in answer.body


def test_headers_of_a_server_that_its_client_gets_to_see() -> None:
    headers = (b"X-Request-Id: theirs\r\nServer: uvicorn\r\nSet-Cookie: a=b\r\nAccess-Control-Allow-Origin: *\r\n"
               b"endpoint-load-metrics: JSON {}\r\n")
    body = b'{"object": "chat.completion", "choices": []}'
    with stub(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
              % (headers, len(body), body)) as url:
        with gateway(provider={"keys": [{"url": url}]}) as address:
            answer = ask(address, "POST", CHAT, chat("x"), {"X-Request-Id": "mine"})
            assert answer.body == body
            assert answer.headers["endpoint-load-metrics"] == "JSON {}"
            assert answer.headers["x-request-id"] == "mine"
            for name in ("server", "set-cookie", "access-control-allow-origin"):
                assert name not in answer.headers


# ---------------------------------------------------------------- called directly


def call(app: Gateway, **environ: Any) -> Answer:
    base = {"REQUEST_METHOD": "POST", "PATH_INFO": CHAT, "wsgi.input": io.BytesIO()}
    started: List[Any] = []
    body = app({**base, **environ}, lambda status, headers: started.append((status, headers)))
    data = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return Answer(int(started[0][0][:3]), {name.lower(): value for name, value in started[0][1]}, data)


@pytest.fixture
def app() -> Iterator[Gateway]:
    found = Gateway(Settings(ProviderConfig(), max_body_mb=0.001, log_format="json"))
    yield found
    found.close()


def test_bodies_as_other_servers_hand_them_over(app: Gateway) -> None:
    body = b'{"model": "m"}'
    missing = "messages is required for chat completion"
    whole = call(app, CONTENT_LENGTH="14", **{"wsgi.input": io.BytesIO(body + b"next request")})
    assert whole.error["message"] == missing
    chunked = call(app, **{"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True})
    assert chunked.error["message"] == missing
    endless = call(app, **{"wsgi.input": io.BytesIO(body)})  # nobody says where it ends
    assert endless.error["message"] == "invalid request format: the body is empty"
    cut = call(app, CONTENT_LENGTH="20", **{"wsgi.input": io.BytesIO(body)})
    assert cut.error["message"] == "the body ended before its Content-Length"
    for length in ("x", "-1", "1_0", "９", "9" * 30):
        assert call(app, CONTENT_LENGTH=length).status == 400
    long = {"wsgi.input": io.BytesIO(bytes(3000))}
    assert call(app, CONTENT_LENGTH="3000", **long).status == 413
    assert call(app, **long, **{"wsgi.input_terminated": True}).status == 413


def test_a_server_whose_input_breaks(app: Gateway) -> None:
    class Gone:
        def read(self, size: int) -> bytes:
            raise ConnectionResetError("gone")

    with log_lines() as lines:
        assert call(app, CONTENT_LENGTH="5", **{"wsgi.input": Gone()}).status == 499
        until(lambda: lines)
    assert lines[0]["status"] == 499


def test_a_server_that_refuses_the_head_of_a_stream_frees_the_generation(echo: EchoServer) -> None:
    gateway_ = Gateway(Settings(ProviderConfig(keys=[{"url": echo.url}])))
    body = json.dumps(chat("!slow 0.05 !count 1000", stream=True)).encode()

    def refuse(status: str, headers: Any) -> None:
        raise RuntimeError("no")

    try:
        with pytest.raises(RuntimeError):
            gateway_({"REQUEST_METHOD": "POST", "PATH_INFO": CHAT, "CONTENT_LENGTH": str(len(body)),
                      "wsgi.input": io.BytesIO(body)}, refuse)
        until(lambda: echo.running == 0)
    finally:
        gateway_.close()


def test_closing_a_stream_early_and_twice(echo: EchoServer) -> None:
    gateway_ = Gateway(Settings(ProviderConfig(keys=[{"url": echo.url}])))
    body = json.dumps(chat("!slow 0.05 !count 1000", stream=True)).encode()
    try:
        relay: Any = gateway_({"REQUEST_METHOD": "POST", "PATH_INFO": CHAT, "CONTENT_LENGTH": str(len(body)),
                               "wsgi.input": io.BytesIO(body)}, lambda status, headers: None)
        next(iter(relay))
        relay.close()
        relay.close()
        until(lambda: echo.running == 0)
        numbers = gateway_.journal.text().decode()
        assert 'operation="chat_completion",model="other",status="499"} 1\n' in numbers
    finally:
        gateway_.close()


def test_create_app_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BRIDGE_UPSTREAM", "http://a:1")
    monkeypatch.setenv("VLLM_BRIDGE_API_KEY", "sk-1")
    found = create_app()
    try:
        assert found.settings.provider.keys[0].url == "http://a:1"
        assert call(found).status == 401
    finally:
        found.close()
    monkeypatch.setenv("VLLM_BRIDGE_TIMEOUT", "never")
    with pytest.raises(ConfigError, match="^VLLM_BRIDGE_TIMEOUT: "):
        create_app()


def test_the_package_knows_only_its_names() -> None:
    import vllm_bridge.gateway

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        vllm_bridge.gateway.Nothing


def test_readiness_does_not_wait_long(app: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_READY_WITHIN", app_module._READY_WITHIN / 10)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = ProviderConfig(keys=[{"url": "http://127.0.0.1:%d" % silent.getsockname()[1]}])
        waiting = Gateway(Settings(config))
        try:
            started = time.monotonic()
            assert call(waiting, REQUEST_METHOD="GET", PATH_INFO="/ready").status == 503
            assert time.monotonic() - started < LONG
        finally:
            waiting.close()


def test_a_preflight_is_answered_whatever_the_path(echo: EchoServer) -> None:
    asked = {"Origin": "https://ui.example", "Access-Control-Request-Method": "POST"}
    with gateway(echo, api_keys=("sk-a",), allowed_origin=("https://ui.example",)) as address:
        for path in (CHAT, "/v1/nowhere", "//v1/chat/completions"):
            assert ask(address, "OPTIONS", path, headers=asked).status == 200
        assert ask(address, "OPTIONS", CHAT, headers={"Origin": "https://ui.example"}).status == 401
        refused = ask(address, "POST", "/v1/nowhere", {}, {"Origin": "https://ui.example"})
        assert refused.headers["access-control-allow-origin"] == "https://ui.example"


@pytest.mark.parametrize("body, status", [
    (b'{"model":"m","messages":[%s0]}' % (b"1," * 2000), 413), (b'{"model":"m",}', 400), (b"[]", 400),
])
def test_nothing_holds_a_body_that_was_refused(body: bytes, status: int) -> None:
    """One of 100 MB that waits for the garbage collector is 100 MB more that a server of 1 GB has to have."""
    class Sent:
        def read(self, limit: int) -> bytes:
            return body

    app = Gateway(Settings(ProviderConfig.from_dict({"keys": [{"url": "http://127.0.0.1:9"}]}), max_parsed_mb=0.001))
    gc.disable()
    try:
        before = sys.getrefcount(body)
        request = ServerRequest("POST", CHAT, "HTTP/1.1", {}, "127.0.0.1", cast(Any, Sent()))
        answer = app.answer(request)
        app.ended(request, answer, True)
        assert answer.status == status and sys.getrefcount(body) == before
    finally:
        gc.enable()
        app.close()


# ---------------------------------------------------------------- what is our own failure, and what is too much


@pytest.mark.parametrize("number, status", [
    (errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EMFILE, 500), (errno.ENOENT, 500), (errno.EIO, 500),
])
def test_a_lack_of_our_own_is_no_client_that_left(
    echo: EchoServer, number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    body = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\necho\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n')
    with log_lines() as lines, gateway(echo, log_format="json") as address:
        monkeypatch.setattr("tempfile.SpooledTemporaryFile", lacking)
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        found = ask(address, "POST", "/v1/audio/transcriptions", body, kind)
        assert (found.status, found.error["code"]) == (status, "internal_error")
    assert [line["status"] for line in lines] == [status]
    assert not echo.requests


def test_a_lack_of_descriptors_cools_no_server_off(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway(echo) as address:
        connection = http.client.HTTPConnection(*address, timeout=LONG)
        connection.request("GET", "/health")  # so that it has been accepted
        connection.getresponse().read()
        with monkeypatch.context() as patched:
            def none(*args: Any, **options: Any) -> Any:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            patched.setattr(socket, "socket", none)
            connection.request("POST", CHAT, json.dumps(chat("x")), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 500
            response.read()
        connection.close()
        text = ask(address, "GET", "/metrics").body.decode()
        assert "vllm_bridge_cooled_servers 1" not in text
        assert ask(address, "POST", CHAT, chat("x")).status == 200


def test_one_request_too_many_is_counted_logged_and_told_to_web_pages(echo: EchoServer) -> None:
    config = ProviderConfig.from_dict({"keys": [{"url": echo.url}]}, environ={})
    with log_lines() as lines, own(Gateway(Settings(config, log_format="json")), max_connections=1) as address:
        body = json.dumps(chat("!stall %g x" % LONG)).encode()
        with socket.create_connection(address) as sock:
            head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CHAT, len(body))
            sock.sendall(head.encode() + body)
            until(lambda: echo.running == 1)
            found = ask(address, "POST", CHAT, chat("x"), {"Origin": "http://localhost:3000"})
            assert (found.status, found.error["code"]) == (503, "too_many_connections")
            assert found.headers["retry-after"] == "1"
            assert found.headers["access-control-allow-origin"] == "http://localhost:3000"
            for path in ("/health", "/metrics", "/ready", "/version"):
                assert ask(address, "GET", path).status == 200
            text = ask(address, "GET", "/metrics").body.decode()
            assert 'vllm_bridge_requests_total{operation="chat_completion",model="",status="503"} 1\n' in text
        until(lambda: [line for line in lines if line["status"] == 499])
    refused = [line for line in lines if line["status"] == 503]
    assert [(line["path"], line["client"]) for line in refused] == [(CHAT, "127.0.0.1")]


def test_what_is_no_http_is_in_the_log(echo: EchoServer) -> None:
    with log_lines() as lines, gateway(echo, log_format="json") as address:
        with socket.create_connection(address, timeout=LONG) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")
        until(lambda: lines)
    assert (lines[0]["status"], lines[0]["client"]) == (400, "127.0.0.1")


def test_a_comment_is_a_sign_of_life_before_the_first_event() -> None:
    comments = [("sleep", 0.3), chunk(b": here\n\n")] * 6
    script = ["request", SSE_HEAD, *comments, event(delta("late", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(script) as server:
        with gateway(provider={"keys": [{"url": server.url}], "network_config": {
                "default_request_timeout_in_seconds": 1}}) as address:
            assert b"late" in ask(address, "POST", CHAT, chat("x", stream=True)).body
