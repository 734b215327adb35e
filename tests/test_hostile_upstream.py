"""What becomes of a call when the server is broken or hostile: a table of faults, met by a plain call and a stream.

In every row the call ends in the error or the answer named, soon; the connection is used again only where it may be;
and no descriptor and no thread is left (issue "Nothing lost, nothing leaked, nobody let in", item 1).
"""

import gzip
import json
import os
import threading
import time
import zlib

import pytest

import wire
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event, threads_settle
from vllm_bridge import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    IncompleteStreamError,
    InternalServerError,
    NetworkConfig,
    NotFoundError,
    ProviderConfig,
    RateLimitError,
    ResponseDecodeError,
    VLLMProvider,
)
from vllm_bridge.client import reply
from vllm_bridge.client.stream import Limits
from vllm_bridge.http1 import pool

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SILENCE = 0.1  # seconds that the provider waits for a byte where silence is the fault; else PATIENCE
PATIENCE = 20.0
SOON = 8.0  # seconds in which every row has to end; the rows themselves need less than one

GOOD = ["request", answer(completion("good")), "again"]
GOOD_STREAM = ["request", SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK, "again"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LONG = HEAD + b"Content-Length: 500\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HALF = json.dumps(completion()).encode()[:60]


def provider_for(server, patience=PATIENCE):
    network = NetworkConfig(
        server.url, connect_timeout_in_seconds=patience, default_request_timeout_in_seconds=patience, max_retries=0,
        stream_idle_timeout_in_seconds=patience)
    return VLLMProvider(config=ProviderConfig(network))


def plain(provider):
    return provider.chat_completion(**ASK).choices[0].message.content


def stream(provider):
    with provider.chat_completion_stream(**ASK) as chunks:
        return "".join(one.text for one in chunks)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def meet(operation, script, expected, good, reused, accept=True):
    """Run one row: the call itself, then a second one that must work. `reused` None: the connection may be, or not."""
    threads = threading.active_count()
    before = descriptors()
    with Scripted(["request"] + script, good, accept=accept) as server:
        silent = expected is APITimeoutError or type(expected) is tuple and APITimeoutError in expected
        with provider_for(server, SILENCE if silent else PATIENCE) as provider:
            start = time.monotonic()
            if isinstance(expected, str):
                assert operation(provider) == expected
            else:
                with pytest.raises(expected) as caught:
                    operation(provider)
                assert "\n" not in caught.value.message
                assert caught.value.url == server.url + "/v1/chat/completions"
                assert caught.value.request_id
            assert time.monotonic() - start < SOON
            if accept:
                assert operation(provider.with_options(timeout=PATIENCE, stream_idle_timeout=PATIENCE)) == "good"
                if reused is not None:
                    assert server.connections == (1 if reused else 2)
                assert len(server.requests) == 2, "a request was sent twice"
    assert threads_settle(threads)
    assert descriptors() <= before


# ---------------------------------------------------------------- it stops: where × how

PLACES = {
    "nothing": b"",
    "status line": b"HTTP/1.1 200 OK\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "headers, length": LONG,
    "headers, chunked": CHUNKED,
    "half a body, length": LONG + HALF,
    "half a body, chunked": CHUNKED + chunk(HALF),
    "half a chunk": CHUNKED + b"64\r\n" + HALF,
    "half a chunk size": CHUNKED + chunk(HALF) + b"6",
    "whole body, no last chunk": CHUNKED + chunk(json.dumps(completion()).encode()),
}
TEN = b"".join(event(delta(str(number))) for number in range(10))
STREAM_PLACES = {
    "nothing": b"",
    "status line": b"HTTP/1.1 200 OK\r\n",
    "headers": SSE_HEAD,
    "half an event line": SSE_HEAD + chunk(b'data: {"choices": [{"ind'),
    "half a UTF-8 character": SSE_HEAD + chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "\xe2\x82'),
    "a line, no blank line": SSE_HEAD + chunk(b'data: {"choices": []}\n'),
    "ten chunks": SSE_HEAD + TEN,
    "ten chunks and half a size": SSE_HEAD + TEN + b"1",
}


@pytest.mark.parametrize("end", ["hold", "close", "rst"])
@pytest.mark.parametrize("place", PLACES)
def test_a_plain_reply_stops(place, end):
    expected = APITimeoutError if end == "hold" else APIConnectionError
    meet(plain, [PLACES[place]] + ([] if end == "close" else [end]), expected, GOOD, reused=False)


@pytest.mark.parametrize("end", ["hold", "close", "rst"])
@pytest.mark.parametrize("place", STREAM_PLACES)
def test_a_stream_stops(place, end):
    headless = place in ("nothing", "status line")
    expected = APITimeoutError if end == "hold" else APIConnectionError if headless else IncompleteStreamError
    meet(stream, [STREAM_PLACES[place]] + ([] if end == "close" else [end]), expected, GOOD_STREAM, reused=False)


@pytest.mark.parametrize("end", ["close", "rst", "hold"])
def test_what_arrived_of_a_broken_stream_is_kept(end):
    with Scripted(["request", SSE_HEAD + TEN] + ([] if end == "close" else [end])) as server:
        with provider_for(server) as provider:
            chunks = provider.with_options(stream_idle_timeout=1.0).chat_completion_stream(**ASK)
            seen = []
            with pytest.raises((IncompleteStreamError, APITimeoutError)) as caught:
                for one in chunks:
                    seen.append(one.text)
            assert "".join(seen) == "0123456789"
            if end != "hold":
                assert caught.value.partial.choices[0].message.content == "0123456789"


@pytest.mark.parametrize("operation", [plain, stream])
def test_never_accepts(operation):
    meet(operation, [], APITimeoutError, GOOD, reused=False, accept=False)


# ---------------------------------------------------------------- it answers, but what

def deep(depth):
    return b'{"choices":' + b"[" * depth + b"]" * depth + b"}"


GZIP = "Content-Encoding: gzip\r\n"
PACKED = gzip.compress(json.dumps(completion("packed")).encode())
LONE = json.dumps(completion("@")).replace("@", "\\ud800").encode()

# A reply that cannot be read, or a connection that broke off: which of the two depends on who reads the chunks.
UNREADABLE = (ResponseDecodeError, APIConnectionError)

ANSWERS = [
    # name, reply, expected, may the connection be used again
    ("HTML with 200", answer(b"<html><body>hi</body></html>", content_type="text/html"), ResponseDecodeError, True),
    ("HTML with 404", answer(b"<html><title>No</title></html>", "404 Not Found", "text/html"), NotFoundError, True),
    ("HTML with 502", answer(b"<html><title>Bad</title></html>", "502 Bad Gateway", "text/html"),
     InternalServerError, True),
    ("204", b"HTTP/1.1 204 No Content\r\n\r\n", ResponseDecodeError, True),
    ("empty 200", answer(b""), ResponseDecodeError, True),
    ("empty 500", answer(b"", "500 Internal Server Error"), InternalServerError, True),
    ("a list", answer(b"[1, 2]"), ResponseDecodeError, True),
    ("a string", answer(b'"hello"'), ResponseDecodeError, True),
    ("null", answer(b"null"), ResponseDecodeError, True),
    ("half a JSON with the right length", answer(b'{"choices": [{"mess'), ResponseDecodeError, True),
    ("duplicate keys", answer(b'{"choices": [], ' + json.dumps(completion("last")).encode()[1:]), "last", True),
    ("NaN", answer(json.dumps(completion("nan")).encode()[:-1] + b', "score": NaN}'), "nan", True),
    ("lone surrogate", answer(LONE), "\ud800", True),
    ("10,000 levels", answer(deep(10000)), ResponseDecodeError, True),
    ("no UTF-8", answer(b'{"choices": "\xff\xfe"}'), ResponseDecodeError, True),
    ("gzip", answer(PACKED, extra=GZIP), "packed", None),
    ("deflate", answer(zlib.compress(json.dumps(completion("flat")).encode()), extra="Content-Encoding: deflate\r\n"),
     "flat", None),
    ("broken gzip", answer(PACKED[:12] + b"\xff" * 20, extra=GZIP), ResponseDecodeError, None),
    ("no gzip at all", answer(b"{}", extra=GZIP), ResponseDecodeError, None),
    ("bad chunk size", CHUNKED + b"zz\r\n{}\r\n" + LAST_CHUNK, UNREADABLE, False),
    # http.client of Python 3.8 takes it for a size, and waits for more.
    ("negative chunk size", CHUNKED + b"-5\r\n{}\r\n" + LAST_CHUNK, UNREADABLE + (APITimeoutError,), False),
    ("no HTTP", b"\x15\x03\x01\x00\x02\x02\x0a\r\n\r\n", ResponseDecodeError, False),
    ("a header of 100 kB", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100000 + b"\r\n\r\n{}", ResponseDecodeError, False),
    ("500 headers", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}", ResponseDecodeError, False),
    ("error in a 200", answer({"error": {"message": "no", "type": "BadRequestError", "code": 400}}),
     BadRequestError, True),
    ("error in a 200, a string", answer({"error": "Unauthorized"}), InternalServerError, True),
    ("error in a 200, flat", answer({"object": "error", "message": "slow down", "code": 429}), RateLimitError, True),
    ("error in a 200, detail", answer({"detail": "Not Found"}), InternalServerError, True),
    ("error in a 200, long", answer({"error": {"message": "x" * 100000, "code": 404}}), NotFoundError, True),
]


@pytest.mark.parametrize("name, reply_bytes, expected, reused", ANSWERS, ids=[row[0] for row in ANSWERS])
def test_a_plain_answer(name, reply_bytes, expected, reused):
    meet(plain, [reply_bytes] + (["hold"] if reused is False else GOOD), expected, GOOD, reused)


NOT_FOR_STREAMS = ("gzip", "deflate", "duplicate keys", "NaN", "lone surrogate")


@pytest.mark.parametrize("name, reply_bytes, expected, reused", ANSWERS, ids=[row[0] for row in ANSWERS])
def test_an_answer_that_is_no_stream(name, reply_bytes, expected, reused):
    """A streaming request answered in one piece: the error in it, or that it is no event stream."""
    if name in NOT_FOR_STREAMS:
        expected = ResponseDecodeError
    meet(stream, [reply_bytes] + (["hold"] if reused is False else GOOD_STREAM), expected, GOOD_STREAM, reused)


ERROR = event(json.dumps({"error": {"message": "dead", "type": "InternalServerError", "param": None, "code": 500}}))
DONE = event("[DONE]")
FINISH = event(delta("", "stop"))

STREAMS = [
    ("[DONE] twice", [TEN, FINISH, DONE, DONE, LAST_CHUNK], "0123456789", None),
    ("text after [DONE]", [TEN, FINISH, DONE, event(delta("more")), LAST_CHUNK], "0123456789", None),
    ("no [DONE]", [TEN, FINISH, LAST_CHUNK], "0123456789", True),
    ("[DONE] without a finish reason", [TEN, DONE, LAST_CHUNK], "0123456789", True),
    ("only [DONE]", [DONE, LAST_CHUNK], "", True),
    ("[DONE], and the connection stays open", [TEN, DONE, "hold"], "0123456789", False),
    ("finish, then silence", [TEN, FINISH, "hold"], "0123456789", False),
    ("finish, then comments for ever", [TEN, FINISH, ("repeat", chunk(b": ping\n\n"), 0.05)], "0123456789", False),
    ("finish, then a reset", [TEN, FINISH, "rst"], "0123456789", False),
    ("neither finish nor [DONE]", [TEN, LAST_CHUNK], IncompleteStreamError, None),
    ("nothing at all", [LAST_CHUNK], IncompleteStreamError, None),
    ("an error first", [ERROR, DONE, LAST_CHUNK], InternalServerError, None),
    ("an error after ten chunks", [TEN, ERROR, DONE, LAST_CHUNK], InternalServerError, None),
    ("abort", [TEN, event(delta("", "abort")), DONE, LAST_CHUNK], IncompleteStreamError, None),
    ("no JSON", [TEN, chunk(b"data: {oops\n\n"), LAST_CHUNK], ResponseDecodeError, None),
    ("JSON that is a list", [chunk(b"data: [1]\n\n"), LAST_CHUNK], ResponseDecodeError, None),
    ("10,000 levels", [chunk(b"data: " + deep(10000) + b"\n\n"), LAST_CHUNK], ResponseDecodeError, None),
    ("comments for ever after ten chunks", [TEN, ("repeat", chunk(b": ping\n\n"), 0.02)], APITimeoutError, False),
    ("an event dripping for ever", [("repeat", chunk(b"x"), 0.02)], APITimeoutError, False),
    ("a line of 100 MB", [("repeat", chunk(b"x" * 1000000))], ResponseDecodeError, False),
    ("empty data lines for ever", [("repeat", chunk(b"data:\n" * 100000))],
     (ResponseDecodeError, APITimeoutError), False),  # the limit of an event, or the time for one, is reached first
    ("a bad chunk size", [TEN, b"oops\r\n"], (IncompleteStreamError, ResponseDecodeError), False),
]


@pytest.mark.parametrize("name, steps, expected, reused", STREAMS, ids=[row[0] for row in STREAMS])
def test_a_stream(name, steps, expected, reused, monkeypatch):
    monkeypatch.setattr(Limits.__init__, "__defaults__", (None, SILENCE))  # the patience after a finish reason
    then = ["hold"] if reused is False else GOOD_STREAM
    meet(stream, [SSE_HEAD] + steps + then, expected, GOOD_STREAM, reused)


def test_comments_for_ever_before_the_first_event_end_with_the_deadline():
    with Scripted(["request", SSE_HEAD, ("repeat", chunk(b": ping\n\n"), 0.02)]) as server:
        with provider_for(server) as provider:
            with pytest.raises(APITimeoutError, match="total time"):
                stream(provider.with_options(deadline=3 * SILENCE))


def test_a_stream_that_drips_is_read_to_its_end():
    whole = SSE_HEAD + event(delta("slow")) + event(delta("ly", "stop")) + DONE + LAST_CHUNK
    meet(stream, [("drip", whole, 0)], "slowly", GOOD_STREAM, reused=False)


def test_a_plain_reply_that_drips_is_read_to_its_end():
    meet(plain, [("drip", answer(completion("slowly")), 0)], "slowly", GOOD, reused=False)


def test_a_compressed_stream_is_read():
    packed = gzip.compress(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(delta("packed", "stop")).encode())
    head = SSE_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    meet(stream, [head, chunk(packed[:30]), chunk(packed[30:]), LAST_CHUNK] + GOOD_STREAM, "packed", GOOD_STREAM, None)


def test_a_stream_with_a_length_is_read_and_one_that_is_shorter_is_incomplete():
    body = b"data: %s\n\n" % json.dumps(delta("short", "stop")).encode() + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
    meet(stream, [head % len(body) + body] + GOOD_STREAM, "short", GOOD_STREAM, reused=True)
    first = b"data: %s\n\n" % json.dumps(delta("short")).encode()
    meet(stream, [head % (len(first) + 1) + first], IncompleteStreamError, GOOD_STREAM, reused=False)


def test_a_stream_that_ends_with_the_connection_is_read():
    body = b"data: %s\n\n" % json.dumps(delta("old", "stop")).encode()
    meet(stream, [b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body], "old", GOOD_STREAM, False)


# ---------------------------------------------------------------- too much

BOMB = gzip.compress(b" " * 30000000, 1)  # 130 kB


@pytest.mark.parametrize("operation, good", [(plain, GOOD), (stream, GOOD_STREAM)])
def test_a_gzip_bomb_is_not_unpacked_to_its_end(monkeypatch, operation, good):
    monkeypatch.setattr(reply, "MAX_BODY", 1000000)
    meet(operation, [answer(BOMB, extra=GZIP), "hold"], ResponseDecodeError, good, reused=False)


def test_a_body_without_end_is_not_kept(monkeypatch):
    monkeypatch.setattr(reply, "MAX_BODY", 1000000)
    meet(plain, [CHUNKED, ("repeat", chunk(b" " * 100000))], ResponseDecodeError, GOOD, reused=False)


@pytest.mark.parametrize("operation, good", [(plain, GOOD), (stream, GOOD_STREAM)])
def test_of_an_errors_body_without_end_only_the_beginning_is_read(operation, good):
    head = b"HTTP/1.1 503 Busy\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    meet(operation, [head, ("repeat", chunk(b"busy " * 20000))], InternalServerError, good, reused=False)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("operation, good", [(plain, GOOD), (stream, GOOD_STREAM)])
def test_a_redirect_is_not_followed_nor_its_endless_body_read(operation, good, status):
    head = b"HTTP/1.1 %d Moved\r\nLocation: http://127.0.0.1:1/else\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    threads = threading.active_count()
    with Scripted(["request", head, ("repeat", chunk(b" " * 100000))], good) as server:
        with provider_for(server) as provider:
            with pytest.raises(APIStatusError) as caught:
                operation(provider)
            assert caught.value.status_code == status
            assert "http://127.0.0.1:1/else" in caught.value.message
            assert operation(provider) == "good"
            assert [request.line for request in server.requests] == ["POST /v1/chat/completions HTTP/1.1"] * 2
    assert threads_settle(threads)


# ---------------------------------------------------------------- a pooled connection that is gone

@pytest.mark.parametrize("operation, good", [(plain, GOOD), (stream, GOOD_STREAM)])
@pytest.mark.parametrize("end", [["rst"], [], ["half", "hold"]], ids=["rst", "close", "half"])
def test_a_pooled_connection_closed_between_requests_is_not_used(operation, good, end):
    with Scripted(good[:-1] + end, good) as server, provider_for(server) as provider:
        assert operation(provider) == "good"
        time.sleep(0.1)
        assert operation(provider) == "good"
        assert len(server.requests) == 2
        assert server.connections == 2


@pytest.mark.parametrize("operation, good", [(plain, GOOD), (stream, GOOD_STREAM)])
@pytest.mark.parametrize("end", [[("rst", 0.0)], []], ids=["rst", "close"])
def test_a_pooled_connection_closed_at_the_moment_of_reuse_is_replaced_once(operation, good, end, monkeypatch):
    """The server closes with the request unread, as uvicorn does when its 5 s end in that moment."""
    monkeypatch.setattr(pool, "_SOON", 1.0)  # machines are busy at times
    with Scripted(good[:-1] + ["wait"] + end, good) as server, provider_for(server) as provider:
        assert operation(provider) == "good"
        assert operation(provider) == "good"
        assert len(server.requests) == 2, "the application got one request for each call"
        assert server.connections == 2


def test_a_fresh_connection_that_hangs_up_is_not_replaced():
    with Scripted(["wait"], GOOD) as server, provider_for(server) as provider:
        with pytest.raises(APIConnectionError):
            plain(provider)
        assert server.connections == 1


def test_a_second_stale_connection_in_a_row_is_an_error(monkeypatch):
    monkeypatch.setattr(pool, "_SOON", 1.0)
    with Scripted(GOOD[:-1] + ["wait"], ["wait"]) as server, provider_for(server) as provider:
        assert plain(provider) == "good"
        with pytest.raises(APIConnectionError):
            plain(provider)
        assert server.connections == 2


# ---------------------------------------------------------------- what real servers sent

@pytest.mark.parametrize("name", [name for name in wire.names("kill_") if wire.load(name).streams])
def test_a_server_that_died_under_a_stream(name):
    recorded = wire.load(name)
    body = b"".join(chunk(frame) for frame in recorded.frames if frame)
    clean = b"[DONE]" in recorded.body
    with Scripted(["request", SSE_HEAD + body + (LAST_CHUNK if clean else b"")]) as server:
        with provider_for(server) as provider:
            if "error" in recorded.body.decode() or "abort" in recorded.body.decode() or not clean:
                with pytest.raises((APIStatusError, IncompleteStreamError)):
                    stream(provider)
            else:
                assert stream(provider)
