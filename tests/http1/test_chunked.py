"""Chunked bodies by RFC 9112 §7.1: the same bytes out however they are cut, and no guesses."""

import pickle
from typing import List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.http1.chunked import ChunkedDecoder
from vllm_bridge.http1.head import ProtocolError

BODY = b"5\r\nhello\r\n1;name=value\r\n \r\nA ; x=\"y\"\r\n0123456789\r\n0\r\nX-Check: 1 \r\nY:\r\n\r\nNEXT"


def test_a_body_in_one_piece() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(BODY) == b"hello 0123456789"
    assert decoder.finished
    assert decoder.rest == b"NEXT"
    assert decoder.feed(b"MORE") == b""
    assert decoder.rest == b"NEXTMORE"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_a_body_cut_into_pieces(size: int) -> None:
    decoder = ChunkedDecoder()
    read = b"".join(decoder.feed(BODY[at:at + size]) for at in range(0, len(BODY), size))
    assert (read, decoder.finished, decoder.rest) == (b"hello 0123456789", True, b"NEXT")


@pytest.mark.parametrize("cut", range(len(BODY)))
def test_a_body_cut_once_anywhere(cut: int) -> None:
    decoder = ChunkedDecoder()
    read = decoder.feed(BODY[:cut]) + decoder.feed(BODY[cut:])
    assert (read, decoder.finished, decoder.rest) == (b"hello 0123456789", True, b"NEXT")


def test_each_part_of_a_chunk_is_handed_out_when_it_comes() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"a\r\n01") == b"01"
    assert decoder.feed(b"23") == b"23"
    assert decoder.feed(b"456789") == b"456789"
    assert not decoder.finished


def test_a_body_that_stops_is_not_finished() -> None:
    for cut in (b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"5\r\nhello\r\n0\r\n", b"0\r\nX: y\r\n"):
        decoder = ChunkedDecoder()
        decoder.feed(cut)
        assert not decoder.finished
        with pytest.raises(ProtocolError):
            decoder.end()


@pytest.mark.parametrize("body", [
    b"+5\r\nhello\r\n", b"-5\r\n", b"0x5\r\nhello\r\n", b"1_0\r\n", b" 5\r\nhello\r\n", b"5 \r\nhello\r\n", b"\r\n",
    b"g\r\n", b";x\r\n", b"5\nhello\n", b"5\r\r\nhello", b"5;a\nb\r\nhello\r\n", b"5;\x00\r\nhello",
    b"0000000000000005\r\nhello\r\n", b"f" * 16 + b"\r\n", b"f" * 300,
    b"5;" + b"x" * 300 + b"\r\nhello", b"5;" + b"x" * 300,
    b"5\r\nhello!\r\n", b"5\r\nhelloX", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n",
    b"0\r\nX : y\r\n\r\n", b"0\r\n y\r\n\r\n", b"0\r\nX: y\nZ: z\r\n\r\n", b"0\r\nX: y\n", b"0\r\nnocolon\r\n\r\n",
    b"0\r\nX: " + b"y" * 9000, b"0\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
    b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n" * 100,
])
@pytest.mark.parametrize("size", [1, 100000])
def test_broken_framing_is_refused(body: bytes, size: int) -> None:
    decoder = ChunkedDecoder()
    with pytest.raises(ProtocolError) as caught:
        for at in range(0, len(body), size):
            decoder.feed(body[at:at + size])
    assert caught.value.status == 400
    assert not decoder.finished


def test_an_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ProtocolError(400, "cut")))
    assert (error.status, str(error)) == (400, "cut")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.binary(min_size=1, max_size=30), max_size=8), st.integers(1, 9))
def test_what_is_chunked_comes_back(pieces: List[bytes], size: int) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\nrest"
    decoder = ChunkedDecoder()
    read = b"".join(decoder.feed(wire[at:at + size]) for at in range(0, len(wire), size))
    assert (read, decoder.rest) == (b"".join(pieces), b"rest")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b"5\r\n", b"\r\n", b"0\r\n", b"hello"])), max_size=9))
def test_whatever_comes_is_read_or_refused(parts: List[bytes]) -> None:
    decoder = ChunkedDecoder()
    try:
        for part in parts:
            decoder.feed(part)
    except ProtocolError:
        pass


# ---------------------------------------------------------------- one chunk at a time, as a server writes events


def test_chunk_after_chunk() -> None:
    decoder = ChunkedDecoder()
    for _ in range(3):
        assert decoder.feed(b"5\r\nhello\r\n") == b"hello"
        assert decoder.feed(b"A\r\n0123456789\r\n") == b"0123456789"
        assert decoder.feed(b"4\r\n\r\n\r\n\r\n") == b"\r\n\r\n"
    assert decoder.feed(b"5\r\nhello\r\n1\r\n!") == b"hello!"
    assert decoder.feed(b"\r\n5\r\nhel") == b"hel"
    assert decoder.feed(b"lo\r\n") == b"lo"
    assert decoder.feed(b"5\r\nhello\r\n") == b"hello"
    assert decoder.feed(b"0\r\n\r\n") == b"" and decoder.finished and decoder.rest == b""


@pytest.mark.parametrize("chunk", [
    b"5\r\nhell\r\n\r\n", b"5\r\nhello!\r\n", b"5\r\nhello\n\n", b" 5\r\nhello\r\n", b"+5\r\nhello\r\n",
    b"0x5\r\nhello\r\n", b"5_0\r\nhello\r\n", b"\r\nhello\r\n",
])
def test_a_chunk_whose_size_is_wrong_is_refused_also_after_many(chunk: bytes) -> None:
    decoder = ChunkedDecoder()
    for _ in range(3):
        assert decoder.feed(b"5\r\nhello\r\n") == b"hello"
    with pytest.raises(ProtocolError):
        decoder.feed(chunk)
        decoder.feed(b"0\r\n\r\n")


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_many_chunks_in_one_piece(cut: int) -> None:
    pieces = [b"x" * (1 + number * 7 % 23) + b"%d\n\n" % number for number in range(40)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    decoder = ChunkedDecoder()
    read = decoder.feed(body[:cut]) + decoder.feed(body[cut:] + b"NEXT"[:cut % 5])
    assert read == b"".join(pieces)
    assert decoder.finished and decoder.rest == b"NEXT"[:cut % 5]
    decoder.end()


@pytest.mark.parametrize("bad", [
    b"5\r\nhello\r\n4\r\nhello\r\n5\r\nhello\r\n", b"5\r\nhello\r\nhello\r\n",
    b"5\r\nhello\r\n5\r\nhell\r\n5\r\nhello\r\n",
    b"5\r\nhello\r\n 5\r\nhello\r\n", b"5\r\nhello\r\n\r\n5\r\nhello\r\n",
])
def test_one_wrong_size_among_many_is_refused_and_what_came_before_is_kept(bad: bytes) -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"5\r\nhello\r\n4\r\nhell\r\n") == b"hellohell"
    with pytest.raises(ProtocolError) as raised:
        decoder.feed(bad)
        decoder.feed(b"0\r\n\r\n")
    assert raised.value.before.startswith(b"hello")


def test_a_chunk_that_holds_line_ends_among_many() -> None:
    body = b"5\r\nhello\r\nc\r\nab\r\n5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n"
    inside = b"hello" + b"ab\r\n5\r\nhello" + b"hello"
    decoder = ChunkedDecoder()
    decoder.feed(b"5\r\nhello\r\n")
    assert decoder.feed(body) == inside and decoder.finished


@pytest.mark.parametrize("count, taken", [(16, True), (17, False)])
def test_extensions_are_limited_over_the_whole_body(count: int, taken: bool) -> None:
    """4 KiB in all, 256 bytes on one chunk."""
    body = b"".join(b"1;%b\r\na\r\n" % (b"x" * 255) for _ in range(count)) + b"0\r\n\r\n"
    decoder = ChunkedDecoder()
    if taken:
        assert decoder.feed(body) == b"a" * count and decoder.finished
    else:
        with pytest.raises(ProtocolError, match="extensions are too long"):
            decoder.feed(body)
