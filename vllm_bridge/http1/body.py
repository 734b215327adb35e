"""Where a body ends (RFC 9112 §6.3): decoders, used by both sides; bytes in, bytes out."""

from typing import Optional, Protocol

from .head import ProtocolError

__all__ = ["Decoder", "LengthDecoder"]


class Decoder(Protocol):
    """Take a body out of the bytes of a connection, however they are cut.

    Feed it until ``finished``; ``rest`` is then what came after the body.
    """

    finished: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes that `data` completes; raises ProtocolError."""

    def end(self) -> None:
        """Take note that the input has ended; raises ProtocolError unless the body may end so."""


class LengthDecoder:
    """A body whose length the head has told, or with ``None`` a response's that ends with the connection."""

    __slots__ = ("finished", "rest", "_left")

    def __init__(self, length: Optional[int]) -> None:
        self.finished = length == 0
        self.rest = b""
        self._left = length

    def feed(self, data: bytes) -> bytes:
        """Return what of the data belongs to the body."""
        left = self._left
        if left is None:
            return data
        if len(data) < left:
            self._left = left - len(data)
            return data
        self.finished = True
        self._left = 0
        if len(data) > left:
            self.rest += data[left:]
            data = data[:left]
        return data

    def end(self) -> None:
        """Take note that the input has ended; raises ProtocolError unless the whole length was there."""
        if self._left:
            raise ProtocolError(400, "the connection ended %d bytes before the body's Content-Length" % self._left)
        self.finished = True
