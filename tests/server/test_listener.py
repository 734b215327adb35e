"""The server at its sockets: framing, limits, hostile clients, leaving clients, stopping."""

import http.client
import json
import logging
import re
import socket
import sys
import threading
import time
import wsgiref.validate
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

from requests_by_hand import HOSTILE, chunked, get, post
from vllm_bridge.http1.timed_socket import timed
from vllm_bridge.server import channel, listener as server_module
from vllm_bridge.server.body import BodyError
from vllm_bridge.server.listener import GatewayServer, listen

LONG = 30.0  # seconds: no verdict hangs on it
TEXT = [("Content-Type", "text/plain")]


@contextmanager
def serving(app: Callable[..., Any], **options: Any) -> Iterator[GatewayServer]:
    before = set(threading.enumerate())
    server = GatewayServer(app, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(0 if server.graceful_timeout == 30.0 else None)
        thread.join(LONG)
        server.server_close()
        until(lambda: set(threading.enumerate()) <= before)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Client:
    """A socket that speaks in bytes."""

    def __init__(self, server: GatewayServer) -> None:
        self.sock = socket.create_connection(server.server_address[:2], timeout=LONG)
        self.data = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.sock.close()

    def send(self, data: bytes) -> "Client":
        self.sock.sendall(data)
        return self

    def until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            piece = self.sock.recv(65536)
            assert piece, self.data
            self.data += piece
        end = self.data.index(mark) + len(mark)
        read, self.data = self.data[:end], self.data[end:]
        return read

    def reply(self, head_only: bool = False) -> Tuple[int, str, bytes]:
        """Read one reply with a known length."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        length = 0 if head_only else int(re.search(r"Content-Length: (\d+)", head).group(1))  # type: ignore[union-attr]
        while len(self.data) < length:
            piece = self.sock.recv(65536)
            assert piece
            self.data += piece
        body, self.data = self.data[:length], self.data[length:]
        return int(head[9:12]), head, body

    def rest(self) -> bytes:
        """Read until the server ends the connection."""
        data, self.data = self.data, b""
        while True:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece


def echo(environ: Any, start_response: Any) -> List[bytes]:
    body = environ["wsgi.input"].read()
    keys = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "CONTENT_LENGTH", "HTTP_HOST")
    seen = {key: environ.get(key) for key in keys}
    seen["body"] = body.decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


# ---------------------------------------------------------------- replies


def test_keep_alive_and_one_write_for_a_reply() -> None:
    with serving(echo) as server, Client(server) as client:
        for number in range(3):
            status, head, body = client.send(post(b"hi", path="/p%%20q?n=%d" % number)).reply()
            assert status == 200
            assert "Connection" not in head and "Server" not in head and "Date: " in head
            seen = json.loads(body)
            assert seen == {
                "REQUEST_METHOD": "POST", "PATH_INFO": "/p q", "QUERY_STRING": "n=%d" % number, "CONTENT_LENGTH": "2",
                "HTTP_HOST": "a", "body": "hi",
            }


def test_the_environ_is_what_pep_3333_asks() -> None:
    seen = {}

    def app(environ: Any, start_response: Any) -> List[bytes]:
        seen.update(environ)
        start_response("204 No Content", [("Content-Length", "0")])
        return []

    with serving(app, multiprocess=True) as server, Client(server) as client:
        lines = "X-A: 1\r\nX-A: 2\r\nX_A: spoofed\r\nProxy: evil\r\nContent-Type: text/x\r\n"
        head = client.send(get("/a%2Fb/%C3%A9?q=%20", lines)).until(b"\r\n\r\n").decode()
        assert head.startswith("HTTP/1.1 204 No Content\r\n")
        assert "Content-Length" not in head and "Transfer-Encoding" not in head
        assert client.send(get("*", method="OPTIONS")).until(b"\r\n\r\n").startswith(b"HTTP/1.1 204")
        assert (seen["PATH_INFO"], seen["REQUEST_URI"]) == ("", "*")
        client.send(get("/a%2Fb/%C3%A9?q=%20", lines)).until(b"\r\n\r\n")
        port, address = str(server.server_port), client.sock.getsockname()
    assert type(seen) is dict
    assert seen["PATH_INFO"] == "/a/b/\xc3\xa9" and seen["REQUEST_URI"] == "/a%2Fb/%C3%A9?q=%20"
    assert (seen["HTTP_X_A"], seen["CONTENT_TYPE"]) == ("1, 2", "text/x")
    assert "HTTP_PROXY" not in seen and "CONTENT_LENGTH" not in seen
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen["SERVER_PROTOCOL"]) == ("127.0.0.1", port, "HTTP/1.1")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("127.0.0.1", str(address[1]))
    assert (seen["wsgi.version"], seen["wsgi.url_scheme"], seen["wsgi.errors"]) == ((1, 0), "http", sys.stderr)
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"], seen["wsgi.run_once"]) == (True, True, False)
    assert seen["wsgi.input_terminated"] is True
    assert isinstance(seen["vllm_bridge.socket"], socket.socket)


@pytest.mark.filterwarnings("ignore::wsgiref.validate.WSGIWarning")
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "DELETE"])
def test_the_validator_of_the_standard_library_agrees(method: str) -> None:
    def app(environ: Any, start_response: Any) -> List[bytes]:
        body = environ["wsgi.input"].read(3) + environ["wsgi.input"].readline() + b"".join(environ["wsgi.input"])
        start_response("200 OK", TEXT)
        return [] if method == "HEAD" else [b"<", body, b">"]

    with serving(wsgiref.validate.validator(app)) as server:
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=LONG)
        for body in (b"abcdef\nghi", None):
            connection.request(method, "/x?y", body if method == "POST" else None)
            response = connection.getresponse()
            sent = body if method == "POST" and body else b""
            assert (response.status, response.read()) == (200, b"" if method == "HEAD" else b"<" + sent + b">")
        connection.close()


def test_each_item_leaves_at_once_as_one_chunk() -> None:
    go = threading.Semaphore(0)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for item in (b"one", b"", b"two"):
            yield item
            go.acquire()

    with serving(app) as server, Client(server) as client:
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


def streaming(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b"one"
    yield b"two"


def test_http_1_0_streams_until_the_connection_ends() -> None:
    with serving(streaming) as server, Client(server) as client:
        data = client.send(get(lines="Connection: keep-alive\r\n", version="1.0")).rest()
        head, _, body = data.partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"Connection: close" in head and b"chunked" not in head


def test_http_1_0_may_keep_the_connection_for_a_known_length() -> None:
    with serving(echo) as server, Client(server) as client:
        for _ in range(2):
            head = client.send(get(lines="Connection: keep-alive\r\n", version="1.0")).reply()[1]
            assert "Connection: keep-alive\r\n" in head
        assert b"Connection: close\r\n" in client.send(get(version="1.0")).rest()


def test_head_has_no_body() -> None:
    closed = []

    class Endless:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b"x"

        def close(self) -> None:
            closed.append(True)

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/late":
            return streaming(environ, start_response)
        known = environ["PATH_INFO"] == "/known"
        start_response("200 OK", TEXT + ([("Content-Length", "7")] if known else []))
        return [b"1234567"] if environ["PATH_INFO"] in ("/known", "/list") else Endless()

    with serving(app) as server, Client(server) as client:
        for path, length in (("/known", True), ("/list", True), ("/endless", False), ("/late", False)):
            head = client.send(get(path, method="HEAD")).until(b"\r\n\r\n").decode()
            assert ("Content-Length: 7\r\n" in head) is length
            assert "Transfer-Encoding" not in head
        assert client.send(get("/list")).reply()[2] == b"1234567"
        assert closed == [True]


def test_write_works_beside_the_iterable() -> None:
    def app(environ: Any, start_response: Any) -> List[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"")
        write(b"one")
        return [b"two"]

    with serving(app) as server, Client(server) as client:
        assert client.send(get()).until(b"0\r\n\r\n").endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_the_connection_is_the_servers_matter() -> None:
    def app(environ: Any, start_response: Any) -> List[bytes]:
        headers = [("Connection", environ["QUERY_STRING"]), ("Keep-Alive", "x"), ("Transfer-Encoding", "chunked")]
        start_response("200 OK", headers + [("X", "y"), ("Date", "today")])
        return [b"body"]

    with serving(app) as server, Client(server) as client:
        status, head, body = client.send(get("/?upgrade")).reply()
        assert body == b"body" and "X: y\r\n" in head
        assert not re.search("connection|keep-alive|transfer-encoding", head, re.IGNORECASE)
        assert head.count("Date:") == 1 and "Date: today" in head
        assert b"Connection: close\r\n" in client.send(get("/?close")).rest()


def test_an_application_may_think_again_before_the_head_has_left() -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            raise KeyError("late")
        except KeyError:
            start_response("500 Oh", TEXT, sys.exc_info())
        yield b"sorry"
        try:
            raise KeyError("later")
        except KeyError:
            start_response("501 Oh", TEXT, sys.exc_info())

    with serving(app) as server, Client(server) as client:
        data = client.send(get()).rest()
        assert data.startswith(b"HTTP/1.1 500 Oh\r\n") and data.endswith(b"5\r\nsorry\r\n")


@pytest.mark.parametrize("declared, items, sent", [
    ("5", [b"1234567"], b"12345"), ("5", iter([b"123", b"4567"]), b"12345"),
    ("5", [b"123"], b"123"), ("5", iter([b"123"]), b"123"),
])
def test_a_length_that_is_not_kept_ends_the_connection(declared: str, items: Any, sent: bytes, caplog: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", declared)])
        return items

    with serving(app) as server, Client(server) as client:
        head, _, body = client.send(get()).rest().partition(b"\r\n\r\n")
        assert b"Content-Length: 5\r\n" in head and body == sent
    assert "Content-Length" in caplog.text


def test_a_large_reply_arrives_whole() -> None:
    large = bytes(range(256)) * 40000

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [large] if environ["PATH_INFO"] == "/list" else iter([large, large[:70000]])

    with serving(app) as server, Client(server) as client:
        assert client.send(get("/list")).reply()[2] == large
        client.send(get("/stream", "Connection: close\r\n"))
        assert len(client.rest()) > len(large) + 70000


# ---------------------------------------------------------------- bodies


def test_a_chunked_body_is_read_and_has_no_length() -> None:
    with serving(echo) as server, Client(server) as client:
        for _ in range(2):
            seen = json.loads(client.send(chunked(b"hello ", b"world")).reply()[2])
            assert (seen["body"], seen["CONTENT_LENGTH"]) == ("hello world", None)


def test_a_body_in_pieces() -> None:
    with serving(echo) as server, Client(server) as client:
        for byte in chunked(b"hello", b"you") + post(b"again"):
            client.send(bytes([byte]))
        assert json.loads(client.reply()[2])["body"] == "helloyou"
        assert json.loads(client.reply()[2])["body"] == "again"


def test_pipelined_requests_are_answered_in_order() -> None:
    with serving(echo) as server, Client(server) as client:
        client.send(b"".join(post(b"%d" % number) + chunked(b"c%d" % number) for number in range(10)))
        for number in range(10):
            assert json.loads(client.reply()[2])["body"] == "%d" % number
            assert json.loads(client.reply()[2])["body"] == "c%d" % number


def unread(environ: Any, start_response: Any) -> List[bytes]:
    start_response("401 No", TEXT)
    return [b"no"]


def test_a_small_unread_body_is_skipped() -> None:
    with serving(unread) as server, Client(server) as client:
        for _ in range(2):
            status, head, _ = client.send(post(b"x" * 1000)).reply()
            assert status == 401 and "Connection" not in head


@pytest.mark.parametrize("data, said", [
    (post(b"x" * 5000000), True), (chunked(b"x" * 5000000), True), (post(b"x", "Connection: close\r\n"), True),
    (post(b"x" * 1000)[:-1], False),
], ids=["long", "chunked", "close", "cut"])
def test_a_long_or_unknown_unread_body_ends_the_connection(data: bytes, said: bool) -> None:
    """And the reply says so, where it is known in time."""
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
        assert client.rest().count(b"HTTP/1.1 401 No\r\n") == 1


def test_the_time_that_bodies_took_does_not_add_up() -> None:
    with serving(echo, body_timeout=1.0) as server, Client(server) as client:
        for _ in range(4):
            client.send(post(b"hi")[:-1])
            time.sleep(0.4)  # the client's own pause: there is nothing to wait for
            assert client.send(b"i").reply()[0] == 200


@pytest.mark.parametrize("data", [b"GET /\r\n", post(b"x" * 2000), get(lines="X: " + "y" * 70000 + "\r\n")])
def test_a_client_that_leaves_before_its_refusal_harms_nobody(data: bytes, caplog: Any) -> None:
    with serving(echo, max_body=1000) as server:
        for _ in range(20):
            with Client(server) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.send(data)
        until(lambda: not server._threads_of)
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_last_reply_reaches_a_client_that_is_still_sending() -> None:
    with serving(unread, max_body=1000) as server, Client(server) as client:
        client.send(post(b"x" * 3000000))
        status, head, body = client.reply()
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        assert "Connection: close\r\n" in head


@pytest.mark.parametrize("data", [post(b"x" * 1001), chunked(b"x" * 600, b"x" * 401)], ids=["declared", "chunked"])
def test_a_body_over_the_limit(data: bytes) -> None:
    with serving(echo, max_body=1000) as server:
        with Client(server) as client:
            assert client.send(data).reply()[0] == 413
            assert client.rest() == b""
        with Client(server) as client:
            assert client.send(post(b"x" * 1000)).reply()[0] == 200
            assert client.send(chunked(b"x" * 1000)).reply()[0] == 200


def test_100_continue_is_sent_when_the_body_is_wanted() -> None:
    with serving(echo) as server, Client(server) as client:
        client.send(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", "POST"))
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert json.loads(client.send(b"hi").reply()[2])["body"] == "hi"
        for _ in range(2):  # a body that is there already needs no leave, and the connection goes on
            status, head, body = client.send(post(b"hi", "Expect: 100-continue\r\n")).reply()
            assert json.loads(body)["body"] == "hi" and "Connection" not in head


def test_100_continue_is_not_sent_when_it_is_not() -> None:
    with serving(unread) as server, Client(server) as client:
        data = client.send(get("/", "Content-Length: 2\r\nExpect: 100-continue\r\n", "POST")).rest()
        assert data.startswith(b"HTTP/1.1 401 No\r\n") and b"Connection: close\r\n" in data


def test_a_half_closed_client_is_answered() -> None:
    with serving(echo) as server, Client(server) as client:
        client.send(post(b"hi"))
        client.sock.shutdown(socket.SHUT_WR)
        assert b'"body": "hi"' in client.rest()


# ---------------------------------------------------------------- hostile clients (what http1 refuses is in test_http1)

@pytest.mark.parametrize("data, status", [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_client_is_refused(data: bytes, status: int) -> None:
    paths = []

    def app(environ: Any, start_response: Any) -> List[bytes]:
        paths.append(environ["PATH_INFO"])
        return echo(environ, start_response)

    with serving(app) as server:
        with Client(server) as client:
            found, head, body = client.send(data).reply()
            assert found == status
            assert "Connection: close\r\n" in head and "application/json" in head and "Python" not in head
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"]
            assert "Traceback" not in str(error)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.rest() == b""
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200
    assert "/smuggled" not in paths


@pytest.mark.parametrize("data, path", [
    (b"\r\n\r\n" + get("/lines"), "/lines"),
    (b"GET http://b.example/abs?q HTTP/1.1\r\nHost: a\r\n\r\n", "/abs"),
    (b"GET /old HTTP/1.0\r\n\r\n", "/old"),
    (get("/../../etc/passwd"), "/../../etc/passwd"),
    (get("//evil/%2e%2e/x"), "//evil/../x"),
])
def test_an_odd_but_legal_request_is_served(data: bytes, path: str) -> None:
    with serving(echo) as server, Client(server) as client:
        status, _, body = client.send(data).reply()
        assert (status, json.loads(body)["PATH_INFO"]) == (200, path)
        if b"b.example" in data:
            assert json.loads(body)["HTTP_HOST"] == "b.example"


def test_a_slow_head_is_cut_off_as_a_whole() -> None:
    with serving(echo, header_timeout=0.4) as server, Client(server) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        client.sock.settimeout(0.05)
        data = b""
        end = time.monotonic() + LONG
        while not data and time.monotonic() < end:  # a header line now and then would reset a limit per read
            client.send(b"X: y\r\n")
            try:
                data = client.sock.recv(65536)
            except socket.timeout:
                pass
        assert data.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in data


@pytest.mark.parametrize("data", [
    get(lines="Content-Length: 5\r\n", method="POST") + b"hi",
    get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"5\r\nhi",
])
def test_a_body_that_stops_is_cut_off(data: bytes) -> None:
    with serving(echo, body_timeout=0.1) as server:
        with Client(server) as client:
            assert client.send(data).reply()[0] == 408
        with Client(server) as client:
            assert client.send(post(b"next")).reply()[0] == 200


def test_a_body_that_drips_is_cut_off() -> None:
    with serving(echo, body_timeout=0.3) as server, Client(server) as client:
        client.send(get(lines="Content-Length: 100000\r\n", method="POST"))
        client.sock.settimeout(0.05)
        data = b""
        end = time.monotonic() + LONG
        while not data and time.monotonic() < end:
            client.send(b"x")
            try:
                data = client.sock.recv(65536)
            except socket.timeout:
                pass
        assert data.startswith(b"HTTP/1.1 408 ") and b"too slowly" in data


@pytest.mark.parametrize("data, status", [
    (b"", None), (b"GET / HT", 400), (b"GET / HTTP/1.1\r\nHo", 400),
    (get(lines="Content-Length: 5\r\n", method="POST") + b"hi", 400),
    (get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"5\r\nhi", 400),
])
def test_a_request_that_ends_early(data: bytes, status: Optional[int]) -> None:
    with serving(echo) as server, Client(server) as client:
        client.send(data)
        client.sock.shutdown(socket.SHUT_WR)
        if status is None:
            assert client.rest() == b""
        else:
            assert client.reply()[0] == status


def test_an_application_that_swallows_a_broken_body_may_answer_itself() -> None:
    def app(environ: Any, start_response: Any) -> List[bytes]:
        for _ in range(2):
            with pytest.raises(BodyError) as caught:
                environ["wsgi.input"].read()
        start_response("400 Mine", TEXT)
        return [str(caught.value).encode()]

    with serving(app) as server, Client(server) as client:
        client.send(get(lines="Transfer-Encoding: chunked\r\n", method="POST") + b"nonsense")
        data = client.rest()
        assert data.startswith(b"HTTP/1.1 400 Mine") and b"Connection: close\r\n" in data


def test_a_silent_connection_is_closed_silently() -> None:
    with serving(echo, header_timeout=0.1, keep_alive_timeout=0.1) as server:
        with Client(server) as client:
            assert client.rest() == b""
        with Client(server) as client:
            client.send(post(b"")).reply()
            assert client.rest() == b""


def test_a_connection_too_many_is_told_so() -> None:
    with serving(echo, max_connections=2) as server:
        first, second = Client(server), Client(server)
        with first, second:
            first.send(get()).reply()
            second.send(get()).reply()
            with Client(server) as third:
                status, head, body = third.send(get()).reply()
                assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
                assert "Connection: close\r\n" in head
            first.send(get()).reply()
        until(lambda: not server._threads_of)
        with Client(server) as fourth:
            assert fourth.send(get()).reply()[0] == 200


def test_a_flood_over_the_limit_is_closed_without_a_word(monkeypatch: Any) -> None:
    monkeypatch.setattr(server_module, "_REFUSING", 0)
    with serving(echo, max_connections=0) as server, Client(server) as client:
        assert client.rest() == b""


# ---------------------------------------------------------------- applications that fail


@pytest.mark.parametrize("status, headers", [
    ("200 OK", [("X", "a\r\nSet-Cookie: b")]), ("200 OK", [("X", "a\n")]), ("200 OK", [("X\r\nY", "a")]),
    ("200 OK", [("X", "\u20ac")]), ("200 OK\r\nX: y", []), ("2000 OK", []), ("100 Continue", []), ("OK", []),
    ("200 OK", [("Content-Length", "-1")]), ("200 OK", [("Content-Length", "1_0")]),
])
def test_a_header_that_http_does_not_allow_is_not_sent(status: str, headers: Any, caplog: Any) -> None:
    def app(environ: Any, start_response: Any) -> List[bytes]:
        start_response(status, headers)
        return [b"ok"]

    with serving(app) as server, Client(server) as client:
        found, _, body = client.send(get()).reply()
        assert (found, json.loads(body)["error"]["code"]) == (500, "internal_error")
        assert client.rest() == b""
    assert "the application failed on GET '/'" in caplog.text


def raising(environ: Any, start_response: Any) -> Any:
    raise RuntimeError("secret")


def silent(environ: Any, start_response: Any) -> Any:
    return [b"x"]


def silent_stream(environ: Any, start_response: Any) -> Any:
    return iter([b"x"])


def twice(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)


def early(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", TEXT)
    raise ConnectionResetError("upstream, not the client")


@pytest.mark.parametrize("app", [raising, silent, silent_stream, twice, early])
def test_a_failure_before_the_head_is_a_500(app: Any, caplog: Any) -> None:
    with serving(app) as server:
        for _ in range(2):
            with Client(server) as client:
                status, head, body = client.send(get("/p?key=hidden")).reply()
                assert status == 500 and "Connection: close\r\n" in head
                assert b"secret" not in body and b"Traceback" not in body
    assert caplog.text.count("the application failed on GET '/p'") == 2
    assert "hidden" not in caplog.text


def test_a_failure_after_the_head_is_seen_as_a_cut(caplog: Any) -> None:
    closed = []

    class Failing:
        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            raise BodyError(408, "late") if closed_with_body_error else ConnectionResetError("upstream")

        def close(self) -> None:
            closed.append(True)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Failing()

    with serving(app) as server:
        for closed_with_body_error in (False, True):
            with Client(server) as client:
                data = client.send(get()).rest()
                assert data.startswith(b"HTTP/1.1 200 OK") and data.endswith(b"\r\n\r\n3\r\none\r\n")
    assert closed == [True, True]
    assert "the application failed on GET" in caplog.text


def test_a_failing_close_is_logged(caplog: Any) -> None:
    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"one"])

        def close(self) -> None:
            raise RuntimeError("at the end")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Body()

    with serving(app) as server, Client(server) as client:
        assert client.send(get()).rest().endswith(b"3\r\none\r\n0\r\n\r\n")
    assert "at the end" in caplog.text


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_closes_the_iterable_quietly(reset: bool, caplog: Any) -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x" * 1000
                time.sleep(0.001)
        finally:
            closed.set()

    with serving(app) as server:
        with Client(server) as client:
            client.send(get()).until(b"\r\n\r\n")
            if reset:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert closed.wait(LONG)
        until(lambda: not server._threads_of)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_client_that_takes_nothing_is_dropped() -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x" * 100000
        finally:
            closed.set()

    with serving(app, write_timeout=0.1) as server, Client(server) as client:
        client.send(get())
        assert closed.wait(LONG)


def test_a_handler_that_breaks_does_not_break_the_server(caplog: Any, monkeypatch: Any) -> None:
    def broken(sock: Any) -> Any:
        raise RuntimeError("no channel")

    with serving(echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr("vllm_bridge.server.connection.Channel", broken)
            with Client(server) as client:
                assert client.rest() == b""
        with Client(server) as client:
            assert client.send(get()).reply()[0] == 200
    assert "a connection failed" in caplog.text


# ---------------------------------------------------------------- many, and stopping


def test_five_hundred_connections_at_once() -> None:
    with serving(echo) as server:
        clients = [Client(server) for _ in range(500)]
        try:
            for client in clients:
                client.send(post(b"hi"))
            assert {client.reply()[0] for client in clients} == {200}
        finally:
            for client in clients:
                client.sock.close()
        until(lambda: not server._threads_of)


def test_running_answers_finish_and_idle_connections_end() -> None:
    started, go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/idle":
            return echo(environ, start_response)
        start_response("200 OK", TEXT)
        return running(environ["PATH_INFO"] == "/late")

    def running(late: bool) -> Iterator[bytes]:
        if not late:
            yield b"one"
        started.set()
        go.wait(LONG)
        yield b"two"

    with serving(app, graceful_timeout=LONG) as server:
        idle, fresh, busy, late = Client(server), Client(server), Client(server), Client(server)
        with idle, fresh, busy, late:
            idle.send(get("/idle")).reply()
            busy.send(get("/busy")).until(b"one\r\n")
            late.send(get("/late"))
            assert started.wait(LONG)
            until(lambda: len(server._threads_of) == 4 and len(server.idle) == 2)
            server.stop()
            assert idle.rest() == b"" and fresh.rest() == b""
            with pytest.raises(OSError):
                until(lambda: Client(server).sock.close() is not None)
            go.set()
            assert busy.rest() == b"3\r\ntwo\r\n0\r\n\r\n"
            data = late.rest()
            assert b"Connection: close\r\n" in data and data.endswith(b"3\r\ntwo\r\n0\r\n\r\n")


def test_what_does_not_finish_in_time_is_cut_off() -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x"
                time.sleep(0.01)
        finally:
            closed.set()

    with serving(app, graceful_timeout=0.1) as server, Client(server) as client:
        client.send(get()).until(b"x")
        server.shutdown()
        assert closed.is_set()
        assert not client.rest().endswith(b"0\r\n\r\n")
        assert not server._threads_of


def test_a_second_stop_shortens_the_first() -> None:
    go = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        go.set()
        environ["vllm_bridge.socket"].recv  # the socket is there to be watched
        return echo(environ, start_response)

    with serving(app) as server, Client(server) as client:
        client.send(get(lines="Content-Length: 5\r\n", method="POST"))
        assert go.wait(LONG)
        stopper = threading.Thread(target=server.shutdown, args=(1000,))
        stopper.start()
        until(lambda: server.stopping)
        server.shutdown(0)
        stopper.join(LONG)
        assert not stopper.is_alive()


def test_a_thread_that_does_not_end_is_named(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(server_module, "_LAST_JOIN", 0.05)
    go, entered = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        entered.set()
        go.wait(LONG)
        return echo(environ, start_response)

    with serving(app) as server, Client(server) as client:
        client.send(get())
        assert entered.wait(LONG)
        server.shutdown(0)
        assert "1 connections did not end" in caplog.text
        go.set()


def test_stopping_before_serving() -> None:
    with GatewayServer(echo) as server:
        server.shutdown()
        server.serve_forever()
    server.stop()  # and after it


def test_it_serves_on_a_socket_that_listens_already() -> None:
    sock = listen("127.0.0.1", 0)
    with serving(echo, sock=sock) as server, Client(server) as client:
        assert server.server_address == sock.getsockname()
        assert client.send(get()).reply()[0] == 200


def test_it_serves_ipv6() -> None:
    try:
        sock = listen("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(echo, sock=sock) as server, Client(server) as client:
        assert client.send(get()).reply()[0] == 200


def test_accepting_goes_on_after_a_failure(monkeypatch: Any, caplog: Any) -> None:
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError()]
    accept = GatewayServer.get_request

    def get_request(self: GatewayServer) -> Any:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(GatewayServer, "get_request", get_request)
    with serving(echo) as server, Client(server) as client:
        assert client.send(get()).reply()[0] == 200
    assert "Too many open files" in caplog.text


def test_a_connection_without_a_thread_is_closed(monkeypatch: Any, caplog: Any) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    with serving(echo) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server_module.threading.Thread, "start", start)
            with Client(server) as client:
                assert client.rest() == b""
        with Client(server) as client:
            assert client.send(get()).reply()[0] == 200
    assert "can't start new thread" in caplog.text


# ---------------------------------------------------------------- the channel


def test_lingering_ends(monkeypatch: Any) -> None:
    monkeypatch.setattr(channel, "_LINGER_IDLE", 0.01)
    left, right = socket.socketpair()
    with timed(left) as sock, right:
        right.send(b"x" * 1000)
        channel.Channel(sock, LONG).linger()
        assert right.recv(10) == b""
