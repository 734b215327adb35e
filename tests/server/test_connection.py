"""A connection at its socket: framing, bodies, hostile clients, leaving clients, applications that fail."""

import json
import logging
import socket
import threading
import time
from typing import Any, Iterator, Optional

import pytest

from requests_by_hand import HOSTILE, chunked, get, post
from serving import LONG, TEXT, App, Client, serving, until
from vllm_bridge.http1.head import ProtocolError
from vllm_bridge.server.request import Answer, Request

# ---------------------------------------------------------------- answers


def test_keep_alive_and_one_write_for_an_answer() -> None:
    with serving() as server, Client(server) as client:
        for number in range(3):
            status, head, body = client.send(post(b"hi", path="/p%%20q%%C3%%A9?n=%d%%20" % number)).reply()
            assert status == 200
            assert "Connection" not in head and "Server" not in head and "Date: " in head
            assert json.loads(body) == {
                "method": "POST", "path": "/p qé", "query": "n=%d%%20" % number, "body": "hi",
                "fields": {"host": "a", "content-length": "2"},
            }


def test_what_an_application_is_told_of_a_request() -> None:
    seen = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return Answer(204)

    with serving(answer) as server, Client(server) as client:
        lines = "X-A: 1\r\nX-A: 2\r\nX_A: 3\r\n"
        head = client.send(get("/a%2Fb", lines)).until(b"\r\n\r\n").decode()
        assert head.startswith("HTTP/1.1 204 No Content\r\n")
        assert "Content-Length" not in head and "Transfer-Encoding" not in head
        client.send(get("*", method="OPTIONS")).until(b"\r\n\r\n")
        first, second = seen
    assert (first.method, first.target, first.path, first.query) == ("GET", "/a%2Fb", "/a/b", "")
    assert first.fields == {"host": "a", "x-a": "1, 2", "x_a": "3"}
    assert (first.client, first.version, first.stopping()) == ("127.0.0.1", "HTTP/1.1", True)
    assert isinstance(first.gone, socket.socket) and first.account is None
    assert (second.method, second.target, second.path) == ("OPTIONS", "*", "")


def test_each_block_leaves_at_once_as_one_chunk() -> None:
    go = threading.Semaphore(0)

    def blocks() -> Iterator[bytes]:
        for block in (b"one", b"", b"two"):
            yield block
            go.acquire()

    with serving(lambda request: Answer(200, TEXT, blocks())) as server, Client(server) as client:
        head = client.send(get()).until(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in head and b"Content-Length" not in head
        assert client.until(b"3\r\none\r\n") == b"3\r\none\r\n"
        go.release()
        go.release()
        assert client.until(b"two\r\n") == b"3\r\ntwo\r\n"
        go.release()
        assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        for _ in range(3):
            go.release()
        assert client.send(get()).until(b"0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_the_head_waits_for_the_first_block() -> None:
    asked, go = threading.Event(), threading.Event()

    def blocks() -> Iterator[bytes]:
        asked.set()
        go.wait(LONG)
        yield b"one"

    with serving(lambda request: Answer(200, TEXT, blocks())) as server, Client(server) as client:
        client.send(get())
        assert asked.wait(LONG)
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(LONG)
        go.set()
        assert client.until(b"one\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


def streaming(request: Request) -> Answer:
    return Answer(200, TEXT, iter_closed([b"one", b"two"]))


def iter_closed(blocks: Any) -> Iterator[bytes]:
    yield from blocks


def test_http_1_0_streams_until_the_connection_ends() -> None:
    with serving(streaming) as server, Client(server) as client:
        data = client.send(get(lines="Connection: keep-alive\r\n", version="1.0")).rest()
        head, _, body = data.partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"Connection: close" in head and b"chunked" not in head


def test_http_1_0_may_keep_the_connection_for_a_known_length() -> None:
    with serving() as server, Client(server) as client:
        for _ in range(2):
            head = client.send(get(lines="Connection: keep-alive\r\n", version="1.0")).reply()[1]
            assert "Connection: keep-alive\r\n" in head
        assert b"Connection: close\r\n" in client.send(get(version="1.0")).rest()


def test_head_has_no_body() -> None:
    closed = []

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            raise AssertionError("nobody wants it")

        def close(self) -> None:
            closed.append(True)

    def answer(request: Request) -> Answer:
        return Answer(200, TEXT, b"1234567" if request.path == "/whole" else Endless())

    with serving(answer) as server, Client(server) as client:
        for path, known in (("/whole", True), ("/endless", False)):
            head = client.send(get(path, method="HEAD")).until(b"\r\n\r\n").decode()
            assert ("Content-Length: 7\r\n" in head) is known
            assert "Transfer-Encoding" not in head and head.startswith("HTTP/1.1 200 OK\r\n")
        assert client.send(get("/whole")).reply()[2] == b"1234567"
    assert closed == [True]


def test_a_large_answer_arrives_whole() -> None:
    large = bytes(range(256)) * 40000

    def answer(request: Request) -> Answer:
        return Answer(200, TEXT, large if request.path == "/whole" else iter_closed([large, large[:70000]]))

    with serving(answer) as server, Client(server) as client:
        assert client.send(get("/whole")).reply()[2] == large
        client.send(get("/stream", "Connection: close\r\n"))
        assert len(client.rest()) > len(large) + 70000


# ---------------------------------------------------------------- bodies


def test_a_chunked_body_is_read() -> None:
    with serving() as server, Client(server) as client:
        for _ in range(2):
            assert json.loads(client.send(chunked(b"hello ", b"world")).reply()[2])["body"] == "hello world"


def test_a_body_in_pieces() -> None:
    with serving() as server, Client(server) as client:
        for byte in chunked(b"hello", b"you") + post(b"again"):
            client.send(bytes([byte]))
        assert json.loads(client.reply()[2])["body"] == "helloyou"
        assert json.loads(client.reply()[2])["body"] == "again"


def test_a_body_is_handed_over_as_it_arrives() -> None:
    seen = []
    first = threading.Event()

    def answer(request: Request) -> Answer:
        for block in request.body.blocks(100):
            seen.append(block)
            first.set()
        return Answer(200, TEXT, b"ok")

    with serving(answer) as server, Client(server) as client:
        client.send(post(b"hello")[:-2])
        assert first.wait(LONG)
        assert client.send(b"lo").reply()[0] == 200
    assert b"".join(seen) == b"hello" and len(seen) > 1


def test_pipelined_requests_are_answered_in_order() -> None:
    with serving() as server, Client(server) as client:
        client.send(b"".join(post(b"%d" % number) + chunked(b"c%d" % number) for number in range(10)))
        for number in range(10):
            assert json.loads(client.reply()[2])["body"] == "%d" % number
            assert json.loads(client.reply()[2])["body"] == "c%d" % number


def unread(request: Request) -> Answer:
    return Answer(401, TEXT, b"no")


def test_a_small_unread_body_is_skipped() -> None:
    with serving(unread) as server, Client(server) as client:
        for data in (post(b"x" * 1000), post(b"x" * 60000)):
            status, head, _ = client.send(data).reply()
            assert status == 401 and "Connection" not in head


@pytest.mark.parametrize("data, said", [
    (post(b"x" * 5000000), True), (chunked(b"x" * 5000000), True), (post(b"x", "Connection: close\r\n"), True),
    (post(b"x" * 1000)[:-1], False),
], ids=["long", "chunked", "close", "cut"])
def test_a_long_or_unknown_unread_body_ends_the_connection(data: bytes, said: bool) -> None:
    """And the answer says so, where it is known in time."""
    with serving(unread) as server, Client(server) as client:
        client.send(data)
        status, head, _ = client.reply()
        assert status == 401 and ("Connection: close\r\n" in head) is said
        if not said:
            client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b""


@pytest.mark.parametrize("data", [post(b"x" * 5000000), chunked(b"x" * 5000000)], ids=["long", "chunked"])
def test_what_follows_an_unread_body_is_not_answered(data: bytes) -> None:
    with serving(unread) as server, Client(server) as client:
        try:
            client.send(data + get("/next"))
        except ConnectionError:
            pass  # it has ended before
        assert client.rest().count(b"HTTP/1.1 401 Unauthorized\r\n") == 1


def limited(request: Request) -> Answer:
    return Answer(200, TEXT, b"%d" % len(request.body.read(1000)))


def test_the_last_answer_reaches_a_client_that_is_still_sending() -> None:
    with serving(limited) as server, Client(server) as client:
        status, head, _ = client.send(post(b"x" * 3000000)).reply()
        assert status == 413 and "Connection: close\r\n" in head


@pytest.mark.parametrize("data", [post(b"x" * 1001), chunked(b"x" * 600, b"x" * 401)], ids=["declared", "chunked"])
def test_a_body_over_the_limit(data: bytes) -> None:
    with serving(limited) as server:
        with Client(server) as client:
            assert client.send(data).reply()[0] == 413
        with Client(server) as client:
            for whole in (post(b"x" * 1000), chunked(b"x" * 1000), chunked(b"x" * 999, b"x")):
                assert client.send(whole).reply()[2] == b"1000"


def test_the_time_that_bodies_took_does_not_add_up() -> None:
    with serving(body_timeout=1.0) as server, Client(server) as client:
        for _ in range(4):
            client.send(post(b"hi")[:-1])
            time.sleep(0.4)  # the client's own pause: there is nothing to wait for
            assert client.send(b"i").reply()[0] == 200


def test_100_continue_is_sent_when_the_body_is_wanted() -> None:
    with serving() as server, Client(server) as client:
        client.send(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", "POST"))
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert json.loads(client.send(b"hi").reply()[2])["body"] == "hi"
        for _ in range(2):  # a body that is there already needs no leave, and the connection goes on
            status, head, body = client.send(post(b"hi", "Expect: 100-continue\r\n")).reply()
            assert json.loads(body)["body"] == "hi" and "Connection" not in head


def test_100_continue_is_not_sent_when_it_is_not() -> None:
    with serving(unread) as server:
        with Client(server) as client:
            data = client.send(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", "POST")).rest()
            assert data.startswith(b"HTTP/1.1 401 Unauthorized\r\n") and b"Connection: close\r\n" in data
        with Client(server) as client:
            for _ in range(2):
                assert "Connection" not in client.send(post(b"hi", "Expect: 100-continue\r\n")).reply()[1]


def test_a_half_closed_client_is_answered() -> None:
    with serving() as server, Client(server) as client:
        client.send(post(b"hi"))
        client.sock.shutdown(socket.SHUT_WR)
        assert b'"body": "hi"' in client.rest()


# ---------------------------------------------------------------- hostile clients (what http1 refuses is in test_head)


@pytest.mark.parametrize("data, status", [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_client_is_refused_in_the_applications_words(data: bytes, status: int) -> None:
    app = App()
    with serving(app) as server:
        with Client(server) as client:
            found, head, body = client.send(data).reply()
            assert found == status
            assert "Connection: close\r\n" in head and "X-Asked: " in head and "Python" not in head
            assert json.loads(body)["error"]
            client.sock.shutdown(socket.SHUT_WR)
            assert client.rest() == b""
        until(lambda: not server.threads)
        request, answer, complete = app.ends[0]
        assert (answer.status, complete, request.client) == (status, True, "127.0.0.1")
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200
    assert [request.path for request, _, _ in app.ends if "smuggled" in request.path] == []


@pytest.mark.parametrize("data, path", [
    (b"\r\n\r\n" + get("/lines"), "/lines"),
    (b"GET http://b.example/abs?q HTTP/1.1\r\nHost: a\r\n\r\n", "/abs"),
    (b"GET /old HTTP/1.0\r\n\r\n", "/old"),
    (get("/../../etc/passwd"), "/../../etc/passwd"),
    (get("//evil/%2e%2e/x"), "//evil/../x"),
    (get("/%ff%C3"), "/\ufffd\ufffd"),
])
def test_an_odd_but_legal_request_is_served(data: bytes, path: str) -> None:
    with serving() as server, Client(server) as client:
        status, _, body = client.send(data).reply()
        assert (status, json.loads(body)["path"]) == (200, path)
        if b"b.example" in data:
            assert json.loads(body)["fields"]["host"] == "b.example"


def dripping(client: Client, data: bytes) -> bytes:
    """Send the same again and again until an answer comes."""
    client.sock.settimeout(0.05)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        client.send(data)
        try:
            return client.sock.recv(65536)
        except socket.timeout:
            pass
    raise AssertionError("nobody cut it off")


def test_a_slow_head_is_cut_off_as_a_whole() -> None:
    with serving(header_timeout=0.4) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")  # a header line now and then would reset a limit per read
        assert dripping(client, b"X: y\r\n").startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips_is_cut_off() -> None:
    with serving(body_timeout=0.3) as server, Client(server) as client:
        client.send(get(lines="Content-Length: 100000\r\n", method="POST"))
        data = dripping(client, b"x")
        assert data.startswith(b"HTTP/1.1 408 ") and b"too slowly" in data + client.rest()


@pytest.mark.parametrize("data", [
    get(lines="Content-Length: 5\r\n", method="POST") + b"hi",
    get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"5\r\nhi",
])
def test_a_body_that_stops_is_cut_off(data: bytes) -> None:
    with serving(body_timeout=0.1) as server:
        with Client(server) as client:
            assert client.send(data).reply()[0] == 408
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200


@pytest.mark.parametrize("data, status", [
    (b"", None), (b"GET / HT", 400), (b"GET / HTTP/1.1\r\nHo", 400),
    (get(lines="Content-Length: 5\r\n", method="POST") + b"hi", 400),
    (get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"5\r\nhi", 400),
])
def test_a_request_that_ends_early(data: bytes, status: Optional[int]) -> None:
    with serving() as server, Client(server) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        if status is None:
            assert client.rest() == b""
        else:
            assert client.reply()[0] == status


def test_an_application_that_catches_a_broken_body_may_answer_itself() -> None:
    def answer(request: Request) -> Answer:
        for _ in range(2):
            with pytest.raises(ProtocolError) as caught:
                request.body.read(1000)
        return Answer(400, TEXT, str(caught.value).encode())

    with serving(answer) as server, Client(server) as client:
        client.send(get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"nonsense")
        data = client.rest()
        assert data.startswith(b"HTTP/1.1 400 Bad Request") and b"Connection: close\r\n" in data


@pytest.mark.parametrize("options", [{"header_timeout": 0.1}, {"keep_alive_timeout": 0.1}])
def test_a_silent_connection_is_closed_silently(options: Any) -> None:
    with serving(**options) as server, Client(server) as client:
        if "keep_alive_timeout" in options:
            client.send(post(b"")).reply()
        assert client.rest() == b""


@pytest.mark.parametrize("data", [b"GET /\r\n", post(b"x" * 2000), get(lines="X: " + "y" * 70000 + "\r\n")])
def test_a_client_that_leaves_before_its_refusal_harms_nobody(data: bytes, caplog: Any) -> None:
    app = App(limited)
    with serving(app) as server:
        for _ in range(20):
            with Client(server) as client:
                client.send(data).reset()
        until(lambda: not server.threads)
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200
    assert {status for status, _ in app.statuses()} <= {200, 400, 413, 431}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_leaves_inside_its_body_is_told_from_a_failure(caplog: Any) -> None:
    started = threading.Event()

    def answer(request: Request) -> Answer:
        started.set()
        return limited(request)

    app = App(answer)
    with serving(app) as server:
        with Client(server) as client:
            client.send(post(b"hello")[:-1])
            assert started.wait(LONG)
            client.reset()
        until(lambda: bool(app.ends))
    assert [status for status, _ in app.statuses()] == [499] and not caplog.text


# ---------------------------------------------------------------- applications that fail


@pytest.mark.parametrize("fields", [
    [("X", "a\r\nSet-Cookie: b")], [("X", "a\n")], [("X\r\nY", "a")], [("X", "\u20ac")],
])
def test_a_header_that_http_does_not_allow_is_not_sent(fields: Any, caplog: Any) -> None:
    with serving(lambda request: Answer(200, fields, b"ok")) as server, Client(server) as client:
        assert client.send(get()).reply()[0] == 500
    assert "the application failed on GET '/'" in caplog.text


class Failing:
    """A body that fails at some block."""

    def __init__(self, *blocks: bytes) -> None:
        self.blocks = blocks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.blocks
        raise ConnectionResetError("upstream, not the client")

    def close(self) -> None:
        self.closed = True


def test_a_failure_before_the_head_is_a_500(caplog: Any) -> None:
    body = Failing()

    def answer(request: Request) -> Answer:
        if request.path == "/blocks":
            return Answer(200, TEXT, body)
        raise OSError(28, "No space left on device: secret")  # ours, not the client's

    app = App(answer)
    with serving(app) as server, Client(server) as client:
        for path in ("/p?key=hidden", "/blocks"):
            status, head, reply = client.send(get(path)).reply()
            assert status == 500 and b"secret" not in reply and b"Traceback" not in reply
    assert body.closed and app.statuses() == [(500, True), (500, True)]
    assert caplog.text.count("the application failed on GET") == 2
    assert "hidden" not in caplog.text


def test_a_failure_after_the_head_is_seen_as_a_cut(caplog: Any) -> None:
    body = Failing(b"one")
    app = App(lambda request: Answer(200, TEXT, body))
    with serving(app) as server, Client(server) as client:
        data = client.send(get()).rest()
        assert data.startswith(b"HTTP/1.1 200 OK") and data.endswith(b"\r\n\r\n3\r\none\r\n")
    assert body.closed and app.statuses() == [(200, False)]
    assert "the application failed on GET" in caplog.text


def test_a_failing_close_is_logged(caplog: Any) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

        def close(self) -> None:
            raise RuntimeError("at the end")

    app = App(lambda request: Answer(200, TEXT, Body()))
    with serving(app) as server, Client(server) as client:
        assert client.send(get(lines="Connection: close\r\n")).rest().endswith(b"3\r\none\r\n0\r\n\r\n")
    assert "at the end" in caplog.text and app.statuses() == [(200, True)]


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_closes_the_blocks_quietly(reset: bool, caplog: Any) -> None:
    closed = threading.Event()

    def blocks() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                time.sleep(0.001)
        finally:
            closed.set()

    app = App(lambda request: Answer(200, TEXT, blocks()))
    with serving(app) as server:
        with Client(server) as client:
            client.send(get()).until(b"\r\n\r\n")
            if reset:
                client.reset()
        assert closed.wait(LONG)
        until(lambda: not server.threads)
    assert app.statuses() == [(200, False)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_takes_nothing_is_dropped() -> None:
    closed = threading.Event()

    def blocks() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 100000
        finally:
            closed.set()

    with serving(lambda request: Answer(200, TEXT, blocks()), write_timeout=0.1) as server, Client(server) as client:
        client.send(get())
        assert closed.wait(LONG)


def test_a_connection_that_breaks_does_not_break_the_server(caplog: Any) -> None:
    class Broken:
        def __contains__(self, path: str) -> bool:
            if path == "/broken":
                raise RuntimeError("no opinion")
            return False

    app = App()
    app.probes = Broken()
    with serving(app) as server:
        with Client(server) as client:
            assert client.send(get("/broken")).rest() == b""
        with Client(server) as client:
            assert client.send(get()).reply()[0] == 200
    assert "a connection failed" in caplog.text


def test_lingering_ends(monkeypatch: Any) -> None:
    monkeypatch.setattr("vllm_bridge.server.connection._LINGER_IDLE", 0.01)
    with serving(limited) as server, Client(server) as client:
        assert client.send(post(b"x" * 100000)[:-1]).reply()[0] == 413
        until(lambda: not server.threads)
