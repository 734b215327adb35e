"""Undo a response's Content-Encoding (RFC 9110 §8.4): gzip and deflate, as often as they were applied."""

import zlib
from typing import Any, Callable

from .head import ProtocolError

__all__ = ["decoded"]

_BLOCK = 256 * 1024  # bytes unpacked at a time: what a block becomes is never in memory whole
_MOST = 256 * 1024 * 1024  # bytes unpacked in all
_DEEPEST = 5  # codings upon each other

Read = Callable[[], bytes]


def decoded(read: Read, encoding: str) -> Read:
    """Return a function that reads the content below an encoding, block by block, where `read` reads the body.

    Raises ProtocolError for a coding that is not known here, and while reading.
    """
    names = [name.strip(" \t") for name in encoding.lower().split(",")]
    codings = [name for name in names if name != "identity"]
    if not set(codings) <= {"gzip", "x-gzip", "deflate"} or len(codings) > _DEEPEST:
        raise ProtocolError(400, "its Content-Encoding is %s, which nobody asked for" % encoding[:100])
    for coding in reversed(codings):
        read = _Unpacked(read, coding).read
    return read


class _Unpacked:
    """The content below one coding."""

    def __init__(self, below: Read, coding: str) -> None:
        self._below = below
        self._gzip = coding != "deflate"
        self._unpacker: Any = None
        self._packed = b""  # read, still to be unpacked
        self._size = 0

    def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the end."""
        while True:
            if not self._packed:
                self._packed = self._below()
                if not self._packed:
                    if self._unpacker is not None and not self._unpacker.eof:
                        raise ProtocolError(400, "its compressed content is cut off")
                    return b""
            block = self._unpacked()
            if block:
                self._size += len(block)
                if self._size > _MOST:
                    raise ProtocolError(400, "it is longer than %d bytes when unpacked" % _MOST)
                return block

    def _unpacked(self) -> bytes:
        packed = self._packed
        if self._unpacker is None:
            # "deflate" is zlib's format; some servers send what is inside of it alone.
            bare = not self._gzip and (packed[0] & 15 != 8 or packed[0] >> 4 > 7)
            self._unpacker = zlib.decompressobj(31 if self._gzip else -15 if bare else 15)
        elif self._unpacker.eof:
            if not self._gzip or packed[0] != 31:  # what follows is no further member of the file
                self._packed = b""
                return b""
            self._unpacker = zlib.decompressobj(31)
        try:
            block: bytes = self._unpacker.decompress(packed, _BLOCK)
        except zlib.error as error:
            coding = "gzip" if self._gzip else "deflate"
            raise ProtocolError(400, "its content is not %s: %s" % (coding, error)) from None
        self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
        return block
