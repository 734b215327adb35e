"""Heads by RFC 9112: what is read, what is refused, and that neither depends on how the bytes are cut."""

import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.http1 import head
from vllm_bridge.http1.head import (
    ProtocolError, field_block, find_head_end, parse_fields, RequestHead, ResponseHead,
)

HOST = b"Host: a.example\r\n"


def request(lines: bytes = b"", line: bytes = b"POST /v1 HTTP/1.1", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + lines + b"\r\n"


# ---------------------------------------------------------------- requests that are read


def test_a_request_is_read_whole() -> None:
    head = RequestHead(
        b"POST /v1/chat/completions?a=1&b=%20 HTTP/1.1\r\nHost: localhost:8080\r\nX-Two: one\r\n"
        b"Content-Length: 12\r\nx-two:\ttwo \t\r\nEmpty:\r\nAccent: caf\xe9\r\n\r\n"
    )
    assert (head.method, head.target, head.version) == ("POST", "/v1/chat/completions?a=1&b=%20", "HTTP/1.1")
    assert head.fields == {
        "host": "localhost:8080", "x-two": "one, two", "content-length": "12", "empty": "", "accent": "caf\xe9",
    }
    assert head.body_length == 12
    assert (head.chunked, head.keep_alive, head.expect_continue) == (False, True, False)


@pytest.mark.parametrize("line, connection, keep", [
    (b"GET / HTTP/1.1", b"", True),
    (b"GET / HTTP/1.1", b"Connection: keep-alive\r\n", True),
    (b"GET / HTTP/1.1", b"Connection: Keep-Alive, Upgrade\r\n", True),
    (b"GET / HTTP/1.1", b"Connection: x, CLOSE\r\n", False),
    (b"GET / HTTP/1.1", b"Connection: x\r\nConnection: close\r\n", False),
    (b"GET / HTTP/1.0", b"", False),
    (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", True),
    (b"GET / HTTP/1.0", b"Connection: Keep-Alive\r\n", True),
    (b"GET / HTTP/1.0", b"Connection: keep-alive, close\r\n", False),
])
def test_keep_alive(line: bytes, connection: bytes, keep: bool) -> None:
    assert RequestHead(request(connection, line)).keep_alive is keep


def test_chunked_and_expect() -> None:
    head = RequestHead(request(b"Transfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n"))
    assert (head.chunked, head.body_length, head.expect_continue) == (True, None, True)
    assert RequestHead(request(b"Expect: 100-continue\r\n")).expect_continue is False
    old = RequestHead(request(b"Expect: 100-continue\r\nContent-Length: 3\r\n", b"POST / HTTP/1.0"))
    assert old.expect_continue is False


def test_a_request_without_length_has_no_body() -> None:
    assert RequestHead(request()).body_length == 0


def test_cookies_are_joined_their_own_way() -> None:
    assert RequestHead(request(b"Cookie: a=1\r\nCookie: b=2\r\n")).fields["cookie"] == "a=1; b=2"


@pytest.mark.parametrize("target, read, host", [
    (b"http://b.example:81/x?y=http://z", "/x?y=http://z", "b.example:81"),
    (b"HTTP://b.example", "/", "b.example"),
    (b"https://[::1]:1?q", "/?q", "[::1]:1"),
])
def test_an_absolute_target_names_the_host(target: bytes, read: str, host: str) -> None:
    head = RequestHead(request(line=b"GET " + target + b" HTTP/1.1"))
    assert (head.target, head.fields) == (read, {"host": host})


def test_options_of_the_server_itself() -> None:
    assert RequestHead(request(line=b"OPTIONS * HTTP/1.1")).target == "*"
    assert RequestHead(request(line=b"OPTIONS http://b.example HTTP/1.1")).target == "*"


def test_http_1_0_needs_no_host() -> None:
    head = RequestHead(b"GET / HTTP/1.0\r\n\r\n")
    assert (head.version, head.fields) == ("HTTP/1.0", {})


def test_the_limits_are_what_is_still_read() -> None:
    RequestHead(request(line=b"GET /" + b"a" * (8192 - 14) + b" HTTP/1.1"))
    RequestHead(request(b"a: b\r\n" * 99))
    RequestHead(request(b"a: " + b"b" * 60000 + b"\r\n"))


# ---------------------------------------------------------------- requests that are refused

REFUSED = [
    # framing (RFC 9112 §6): two readers could see two messages
    ("two lengths", request(b"Content-Length: 5\r\nContent-Length: 6\r\n"), 400),
    ("the same length twice", request(b"Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
    ("a list of lengths", request(b"Content-Length: 5, 5\r\n"), 400),
    ("a signed length", request(b"Content-Length: +5\r\n"), 400),
    ("a negative length", request(b"Content-Length: -5\r\n"), 400),
    ("an underscored length", request(b"Content-Length: 1_0\r\n"), 400),
    ("a hexadecimal length", request(b"Content-Length: 0x5\r\n"), 400),
    ("a fraction", request(b"Content-Length: 5.0\r\n"), 400),
    ("an empty length", request(b"Content-Length:\r\n"), 400),
    ("digits of another script", request("Content-Length: \u00b2\r\n".encode("latin-1")), 400),
    ("a length beyond counting", request(b"Content-Length: " + b"9" * 30 + b"\r\n"), 400),
    ("length and chunked", request(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked and length", request(b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), 400),
    ("chunked twice", request(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    ("chunked, chunked", request(b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    ("xchunked", request(b"Transfer-Encoding: xchunked\r\n"), 400),
    ("vertical tab before chunked", request(b"Transfer-Encoding: \x0bchunked\r\n"), 400),
    ("no coding", request(b"Transfer-Encoding:\r\n"), 400),
    ("identity", request(b"Transfer-Encoding: identity\r\n"), 400),
    ("chunked not last", request(b"Transfer-Encoding: chunked, gzip\r\n"), 400),
    ("a coding that is not offered", request(b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    ("chunked in HTTP/1.0", request(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.0"), 400),
    # lines
    ("a folded header", request(b"X: a\r\n b\r\n"), 400),
    ("a header folded by a tab", request(b"X: a\r\n\tb\r\n"), 400),
    ("a folded first header", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("a bare LF", request(b"X: a\nContent-Length: 5\r\n"), 400),
    ("a bare CR", request(b"X: a\rContent-Length: 5\r\n"), 400),
    ("CR CR LF", request(b"X: a\r\r\n"), 400),
    ("a bare LF after the request line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    ("space before the colon", request(b"Content-Length : 5\r\n"), 400),
    ("tab before the colon", request(b"Content-Length\t: 5\r\n"), 400),
    ("an empty name", request(b": x\r\n"), 400),
    ("no colon", request(b"Content-Length 5\r\n"), 400),
    ("a space in the name", request(b"X Y: 1\r\n"), 400),
    ("an accent in the name", request(b"X\xe9: 1\r\n"), 400),
    ("a bracket in the name", request(b"X[]: 1\r\n"), 400),
    ("NUL in a value", request(b"X: a\x00b\r\n"), 400),
    ("DEL in a value", request(b"X: a\x7fb\r\n"), 400),
    ("escape in a value", request(b"X: \x1b[0m\r\n"), 400),
    # Host
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", request(b"Host: b\r\n"), 400),
    ("the same Host twice", request(HOST), 400),
    ("two Hosts in HTTP/1.0", request(b"Host: b\r\n", b"GET / HTTP/1.0"), 400),
    ("a Host with a path", request(host=b"Host: a/b\r\n"), 400),
    ("a Host with a user", request(host=b"Host: a@b\r\n"), 400),
    ("two Hosts in one", request(host=b"Host: a, b\r\n"), 400),
    # request line
    ("HTTP/0.9", b"GET /\r\n\r\n", 400),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\n", 505),
    ("HTTP/3.0", request(line=b"GET / HTTP/3.0"), 505),
    ("HTTP/1.2", request(line=b"GET / HTTP/1.2"), 505),
    ("HTTP/1.10", request(line=b"GET / HTTP/1.10"), 400),
    ("HTTP/01.1", request(line=b"GET / HTTP/01.1"), 400),
    ("http/1.1", request(line=b"GET / http/1.1"), 400),
    ("two spaces", request(line=b"GET  / HTTP/1.1"), 400),
    ("a tab between", request(line=b"GET\t/ HTTP/1.1"), 400),
    ("a leading space", request(line=b" GET / HTTP/1.1"), 400),
    ("a trailing space", request(line=b"GET / HTTP/1.1 "), 400),
    ("a space in the target", request(line=b"GET /a b HTTP/1.1"), 400),
    ("a fragment", request(line=b"GET /a#b HTTP/1.1"), 400),
    ("bytes over 127 in the target", request(line=b"GET /\xc3\xa9 HTTP/1.1"), 400),
    ("NUL in the target", request(line=b"GET /\x00 HTTP/1.1"), 400),
    ("a bad method", request(line=b"GE(T / HTTP/1.1"), 400),
    ("a relative target", request(line=b"GET v1 HTTP/1.1"), 400),
    ("* with GET", request(line=b"GET * HTTP/1.1"), 400),
    ("another scheme", request(line=b"GET ftp://a/ HTTP/1.1"), 400),
    ("an absolute target with a user", request(line=b"GET http://u@a/ HTTP/1.1"), 400),
    ("an absolute target without host", request(line=b"GET http:///x HTTP/1.1"), 400),
    ("CONNECT", request(line=b"CONNECT a:443 HTTP/1.1"), 501),
    ("another Expect", request(b"Expect: 200-ok\r\n"), 417),
    # size
    ("a long request line", request(line=b"GET /" + b"a" * (8193 - 14) + b" HTTP/1.1"), 414),
    ("101 headers", request(b"a: b\r\n" * 100), 431),
    ("more than 64 KiB", request(b"a: " + b"b" * 65536 + b"\r\n"), 431),
    ("no end", b"GET / HTTP/1.1\r\nHost: a\r\n", 400),
    ("two ends", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n", 400),
    ("nothing", b"", 400),
]


@pytest.mark.parametrize("head, status", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_request_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        RequestHead(head)
    assert caught.value.status == status
    assert str(caught.value) == caught.value.message != ""


def test_the_fault_is_named() -> None:
    for lines, words in [
        (b"X: a\r\n b\r\n", "folded"), (b"X : a\r\n", "before the colon"), (b"X\r\n", "no colon"),
        (b"X: a\nb\r\n", "CRLF"), (b"(: a\r\n", "name"), (b"X: \x01\r\n", "control character"),
    ]:
        with pytest.raises(ProtocolError, match=words):
            RequestHead(request(lines))


def test_an_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ProtocolError(414, "too long")))
    assert (error.status, error.message) == (414, "too long")


@pytest.mark.parametrize("hostile", [
    b"a:" + b" " * 65000, b"a" * 65000, b"a:b\r\n" * 13000 + b"x", b"a:" + b"\t " * 32000 + b"\x00", b"\r\n" * 32000,
])
def test_no_head_costs_more_than_its_length(hostile: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(ProtocolError):
        RequestHead(b"GET / HTTP/1.1\r\n" + hostile + b"\r\n")
    # Milliseconds when linear, minutes when not.
    assert time.perf_counter() - started < 5


# ---------------------------------------------------------------- heads that are still arriving


@pytest.mark.parametrize("step", [1, 2, 7])
def test_the_end_is_found_however_the_head_is_cut(step: int) -> None:
    head = request(b"X: y\r\n") + b"body\r\n\r\n"
    end = head.index(b"\r\n\r\n") + 4
    buffer = bytearray()
    for start in range(0, len(head), step):
        seen = len(buffer)
        buffer += head[start:start + step]
        found = find_head_end(buffer, seen)
        assert found == (end if len(buffer) >= end else -1)
        if found > 0:
            break


@pytest.mark.parametrize("data, status", [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS hello
    (b"\x00", 400),
    (b"{\"model\"", 400),
    (b"GET / FTP", 400),
    (b"GET / HTTP/1.1\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\nX", 400),
    (b"GET / HTTP/1.1\r\nHost: a\rX", 400),
    (b"GET /\r\n", 400),
    (b"PRI * HTTP/2.0\r\n", 505),
    (b"A" * 8193, 414),
    (b"GET /" + b"a" * 8190 + b"\r\n", 414),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, 431),
])
def test_nobody_waits_for_the_end_of_what_cannot_be_a_head(data: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        find_head_end(data)
    assert caught.value.status == status


@pytest.mark.parametrize("cut", range(1, 40))
def test_every_start_of_a_good_head_may_go_on(cut: int) -> None:
    assert find_head_end(request(b"Content-Length: 5\r\n")[:cut]) == -1
    assert find_head_end(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: yyyy\r\n\r\n"[:cut], request=False) == -1


def test_the_start_of_a_response_is_checked_too() -> None:
    with pytest.raises(ProtocolError):
        find_head_end(b"SSH-2.0-OpenSSH_9", request=False)
    with pytest.raises(ProtocolError) as caught:
        find_head_end(b"HTTP/1.1 200 " + b"x" * 9000, request=False)
    assert caught.value.status == 431


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"\n", b"\r", b" ", b":"]),
), max_size=12))
def test_whatever_comes_is_read_or_refused(parts: list) -> None:
    data = b"".join(parts)
    for read in (find_head_end, RequestHead, lambda head: ResponseHead(head, "GET")):
        try:
            read(data)
        except ProtocolError:
            pass


# ---------------------------------------------------------------- responses


def response(lines: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + lines + b"\r\n"


def test_a_response_is_read() -> None:
    head = ResponseHead(response(b"Server: uvicorn\r\nContent-Length: 5\r\n"), "POST")
    assert (head.status, head.reason, head.version) == (200, "OK", "HTTP/1.1")
    assert (head.body_length, head.chunked, head.keep_alive) == (5, False, True)
    assert head.fields == {"server": "uvicorn", "content-length": "5"}


@pytest.mark.parametrize("line, reason", [
    (b"HTTP/1.1 404 Not Found", "Not Found"), (b"HTTP/1.1 404 ", ""), (b"HTTP/1.1 404", ""),
    (b"HTTP/1.1 404 Pas trouv\xe9", "Pas trouv\xe9"),
])
def test_the_reason_is_anything_or_nothing(line: bytes, reason: str) -> None:
    assert ResponseHead(response(line=line), "GET").reason == reason


# RFC 9112 §6.3, in its order.
@pytest.mark.parametrize("method, line, lines, length, chunked, keep", [
    ("HEAD", b"HTTP/1.1 200 OK", b"Content-Length: 5\r\n", 0, False, True),
    ("HEAD", b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked\r\n", 0, False, True),
    ("GET", b"HTTP/1.1 100 Continue", b"", 0, False, True),
    ("GET", b"HTTP/1.1 204 No Content", b"", 0, False, True),
    ("GET", b"HTTP/1.1 304 Not Modified", b"Content-Length: 5\r\n", 0, False, True),
    ("GET", b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked\r\n", None, True, True),
    ("GET", b"HTTP/1.1 200 OK", b"", None, False, False),
    ("GET", b"HTTP/1.0 200 OK", b"Content-Length: 5\r\n", 5, False, False),
    ("GET", b"HTTP/1.0 200 OK", b"Content-Length: 5\r\nConnection: keep-alive\r\n", 5, False, True),
    ("GET", b"HTTP/1.1 200 OK", b"Content-Length: 0\r\nConnection: close\r\n", 0, False, False),
])
def test_how_long_a_response_is(method: str, line: bytes, lines: bytes, length: int, chunked: bool, keep: bool) -> None:
    head = ResponseHead(response(lines, line), method)
    assert (head.body_length, head.chunked, head.keep_alive) == (length, chunked, keep)


@pytest.mark.parametrize("head", [
    response(b"Content-Length: 5\r\nContent-Length: 5\r\n"),
    response(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    response(b"Transfer-Encoding: gzip, chunked\r\n"),
    response(b"Transfer-Encoding: chunked\r\n", b"HTTP/1.0 200 OK"),
    response(b"X: a\r\n b\r\n"), response(b"X : a\r\n"), response(b"X: a\nY: b\r\n"), response(b"X: \x00\r\n"),
    response(line=b"HTTP/1.1 20 OK"), response(line=b"HTTP/1.1 2000 OK"), response(line=b"HTTP/1.1 099 X"),
    response(line=b"HTTP/1.1  200 OK"), response(line=b"HTTP/1.1 +20 OK"), response(line=b"HTTP/2 200"),
    response(line=b"ICY 200 OK"), response(line=b"HTTP/1.1 200 \x00"), response(b"a: b\r\n" * 101),
])
def test_a_response_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseHead(head, "GET")


# ---------------------------------------------------------------- written


def test_lines_are_written_as_they_are_read() -> None:
    fields = [("Content-Type", "text/plain"), ("x", ""), ("y", "a: b\t\xe9")]
    assert field_block(fields) == "Content-Type: text/plain\r\nx: \r\ny: a: b\t\xe9\r\n"
    assert parse_fields(field_block(fields)) == {"content-type": "text/plain", "x": "", "y": "a: b\t\xe9"}
    assert field_block([]) == ""


@pytest.mark.parametrize("name, value", [
    ("x", "a\r\nSet-Cookie: b"), ("x", "a\n"), ("x", "a\r"), ("x", "\x00"), ("x", "\u20ac"), ("", "a"), ("a b", "c"),
    ("x:\r\ny", "a"), ("x: y", "a"), ("x:y", "a"), ("x", "a\r\ny\0b"), ("x\0a\r\ny", "b"), ("x", "\x7f"),
    ("x\xe9", "a"),
])
def test_a_line_that_would_be_read_as_another_is_not_written(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        field_block([("before", "1"), (name, value), ("after", "2")])


@pytest.mark.parametrize("block", ["a: b", "a : b\r\n", " a: b\r\n", "a: b\r\n\r\n", "a: b\nc: d\r\n"])
def test_lines_of_which_one_is_none(block: str) -> None:
    with pytest.raises(ProtocolError):
        parse_fields(block)


def test_the_fields_of_one_connection_are_those_of_the_rfc() -> None:
    """RFC 9110 §7.6.1, the two for proxies' logins of §11.7, and what old proxies add."""
    assert head.HOP_BY_HOP == {
        "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
        "proxy-authenticate", "proxy-authorization",
    }


def test_http_1_1_needs_a_host() -> None:
    """RFC 9112 §3.2."""
    assert head.RequestHead(b"GET / HTTP/1.0\r\n\r\n").fields == {}
    with pytest.raises(head.ProtocolError) as caught:
        head.RequestHead(b"GET / HTTP/1.1\r\n\r\n")
    assert caught.value.status == 400
