"""Chunked bodies (RFC 9112 §7.1), taken apart strictly however the bytes are cut; no sockets."""

import re
from typing import List

from .head import ProtocolError, parse_fields

__all__ = ["ChunkedDecoder"]

MAX_EXTENSION = 256  # bytes of extensions on one chunk
MAX_EXTENSIONS = 4 * 1024  # bytes of extensions in one body
MAX_TRAILER = 8 * 1024  # bytes of trailer lines

# chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF. The line end of the chunk before belongs to the size line here,
# so that one match does for both; the decoder puts one before the first.
_SIZE_LINE = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})([\t ]*;[\t -~\x80-\xff]*)?\r\n").match
_SIZE_LINE_START = rb"\r?|\r\n(?:[0-9A-Fa-f]{1,15}(?:[\t ]*(?:;[\t -~\x80-\xff]*)?)?\r?)?"
_BARE_LINE_END = rb"(?<!\r)\n|\r(?!\n)(?!\Z)"
_LONGEST_LINE = MAX_EXTENSION + 20


class ChunkedDecoder:
    """Read a body in chunks: a `body.Decoder`. Trailers are read strictly, and forgotten."""

    __slots__ = ("finished", "rest", "_left", "_pending", "_extensions")

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""
        self._left = 0  # bytes still missing to a chunk; 0 before a size line, -1 in the trailer
        self._pending = b"\r\n"  # framing that has come in part
        self._extensions = 0

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes that `data` completes; raises ProtocolError."""
        left = self._left
        if len(data) < left:
            self._left -= len(data)
            return data
        if self.finished:
            self.rest += data
            return b""
        data = self._pending + data
        pieces: List[bytes] = []
        at = 0
        try:
            while left >= 0:
                if left:
                    piece = data[at:at + left]
                    pieces.append(piece)
                    at += len(piece)
                    left -= len(piece)
                    if left:
                        break
                match = _SIZE_LINE(data, at)
                if match is None:
                    if data[at:] != b"\r\n":  # mostly a write of the server's ends with a chunk
                        _check_start(data[at:at + _LONGEST_LINE])
                    break
                if match.group(2):
                    self._check_extension(len(match.group(2)))
                at = match.end()
                left = int(match.group(1), 16) or -1
            if left < 0:
                at = self._trailer(data, at)
        except ProtocolError as fault:
            fault.before = b"".join(pieces)
            raise
        self._left = left
        self._pending = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def end(self) -> None:
        """Take note that the input has ended; raises ProtocolError unless the last chunk was there."""
        if not self.finished:
            raise ProtocolError(400, "the connection ended inside a chunked body")

    def _check_extension(self, size: int) -> None:
        self._extensions += size
        if size > MAX_EXTENSION or self._extensions > MAX_EXTENSIONS:
            raise ProtocolError(400, "the chunk extensions are too long")

    def _trailer(self, data: bytes, at: int) -> int:
        """Read the trailer at `at`, if all of it is there; return how far `data` is used up."""
        if data.startswith(b"\r\n", at):
            end = at + 2
        else:
            found = data.find(b"\r\n\r\n", at, at + MAX_TRAILER)
            if found < 0:
                if len(data) - at >= MAX_TRAILER:
                    raise ProtocolError(400, "the trailer is longer than %d bytes" % MAX_TRAILER)
                if re.compile(_BARE_LINE_END).search(data, at) is not None:
                    raise ProtocolError(400, "a line of the trailer does not end in CRLF")
                return at
            end = found + 4
            parse_fields(data[at:found + 2].decode("latin-1"))
        self.finished = True
        self.rest = data[end:]
        return len(data)


def _check_start(line: bytes) -> None:
    """Raise for what cannot become a size line."""
    if not b"\r\n".startswith(line[:2]):
        raise ProtocolError(400, "a chunk is longer than its size says")
    if len(line) == _LONGEST_LINE or re.fullmatch(_SIZE_LINE_START, line) is None:
        raise ProtocolError(400, "a chunk does not start with its size in hexadecimal digits")
