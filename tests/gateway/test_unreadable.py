"""What clients are told where a server's reply cannot be read, or tells of the server's inside."""

import gzip
import json
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from faces import Address, Answer, ask, chat, log_lines, own
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

MARK = "q7-inner-words"  # of the server; no client may see it
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = JSON + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = json.dumps(completion(MARK)).encode()
FORM = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n%b'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n')
STREAMED = b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
RESPONSES = "/v1/responses"

ROUTES: Dict[str, Tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", chat("x")),
    "chat, stream": ("/v1/chat/completions", chat("x", stream=True)),
    "text": ("/v1/completions", {"model": "m", "prompt": "x"}),
    "text, stream": ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": "x"}),
    "rerank": ("/v1/rerank", {"model": "m", "query": "x", "documents": ["y"]}),
    "transcription": ("/v1/audio/transcriptions", FORM % b""),
    "transcription, stream": ("/v1/audio/transcriptions", FORM % STREAMED),
    "responses": (RESPONSES, {"model": "m", "input": "x"}),
    "responses, stream": (RESPONSES, {"model": "m", "input": "x", "stream": True}),
    "native responses": (RESPONSES, {"model": "m", "input": "x"}),
    "native responses, stream": (RESPONSES, {"model": "m", "input": "x", "stream": True}),
    "translation": ("/v1/audio/translations", FORM % b""),
    "translation, stream": ("/v1/audio/translations", FORM % STREAMED),
    "messages": ("/v1/messages", dict(chat("x"), max_tokens=9)),
    "messages, stream": ("/v1/messages", dict(chat("x", stream=True), max_tokens=9)),
    "count_tokens": ("/v1/messages/count_tokens", chat("x")),
    "batch": ("/v1/chat/completions/batch", {"model": "m", "messages": [[{"role": "user", "content": "x"}]]}),
    "tokenize": ("/tokenize", {"model": "m", "prompt": "x"}),
    "detokenize": ("/detokenize", {"model": "m", "tokens": [1]}),
    "tokenizer_info": ("/tokenizer_info?model=m", None),
    "score": ("/v1/score", {"model": "m", "text_1": "x", "text_2": "y"}),
    "classify": ("/classify", {"model": "m", "input": "x"}),
    "pooling": ("/pooling", {"model": "m", "input": "x"}),
    "embed": ("/v2/embed", {"model": "m", "texts": ["x"], "input_type": "search_query", "embedding_types": ["float"]}),
    "decision": ("/v1/decisions", {"model": "m", "input": "x"}),
    "images": ("/v1/images/generations", {"model": "m", "prompt": "x"}),
    "models": ("/v1/models", None),
    "one model": ("/v1/models/m", None),
}
STREAMS = [name for name in ROUTES if name.endswith("stream")]

# What no HTTP client can read, and what is no answer of the API.
REPLIES: Dict[str, List[Any]] = {
    "no HTTP": [b"\x16\x03\x01 " + MARK.encode() + b"\r\n\r\n"],
    "an empty body": [answer(b"")],
    "no body": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "a text": [answer(MARK.encode())],
    "a text that looks like JSON": [answer(b"{%s}" % MARK.encode())],
    "half a JSON": [answer(GOOD[:-30])],
    "a cut JSON with its brace": [answer(GOOD[:-30] + b"}")],
    "more than one JSON": [answer(GOOD + GOOD)],
    "a list": [answer([MARK])],
    "a number": [answer(7)],
    "null": [answer(b"null")],
    "no UTF-8": [answer(b'{"choices": [{"message": "\xff%s"}]}' % MARK.encode())],
    "10,000 levels": [answer(b'{"choices":' + b"[" * 10000 + b"]" * 10000 + b"}")],
    "HTML": [answer(b"<html><title>%s</title></html>" % MARK.encode(), content_type="text/html")],
    "HTML called JSON": [answer(b"<!doctype html><title>%s</title>" % MARK.encode())],
    "two lengths": [JSON + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n" + GOOD],
    "a length that is no number": [JSON + b"Content-Length: 1 " + MARK.encode() + b"\r\n\r\n"],
    "a negative length": [JSON + b"Content-Length: -1\r\n\r\n" + GOOD],
    "a length and chunks": [JSON + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + GOOD],
    "another transfer coding": [JSON + b"Transfer-Encoding: gzip\r\n\r\n" + GOOD],
    "a bad chunk": [CHUNKED + b"%s\r\n{}\r\n" % MARK.encode()],
    "a bad second chunk": [CHUNKED + chunk(GOOD[:20]) + b"-5\r\n" + GOOD],
    "a chunk that is too long": [CHUNKED + b"3\r\n" + GOOD],
    "an endless chunk size": [CHUNKED, ("repeat", b"0" * 1000)],
    "an endless header": [b"HTTP/1.1 200 OK\r\nX: ", ("repeat", MARK.encode() * 100)],
    "headers without end": [b"HTTP/1.1 200 OK\r\n", ("repeat", b"X-%s: y\r\n" % MARK.encode())],
    "interim replies without end": [("repeat", b"HTTP/1.1 103 %s\r\n\r\n" % MARK.encode())],
    "a header without a colon": [b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % MARK.encode()],
    "another protocol": [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\n\r\n" % MARK.encode()],
    "status 999": [answer(MARK.encode(), "999 %s" % MARK)],
    "status 600": [answer({"error": {"message": MARK, "code": 600}}, "600 No")],
    "status 0": [answer(GOOD, "000 No")],
    "status 99": [answer(GOOD, "99 No")],
    "no gzip": [answer(GOOD, extra="Content-Encoding: gzip\r\n")],
    "half a gzip": [answer(gzip.compress(GOOD)[:-9], extra="Content-Encoding: gzip\r\n")],
    "an unknown coding": [answer(GOOD, extra="Content-Encoding: %s\r\n" % MARK)],
    "a cut body": [JSON + b"Content-Length: 1000\r\n\r\n" + GOOD],
    "a cut chunk": [CHUNKED + b"fff\r\n" + GOOD],
    "no last chunk": [CHUNKED + chunk(GOOD[:-20])],
    "nothing": [],
    "an event that is none": [SSE_HEAD, chunk(b"data: %s\n\n" % MARK.encode()), LAST_CHUNK],
    "an event of another kind": [SSE_HEAD, event([MARK]), LAST_CHUNK],
    "half an event": [SSE_HEAD, chunk(b"data: {" + MARK.encode())],
    "no event": [SSE_HEAD, LAST_CHUNK],
    "events without end marks": [SSE_HEAD, chunk(MARK.encode() * 100), LAST_CHUNK],
    "a bad chunk before the first event": [SSE_HEAD + MARK.encode() + b"\r\n"],
}


@contextmanager
def gateway(*servers: Scripted, native: bool = False) -> Iterator[Address]:
    config = {"keys": [{"url": server.url, "id": "key-%d" % number} for number, server in enumerate(servers)],
              "network_config": {"max_retries": 0}, "native_responses": native}
    with own(Gateway(Settings(ProviderConfig.from_dict(config, environ={}), log_format="json"))) as address:
        yield address


def asked(address: Address, route: str) -> Answer:
    path, body = ROUTES[route]
    return ask(address, "GET" if body is None else "POST", path, body, MULTIPART if type(body) is bytes else None)


# What an error has where people use OpenAI's clients, and Anthropic's.
OPENAI, ANTHROPIC = {"message", "type", "param", "code"}, {"message", "type"}


def shape(route: str) -> Set[str]:
    return ANTHROPIC if "/messages" in ROUTES[route][0] else OPENAI


def assert_502(found: Answer, route: str, log: str) -> None:
    assert found.status == 502, (route, found.body)
    assert set(found.error) == shape(route) and isinstance(found.error["message"], str)
    assert found.json.get("type") == ("error" if shape(route) is ANTHROPIC else None)
    assert MARK not in found.body.decode() + str(found.headers) and "127.0.0.1" not in found.body.decode()
    assert found.headers["content-type"] == "application/json" and found.headers["x-request-id"] in log


@pytest.mark.parametrize("reply", REPLIES)
def test_what_cannot_be_read_is_a_502_without_the_servers_bytes(reply: str, caplog: pytest.LogCaptureFixture) -> None:
    with Scripted(["request"] + REPLIES[reply]) as server:
        for native in (False, True):
            with gateway(server, native=native) as address:
                for route in ROUTES:
                    if route.startswith("native") is native:
                        assert_502(asked(address, route), route, caplog.text)


# ---------------------------------------------------------------- after the first event

MADE = {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "object": "response", "output": []}}
FIRST: Dict[str, Any] = {
    "chat, stream": delta("a"),
    "text, stream": {"choices": [{"index": 0, "text": "a", "finish_reason": None}]},
    "transcription, stream": {"object": "transcription.chunk", "choices": [{"delta": {"content": "a"}}]},
    "responses, stream": delta("a"),
    "native responses, stream": MADE,
    "translation, stream": {"object": "translation.chunk", "choices": [{"delta": {"content": "a"}}]},
    "messages, stream": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
}
LATER: Dict[str, List[Any]] = {
    "a text": [chunk(b"data: %s\n\n" % MARK.encode()), LAST_CHUNK],
    "half a JSON": [event('{"choices":[{"%s' % MARK), LAST_CHUNK],
    "a list": [event([MARK]), LAST_CHUNK],
    "a bad chunk": [b"%s\r\n" % MARK.encode()],
    "half an event": [chunk(b"data: " + MARK.encode())],
    "no end": [LAST_CHUNK],
    "a reset": ["rst"],
}


def last_error(found: Answer) -> Tuple[Dict[str, Any], str]:
    """The error of a stream's last event, and all other events."""
    assert found.status == 200 and found.body.endswith(b"\n\n")
    *before, last = found.body.decode().split("\n\n")[:-1]
    payload = json.loads(last.partition("data: ")[2])
    return payload.get("response", payload)["error"], "".join(before)


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("route", STREAMS)
def test_what_cannot_be_read_in_a_stream_is_an_error_event(
    route: str, later: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Scripted(["request", SSE_HEAD, event(FIRST[route])] + LATER[later]) as server, log_lines() as lines:
        with gateway(server, native=route.startswith("native")) as address:
            found = asked(address, route)
    error, before = last_error(found)
    assert error["message"] and shape(route) <= set(error) and "[DONE]" not in before
    assert MARK not in found.body.decode() and "127.0.0.1" not in found.body.decode()
    assert lines[0]["status"] == 502 and lines[0]["request_id"] in caplog.text


def test_of_several_servers_lists_the_unreadable_one_is_told_of_without_its_bytes(
    caplog: pytest.LogCaptureFixture
) -> None:
    good = {"object": "list", "data": [{"id": "m", "object": "model"}]}
    with Scripted(["request", answer(good), "again"]) as one, Scripted(["request", answer(MARK.encode())]) as other:
        with gateway(one, other) as address:
            found = asked(address, "models")
    assert found.status == 200 and MARK not in found.body.decode()
    assert [status["status"] for status in found.json["key_statuses"]] == ["success", "list_models_failed"]
    assert MARK in caplog.text


# ---------------------------------------------------------------- a server's stack

PYTHON = '''Traceback (most recent call last):
  File "/opt/%s/engine.py", line 12, in step
    self.run()
ValueError: %s''' % (MARK, MARK)
STACKS = {
    "Python": PYTHON,
    "Python after a message": "Internal error: " + PYTHON,
    "the end of Python's": PYTHON.partition("\n")[2],
    "an exception group": "  + Exception Group Traceback (most recent call last):\n  | %s" % MARK,
    "PyTorch's": "CUDA error at %s\nException raised from %s (most recent call first):\nframe #0: %s" % ((MARK,) * 3),
    "Rust's": "thread panicked\nstack backtrace:\n   0: %s" % MARK,
    "JavaScript's": "TypeError: %s\n    at run (/srv/%s.js:10:5)" % (MARK, MARK),
}


def failures(stack: str) -> Dict[str, bytes]:
    """The ways in which a server tells of it."""
    inner = {"message": stack, "type": "InternalServerError", "param": None, "code": 500}
    return {
        "vLLM's error": answer({"error": inner}, "500 Internal Server Error"),
        "an error within 200": answer({"error": inner}),
        "FastAPI's": answer({"detail": stack}, "500 Internal Server Error"),
        "another object": answer({"stack": stack.split("\n")}, "500 Internal Server Error"),
        "a text": answer(stack.encode(), "500 Internal Server Error", "text/plain"),
        "a status that passes": answer({"error": dict(inner, code=503)}, "503 Service Unavailable"),
        "the client's fault": answer({"error": dict(inner, code=400)}, "400 Bad Request"),
    }


@pytest.mark.parametrize("stack", STACKS)
def test_a_servers_stack_is_in_the_log_alone(stack: str, caplog: pytest.LogCaptureFixture) -> None:
    for way, reply in failures(STACKS[stack]).items():
        with Scripted(["request", reply]) as server:
            for native in (False, True):
                with gateway(server, native=native) as address:
                    for route in ROUTES:
                        if route.startswith("native") is not native:
                            continue
                        caplog.clear()
                        found = asked(address, route)
                        assert found.status == {"a status that passes": 503, "the client's fault": 400}.get(way, 500)
                        assert found.error["message"] and MARK not in found.body.decode()
                        assert MARK in caplog.text and found.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize("route", STREAMS)
def test_a_servers_stack_in_a_stream_is_in_the_log_alone(route: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = {"message": PYTHON, "type": "InternalServerError", "param": None, "code": 500}
    last: Dict[str, Any] = {"error": inner}
    if route.startswith("native"):
        last = {"type": "response.failed", "response": dict(MADE["response"], status="failed", error=inner)}
    with Scripted(["request", SSE_HEAD, event(FIRST[route]), event(last), LAST_CHUNK]) as server:
        with gateway(server, native=route.startswith("native")) as address:
            found = asked(address, route)
    assert last_error(found)[0]["message"] and MARK not in found.body.decode()
    assert MARK in caplog.text


def test_a_failed_response_tells_no_stack_either(caplog: pytest.LogCaptureFixture) -> None:
    failed = {"object": "response", "status": "failed", "output": [],
              "error": {"code": "server_error", "message": PYTHON}}
    with Scripted(["request", answer(failed)]) as server, gateway(server, native=True) as address:
        found = asked(address, "native responses")
    assert found.status == 200 and found.json["error"]["message"] and MARK not in found.body.decode()
    assert MARK in caplog.text


def test_a_model_may_speak_of_stacks() -> None:
    with Scripted(["request", answer(completion(PYTHON))]) as server, gateway(server) as address:
        assert asked(address, "chat").json["choices"][0]["message"]["content"] == PYTHON
