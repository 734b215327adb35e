"""A reply read from the wire: blocks, whole bodies, ends, and the handle that breaks calls off."""

import contextlib
import gzip
import threading
import time

import pytest
import requests

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk
from vllm_bridge import (
    APIConnectionError,
    APITimeoutError,
    Cancellation,
    InternalServerError,
    NetworkConfig,
    NotFoundError,
    RequestCancelledError,
    ResponseDecodeError,
)
from vllm_bridge.http1.connection import Exchange
from vllm_bridge.config.settings import ProxyConfig
from vllm_bridge.client import reply
from vllm_bridge.client.reply import Call, Reply
from vllm_bridge.client.session import Transport

SECRET = "sk-secret-0123456789"


class BySession(Transport):
    """A transport whose calls go by a caller's own session."""

    def open(self, call):
        with requests.Session() as call.session:  # what is open stays so
            return super().open(call)


@pytest.fixture(params=[Transport, BySession])
def transport(request):
    made = request.param(NetworkConfig(), ProxyConfig("none"))
    yield made
    made.close()


def call_to(server, timeout=(5, 20), **settings):
    headers = {"X-Request-Id": "r1", "Authorization": "Bearer " + SECRET}
    return Call("POST", server.url + "/x", headers, b"{}", timeout, secrets=(SECRET,), **settings)


def test_neither_a_call_nor_a_reply_shows_its_headers(transport):
    with Scripted(["request", answer(SECRET.encode())]) as server:
        call = call_to(server)
        complete = transport.send(call)
    assert repr(call) == "Call(POST %s/x)" % server.url
    assert repr(complete) == "Reply(200, 20 bytes from %s/x)" % server.url
    assert call.request_id == complete.request_id == "r1"
    assert (complete.status, complete.body, complete.content_type) == (200, SECRET.encode(), "application/json")


def test_blocks_are_handed_on_as_they_come(transport):
    steps = ["request", SSE_HEAD, chunk(b"one"), ("sleep", 0.2), chunk(b"two"), ("sleep", 0.2), LAST_CHUNK, "hold"]
    with Scripted(steps) as server:
        open_reply = transport.open(call_to(server))
        assert [open_reply.read() for _ in range(3)] == [b"one", b"two", b""]
        open_reply.finish()
        open_reply.close()


@pytest.mark.parametrize("status, body", [(200, b"hello"), (201, b"hello"), (204, b"")])
def test_every_2xx_is_a_success(transport, status, body):
    with Scripted(["request", answer(body, "%d Fine" % status)]) as server:
        assert transport.send(call_to(server)).body == body


def test_a_reply_that_was_closed_is_not_read(transport):
    with Scripted(["request", SSE_HEAD, chunk(b"one"), "hold"]) as server:
        open_reply = transport.open(call_to(server))
        open_reply.close()
        open_reply.close()
        open_reply.finish()
        with pytest.raises(RequestCancelledError, match="the stream was closed"):
            open_reply.read()


def test_reading_on_after_an_exchange_was_cancelled(transport):
    with Scripted(["request", SSE_HEAD, chunk(b"one"), "hold"]) as server:
        cancel = Cancellation()
        open_reply = transport.open(call_to(server, cancellation=cancel))
        assert open_reply.read() == b"one"
        cancel.cancel("enough")
        with pytest.raises(RequestCancelledError, match="enough"):
            open_reply.read()
        open_reply.close()


def test_a_cancelled_body_is_no_short_body(transport):
    """A body that ends with the connection looks complete when the connection is shut."""
    with Scripted(["request", b"HTTP/1.0 200 OK\r\n\r\n{}", "hold"]) as server:
        cancel = Cancellation()
        threading.Timer(0.2, cancel.cancel).start()
        with pytest.raises(RequestCancelledError):
            transport.send(call_to(server, cancellation=cancel))


def test_an_error_whose_body_breaks_off_is_still_that_error(transport):
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\nabc"
    with Scripted(["request", head]) as server:
        with pytest.raises(NotFoundError):
            transport.send(call_to(server))
    with Scripted(["request", head, "hold"]) as server:
        with pytest.raises(NotFoundError):
            transport.send(call_to(server, timeout=(5, 0.2)))


def test_an_error_whose_body_outlives_the_deadline_is_a_timeout(transport):
    with Scripted(["request", b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\nabc", "hold"]) as server:
        with pytest.raises(APITimeoutError) as caught:
            transport.send(call_to(server, deadline=time.monotonic() + 0.3))
    assert caught.value.code == "deadline"


@pytest.mark.parametrize("header, seconds", [
    ("Retry-After: 7\r\n", 7.0), ("Retry-After: 7\r\nretry-after-ms: 250\r\n", 0.25), ("", None),
    ("Retry-After: soon\r\n", None),
])
def test_an_error_says_how_long_to_wait(transport, header, seconds):
    with Scripted(["request", answer(b"", "503 Busy", extra=header)]) as server:
        with pytest.raises(Exception) as caught:
            transport.send(call_to(server))
    assert caught.value.retry_after == seconds


def test_an_error_of_converting_a_reply_tells_where_it_is_from():
    call = Call("POST", "http://x/v1", {}, b"", (None, None), secrets=(SECRET,))
    complete = Reply(200, {}, b"", "http://x/v1", "r9", call)

    def convert():
        raise ResponseDecodeError("it says " + SECRET)

    with pytest.raises(ResponseDecodeError) as caught:
        complete.read(convert)
    assert (caught.value.url, caught.value.request_id) == ("http://x/v1", "r9")
    assert caught.value.message == "it says [api key]"
    assert complete.read(lambda: 5) == 5
    assert complete.content_type == ""


def test_a_cancellation_covers_many_calls_and_later_ones():
    cancel = Cancellation()
    first, second, later = (Exchange() for _ in range(3))
    cancel.add(first)
    cancel.add(second)
    cancel.discard(second)
    assert not cancel.cancelled and cancel.why is None
    cancel.cancel("one")
    cancel.cancel("two")
    cancel.add(later)
    assert (first.cancelled, second.cancelled, later.cancelled, cancel.why) == ("one", None, "one", "one")


def test_a_reply_that_ends_early_is_incomplete(transport):
    with Scripted(["request", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]) as server:
        with pytest.raises(APIConnectionError, match="hung up without a complete reply") as caught:
            transport.send(call_to(server))
        assert caught.value.url == server.url + "/x"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
def test_a_coding_that_nobody_asked_for_is_named(transport, encoding):
    with Scripted(["request", answer(b"x", extra="Content-Encoding: %s\r\n" % encoding), "hold"]) as server:
        with pytest.raises(ResponseDecodeError, match="Content-Encoding is %s, which nobody asked for" % encoding):
            transport.send(call_to(server))
        server.until("eof")


def test_what_is_compressed_twice_is_unpacked(transport):
    body = gzip.compress(gzip.compress(b"hello" * 1000))
    with Scripted(["request", answer(body, extra="Content-Encoding: gzip, gzip\r\n"), "again"]) as server:
        assert transport.send(call_to(server)).body == b"hello" * 1000


def test_what_is_compressed_twice_has_a_limit(transport, monkeypatch):
    monkeypatch.setattr(reply, "MAX_BODY", 1000000)
    body = gzip.compress(gzip.compress(bytes(100000000), 1))
    with Scripted(["request", answer(body, extra="Content-Encoding: gzip, gzip\r\n"), "hold"]) as server:
        with pytest.raises(ResponseDecodeError, match="longer than 1000000 bytes"):
            transport.send(call_to(server))


@pytest.mark.parametrize("body", [
    [("drip", b"slow " * 1000, 0.02)], [b"slow ", "hold"],
    [("repeat", chunk(b"slow "), 0.01)],
])
def test_an_error_body_holds_nobody_up(transport, monkeypatch, body):
    monkeypatch.setattr(reply, "_ERROR_SECONDS", 0.3)
    head = b"HTTP/1.1 503 Busy\r\nContent-Type: text/plain\r\n"
    framing = b"Transfer-Encoding: chunked\r\n\r\n" if body[0][0] == "repeat" else b"Content-Length: 9999\r\n\r\n"
    with Scripted(["request", head + framing] + body) as server:
        start = time.monotonic()
        with pytest.raises(InternalServerError, match="slow") as caught:
            transport.send(call_to(server))
        assert time.monotonic() - start < 5 and caught.value.status_code == 503


def test_a_silence_may_be_waited_out(transport):
    with Scripted(["request", SSE_HEAD, chunk(b"one"), "go", chunk(b"two"), LAST_CHUNK, "hold"]) as server:
        go = threading.Event()
        server._do_go = lambda state: go.wait(10)
        with contextlib.closing(transport.open(call_to(server))) as open_reply:
            assert open_reply.read() == b"one"
            open_reply.set_timeout(0.05)
            for _ in range(2):
                with pytest.raises(APITimeoutError) as caught:
                    open_reply.read()
                assert caught.value.code is None
            go.set()
            open_reply.set_timeout(10)
            assert open_reply.read() == b"two" and open_reply.read() == b""
