"""Where a body ends (RFC 9112 §6.3): three readers, used by both sides; bytes in, bytes out."""

from typing import Protocol, Union

from .chunked import ChunkedDecoder
from .head import ProtocolError, RequestHead, ResponseHead

__all__ = ["Reader", "reader"]


class Reader(Protocol):
    """Take a body out of the bytes of a connection, however they are cut.

    Feed it until ``finished``; ``rest`` is then what came after the body.
    """

    finished: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes that `data` completes; raises ProtocolError."""

    def end(self) -> None:
        """Take note that the input has ended; raises ProtocolError unless the body may end so."""


def reader(head: Union[RequestHead, ResponseHead]) -> Reader:
    """Return the reader of the body that follows a head."""
    if head.chunked:
        return ChunkedDecoder()
    return _UntilTheEnd() if head.body_length is None else _ByLength(head.body_length)


class _ByLength:
    """A body whose length the head has told."""

    __slots__ = ("finished", "rest", "_left")

    def __init__(self, length: int) -> None:
        self.finished = not length
        self.rest = b""
        self._left = length

    def feed(self, data: bytes) -> bytes:
        left = self._left
        self._left -= len(data)
        if self._left > 0:
            return data
        if self._left < 0:
            self.rest += data[left:]
            data = data[:left]
            self._left = 0
        self.finished = True
        return data

    def end(self) -> None:
        if not self.finished:
            raise ProtocolError(400, "the connection ended %d bytes before the body's Content-Length" % self._left)


class _UntilTheEnd:
    """A response's body that ends with the connection."""

    __slots__ = ("finished", "rest")

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        self.finished = True
