"""Any request: keys, retries, errors and routing as all operations have them; speech and images elsewhere."""

import contextlib
import json

import pytest
from faces import own
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, nobody

from vllm_bridge import (
    APIConnectionError,
    APIStatusError,
    BadRequestError,
    IncompleteStreamError,
    NotFoundError,
    Record,
    UnsupportedOperationError,
    VLLMProvider,
)
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings


@contextlib.contextmanager
def gateway(server):
    config = ProviderConfig.from_dict({"keys": [{"url": server.url}]}, environ={})
    with own(Gateway(Settings(config))) as address:
        yield address


MISSING = answer({"detail": "Not Found"}, "404 Not Found")


def provider(*servers, **config):
    keys = [{"url": server.url, "value": "sk-%d" % place} for place, server in enumerate(servers)]
    return VLLMProvider(config=dict({"keys": keys, "network_config": {"retry_backoff_initial_ms": 1}}, **config))


@pytest.mark.parametrize("reply, expected", [
    (answer({"a": {"b": 1}}), {"a": {"b": 1}}), (answer([1, 2]), [1, 2]),
    (answer(b"ok", content_type="text/plain; charset=utf-8"), "ok"),
    (answer(b"\x00\xff", content_type="application/octet-stream"), b"\x00\xff"),
    (answer(b'{"a": 1}', content_type="application/problem+json"), {"a": 1}),
    (b"HTTP/1.1 204 No Content\r\n\r\n", None), (answer(b"", content_type="application/json"), None),
])
def test_what_comes_back(reply, expected):
    with Scripted(["request", reply]) as server, provider(server) as vllm:
        found = vllm.request("post", "/any/path", json={"model": "m", "x": None, "extra_body": {"y": 1}})
        assert found == expected and type(found) is (Record if isinstance(expected, dict) else type(expected))
        if isinstance(expected, dict) and "b" in str(expected):
            assert found.a.b == 1
        sent = server.requests[0]
        assert sent.line == "POST /any/path HTTP/1.1" and sent.headers["authorization"] == "Bearer sk-0"
        assert sent.json == {"model": "m", "x": None, "extra_body": {"y": 1}}  # as it is


def test_settings_and_methods():
    with Scripted(["request", answer({}), "again"]) as server, provider(server) as vllm:
        vllm.request("GET", "/load", extra_query={"a": "b c"}, extra_headers={"X-Team": "t"}, timeout=5)
        vllm.request("DELETE", "/x/1")
        first, second = server.requests
        assert first.line == "GET /load?a=b+c HTTP/1.1" and first.headers["x-team"] == "t" and first.body == b""
        assert "content-type" not in first.headers and second.line == "DELETE /x/1 HTTP/1.1"


def test_errors_retries_and_routing():
    busy = answer({"error": {"message": "busy", "type": "x", "code": 503}}, "503 Service Unavailable")
    with Scripted(["request", busy, "again"]) as one, Scripted(["request", answer({"ok": 1}), "again"]) as two:
        keys = [{"url": one.url, "models": ["a"]}, {"url": two.url, "models": ["b"]}]
        config = {"keys": keys, "network_config": {"retry_backoff_initial_ms": 1, "max_retries": 1}}
        with VLLMProvider(config=config) as vllm:
            with pytest.raises(APIStatusError, match="busy") as caught:
                vllm.request("POST", "/x", json={"model": "a"})
            assert caught.value.status_code == 503 and len(one.requests) == 2
            assert vllm.request("GET", "/x", model="b").ok == 1
            assert vllm.request("POST", "/x", json={"model": "b"}).ok == 1
            with pytest.raises(BadRequestError, match="no keys found that support model: c"):
                vllm.request("POST", "/x", json={"model": "c"})
    with VLLMProvider(nobody(), max_retries=0) as vllm, pytest.raises(APIConnectionError):
        vllm.request("GET", "/x")


@pytest.mark.parametrize("arguments, fields, words", [
    (("GET", "x"), {}, "begins with a slash"), (("GET", "http://other/x"), {}, "begins with a slash"),
    (("GET", "//other/x"), {}, "begins with a slash"), (("GET", "/x?a=b"), {}, "extra_query"),
    (("GET", "/a b"), {}, "path"), (("GET", "/a\r\nHost: x"), {}, "path"), (("GET", None), {}, "path"),
    (("GE T", "/x"), {}, "method"), ((None, "/x"), {}, "method"),
    (("POST", "/x"), {"json": [1]}, "json: expected an object"),
    (("POST", "/x"), {"json": {"a": {1}}}, "a has no JSON form"), (("POST", "/x"), {"temperature": 1}, "go into json"),
    (("POST", "/x"), {"max_retries": 1}, "with_options"),
])
def test_what_cannot_be_sent(arguments, fields, words):
    with VLLMProvider(nobody()) as vllm:
        for call in (vllm.request, vllm.stream_request):
            with pytest.raises(BadRequestError, match=words):
                call(*arguments, **fields)


def test_a_stream_of_anything():
    frames = [b'data: {"a": 1}\n\n', b": comment\n\n", b"event: x\ndata: plain\n\n", b"data: [1]\n\n"]
    whole = ["request", SSE_HEAD, *map(chunk, frames), LAST_CHUNK]
    done = ["request", SSE_HEAD, *map(chunk, frames[:1]), chunk(b"data: [DONE]\n\n"), LAST_CHUNK]
    broken = ["request", SSE_HEAD, *map(chunk, frames[:1]), ("rst", 0.1)]
    failed = ["request", SSE_HEAD, *map(chunk, frames[:1]),
              chunk(b'data: {"error": {"message": "so", "code": 400}}\n\n'), LAST_CHUNK]
    with Scripted(whole, done, broken, failed) as server, provider(server) as vllm:
        with vllm.stream_request("POST", "/x", json={"model": "m"}) as stream:
            items = list(stream)
        assert items == [{"a": 1}, "plain", [1]] and items[0].a == 1
        assert server.requests[0].json == {"model": "m", "stream": True}
        assert list(vllm.stream_request("GET", "/v1/responses/r", extra_query={"stream": "true"})) == [{"a": 1}]
        assert server.requests[1].line == "GET /v1/responses/r?stream=true HTTP/1.1"
        with pytest.raises(IncompleteStreamError):
            list(vllm.stream_request("POST", "/x"))
        with pytest.raises(BadRequestError, match="so"):
            list(vllm.stream_request("POST", "/x", json={"stream": True}))


def test_speech_and_images_where_a_server_has_them():
    sound = answer(b"RIFF", content_type="audio/wav")
    images = answer({"data": [{"b64_json": "aa"}]})
    with Scripted(["request", sound, "request", images, "request", MISSING, "again"]) as server:
        with VLLMProvider(server.url) as vllm:
            assert vllm.speech(model="m", input="Hi", voice="alloy", extra_body={"speed": 2}) == b"RIFF"
            assert vllm.image_generation(model="m", prompt="a cat").data[0].b64_json == "aa"
            assert [json.loads(request.body) for request in server.requests] == [
                {"model": "m", "input": "Hi", "voice": "alloy", "speed": 2}, {"model": "m", "prompt": "a cat"}]
            with pytest.raises(UnsupportedOperationError, match="^speech is not supported by vllm provider$"):
                vllm.speech(model="m", input="Hi")
            assert len(server.requests) == 3
            with EchoServer() as echo, gateway(echo) as address, VLLMProvider("http://%s:%d" % address) as front:
                with pytest.raises(UnsupportedOperationError):
                    front.speech(model="echo", input="Hi")
            with pytest.raises(UnsupportedOperationError):
                vllm.speech()
            with pytest.raises(UnsupportedOperationError):
                vllm.image_generation("anything", model="m")
            assert len(server.requests) == 3


def test_a_missing_route_of_a_request_is_the_servers_own_word():
    with Scripted(["request", MISSING]) as server, VLLMProvider(server.url) as vllm:
        with pytest.raises(NotFoundError, match="Not Found"):
            vllm.request("GET", "/nowhere")
