"""The body of a request, received from the client while the application reads it."""

import socket
import time
from typing import Iterator

from ..errors import RequestCancelledError
from ..http1 import wait
from ..http1.body import Decoder, LengthDecoder
from ..http1.chunked import ChunkedDecoder
from ..http1.head import ProtocolError, RequestHead

__all__ = ["RequestBody"]

_BLOCK = 256 * 1024
_SKIPPED = 64 * 1024  # bytes of an unread body that are read to keep the connection
_NO_LIMIT = 1 << 62
_SLOWEST = 512  # bytes a second below which a client is cut off


class RequestBody:
    """Read the body of one request and not a byte more: a `request.Body`.

    `data` is what came with the head; `silence` is how many seconds the client may send nothing. Once the body is
    ``finished``, ``rest`` is what came after it.
    """

    __slots__ = (
        "finished", "rest", "_sock", "_decoder", "_length", "_data", "_silence", "_waited", "_received", "_size",
        "_wants_leave", "_broken",
    )

    def __init__(self, sock: socket.socket, head: RequestHead, data: bytes, silence: float) -> None:
        length = self._length = head.body_length
        if length is not None and length <= len(data):  # as a rule it comes with its head
            self.finished = True
            self.rest = data[length:]
            self._data = data[:length]
            return
        self.finished = False
        self.rest = self._data = data
        self._sock = sock
        self._decoder: Decoder = ChunkedDecoder() if length is None else LengthDecoder(length)
        self._silence = silence
        self._waited = 0.0  # seconds
        self._received = 0  # bytes that the decoder has seen
        self._size = 0  # bytes of the body that came out of them
        self._wants_leave = head.expect_continue and not data  # a client that sends it along needs no 100 Continue
        self._broken = False

    def read(self, limit: int) -> bytes:
        """Return all of it."""
        if not self.finished:
            return b"".join(self.blocks(limit))
        if len(self._data) > limit:
            raise _too_long(limit)
        return self._data

    def blocks(self, limit: int) -> Iterator[bytes]:
        """Yield it as it arrives."""
        if self.finished:
            yield self.read(limit)
        while not self.finished:
            block = self._next(limit)
            if block:
                yield block

    def is_skippable(self) -> bool:
        """Tell whether the rest is so short that it may be skipped for the next request."""
        if self._broken or self._wants_leave or self._length is None:
            return False
        return self._length - self._received <= _SKIPPED

    def skip(self) -> None:
        """Read and forget the rest of the body; raises ProtocolError."""
        while not self.finished:
            self._next(_NO_LIMIT)

    def _next(self, limit: int) -> bytes:
        if self._broken:
            raise ProtocolError(400, "the request body could not be read")
        if self._length is not None and self._length > limit:
            raise _too_long(limit)
        self._broken = True  # until it has come out well
        data, self._data = self._data or self._receive(), b""
        self._received += len(data)
        block = self._decoder.feed(data)
        self.finished, self.rest = self._decoder.finished, self._decoder.rest
        self._size += len(block)
        if self._size > limit:
            raise _too_long(limit)
        self._broken = False
        return block

    def _receive(self) -> bytes:
        started = time.monotonic()
        try:
            if self._wants_leave:
                self._wants_leave = False
                self._sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not wait.readable(self._sock, self._silence):
                raise ProtocolError(408, "nothing of the request body arrived for %g seconds" % self._silence)
            data = self._sock.recv(_BLOCK)
        except OSError as error:
            raise RequestCancelledError("the client left inside its body") from error
        if not data:
            raise ProtocolError(400, "the connection ended inside the request body")
        self._waited += time.monotonic() - started
        if self._waited > self._silence + self._received / _SLOWEST:
            raise ProtocolError(408, "the request body arrives too slowly")
        return data


def _too_long(limit: int) -> ProtocolError:
    return ProtocolError(413, "the request body is longer than the %d bytes that this server accepts" % limit)
