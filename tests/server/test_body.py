"""``wsgi.input``: what is read is the body, all of it, and no more."""

from typing import Any, Callable, List, Optional, Tuple

import pytest

from vllm_bridge.server.body import BodyError, RequestBody

TEXT = b"one\ntwo\n\nthree"


def body_of(pieces: List[bytes], length: Optional[int], most: Optional[int] = None) -> Tuple[RequestBody, List[bytes]]:
    left: List[bytes] = []
    source = iter(pieces)

    def more() -> bytes:
        try:
            return next(source)
        except StopIteration:
            raise BodyError(400, "cut") from None

    return RequestBody(more, left.append, length, most), left


def known(size: int) -> Tuple[RequestBody, List[bytes]]:
    data = TEXT + b"NEXT"
    return body_of([data[at:at + size] for at in range(0, len(data), size)], len(TEXT))


def in_chunks(size: int) -> Tuple[RequestBody, List[bytes]]:
    data = b"4\r\none\n\r\na\r\ntwo\n\nthree\r\n0\r\n\r\nNEXT"
    return body_of([data[at:at + size] for at in range(0, len(data), size)], None)


BOTH = pytest.mark.parametrize("make", [known, in_chunks])
SIZES = pytest.mark.parametrize("size", [1, 2, 5, 1000])


@BOTH
@SIZES
@pytest.mark.parametrize("read", [
    lambda body: body.read(), lambda body: body.read(None), lambda body: body.read(1000),
    lambda body: b"".join(iter(lambda: body.read(3), b"")), lambda body: b"".join(body),
    lambda body: b"".join(iter(body.readline, b"")), lambda body: b"".join(body.readlines()),
    lambda body: b"".join(iter(lambda: body.readline(2), b"")),
    lambda body: body.read(0) + body.readline() + body.read(),
    lambda body: body.readline(0) + body.read(1) + body.readline(None) + b"".join(body.readlines(None)),
])
def test_every_way_to_read_gives_the_body(make: Callable[..., Any], size: int, read: Callable[..., bytes]) -> None:
    body, left = make(size)
    assert read(body) == TEXT
    assert body.read() == body.readline() == b""
    assert body.unread == 0 and not body.failed
    assert b"NEXT".startswith(b"".join(left))


@BOTH
@SIZES
def test_lines_are_lines(make: Callable[..., Any], size: int) -> None:
    assert list(make(size)[0]) == [b"one\n", b"two\n", b"\n", b"three"]
    assert make(size)[0].readlines(5) == [b"one\n", b"two\n"]
    assert make(size)[0].readline(2) == b"on"


def test_what_follows_is_given_back() -> None:
    for make in (known, in_chunks):
        body, left = make(1000)
        assert body.drain()
        assert left == [b"NEXT"]


def test_how_much_is_unread() -> None:
    body, _ = known(5)
    assert body.unread == len(TEXT)
    body.read(5)
    assert body.unread == len(TEXT) - 5
    body, _ = in_chunks(5)
    assert body.unread is None


def test_a_cut_body_fails_for_good() -> None:
    for length, pieces in ((5, [b"hi"]), (None, [b"5\r\nhi"]), (None, [b"zzz"])):
        body, _ = body_of(pieces, length)
        for _ in range(2):
            with pytest.raises(BodyError) as caught:
                body.read()
            assert caught.value.status == 400 and str(caught.value)
        assert body.failed and not body.drain()


def test_a_chunked_body_is_limited() -> None:
    body, _ = body_of([b"5\r\nhello\r\n", b"1\r\n!\r\n0\r\n\r\n"], None, 5)
    assert body.read(5) == b"hello"
    with pytest.raises(BodyError) as caught:
        body.read()
    assert caught.value.status == 413


def test_no_body_at_all() -> None:
    body, left = body_of([], 0)
    assert (body.read(), body.readline(), list(body), body.unread, body.drain(), left) == (b"", b"", [], 0, True, [])
