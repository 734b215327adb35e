"""The three ways in which a body ends (RFC 9112 §6.3), however the bytes are cut."""

import pytest

from vllm_bridge.http1.body import Decoder, LengthDecoder
from vllm_bridge.http1.chunked import ChunkedDecoder
from vllm_bridge.http1.head import ProtocolError, RequestHead, ResponseHead

CHUNKS = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


def decoder(head) -> Decoder:
    return ChunkedDecoder() if head.chunked else LengthDecoder(head.body_length)


def of_request(lines: str) -> Decoder:
    return decoder(RequestHead(("POST / HTTP/1.1\r\nHost: a\r\n%s\r\n" % lines).encode()))


def of_response(lines: str) -> Decoder:
    return decoder(ResponseHead(("HTTP/1.1 200 OK\r\n%s\r\n" % lines).encode(), "POST"))


BOTH = pytest.mark.parametrize("made", [of_request, of_response])
LENGTH, CHUNKED = "Content-Length: 11\r\n", "Transfer-Encoding: chunked\r\n"


@BOTH
@pytest.mark.parametrize("lines, body", [(LENGTH, b"hello world"), (CHUNKED, CHUNKS)])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_body_is_taken_out_of_what_comes(made, lines, body, size):
    body_reader, data, read = made(lines), body + b"NEXT", b""
    for at in range(0, len(data), size):
        assert body_reader.finished is (at >= len(body))
        read += body_reader.feed(data[at:at + size])
    assert (read, body_reader.finished, body_reader.rest) == (b"hello world", True, b"NEXT")
    body_reader.end()


@BOTH
@pytest.mark.parametrize("lines, data", [
    (LENGTH, b""), (LENGTH, b"hell"), (CHUNKED, b"5\r\nhello\r\n"), (CHUNKED, b"0\r\n"),
])
def test_a_body_that_is_cut_is_told_from_one_that_ends(made, lines, data):
    body_reader = made(lines)
    body_reader.feed(data)
    assert not body_reader.finished
    with pytest.raises(ProtocolError, match="ended"):
        body_reader.end()


def test_no_body_is_finished_at_once():
    for body_reader in (of_request(""), of_request("Content-Length: 0\r\n"), of_response("Content-Length: 0\r\n")):
        assert body_reader.finished
        assert (body_reader.feed(b"NEXT"), body_reader.rest) == (b"", b"NEXT")


def test_a_response_of_no_known_length_ends_with_the_connection():
    body_reader = of_response("")
    assert body_reader.feed(b"all ") + body_reader.feed(b"of it") == b"all of it"
    assert not body_reader.finished
    body_reader.end()
    assert body_reader.finished and body_reader.rest == b""
