"""Chunked bodies (RFC 9112 §7.1), taken apart strictly however the bytes are cut; no sockets.

The gateway's server reads request bodies with it, the adapter response bodies.
"""

import re
from typing import Dict, List, Tuple

from .header_lines import Pairs, checked_fields
from .head import ProtocolError

__all__ = ["ChunkError", "ChunkedDecoder"]

MAX_EXTENSION = 256  # bytes of extensions on one chunk
MAX_EXTENSIONS = 4 * 1024  # bytes of extensions in one body
MAX_TRAILER = 8 * 1024  # bytes of trailer lines

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([\t ]*;[\t -~\x80-\xff]*)?\r\n")
_NEXT_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})\r\n").match
_CHUNK_LINE_START = rb"[0-9A-Fa-f]{1,15}(?:[\t ]*(?:;[\t -~\x80-\xff]*)?)?\r?"
_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)
_BARE_LF = rb"(?<!\r)\n|\r(?!\n)(?!\Z)"

_LAST = b"0\r\n\r\n"

# The sizes of chunks as they were written: a stream's events have a few hundred different lengths.
_SIZES_KEPT = 4096
_sizes: Dict[bytes, int] = {}


class ChunkError(ProtocolError):
    """The framing of a chunked body is broken. `before` are the body bytes that came before the fault."""

    before = b""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)

    def __reduce__(self) -> Tuple[object, ...]:
        return ChunkError, (self.message,)


def _size(digits: bytes) -> int:
    size = _sizes.get(digits)
    if size is None:
        size = int(digits, 16)
        if size and len(_sizes) < _SIZES_KEPT:
            _sizes[digits] = size
    return size


def _whole_chunks(data: bytes) -> Tuple[bytes, bytes]:
    """Return what is in the chunks that are all there, and the rest, from the next size line on.

    Nothing of `data` is taken where a chunk is not of the simplest kind: its size seen before, no CRLF in it.
    """
    parts = data.split(b"\r\n")
    tail = parts[-3:] if data.endswith(_LAST) else parts[-1:] if len(parts) % 2 else parts[-2:]
    del parts[-len(tail):]
    inside = parts[1::2]
    if len(parts) % 2 or list(map(_sizes.get, parts[::2])) != list(map(len, inside)):
        return b"", data
    return b"".join(inside), b"\r\n".join(tail)


class ChunkedDecoder:
    """Take the chunks of a body apart, however the bytes are cut.

    Feed it until ``finished``; ``rest`` is then what came after the body. ``trailers`` are the trailer
    lines, read strictly and never mixed with the headers. A body that stops before ``finished`` is cut.
    """

    __slots__ = ("finished", "rest", "trailers", "_state", "_left", "_pending", "_extensions")

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""
        self.trailers: Pairs = []
        self._state = _SIZE
        self._left = 0
        self._pending = b""
        self._extensions = 0

    def simple(self, data: bytes) -> Tuple[bytes, bytes]:
        """Return what is in whole chunks of the simplest kind that `data` begins with, and the rest, for `feed`.

        A server writes an event as a chunk, and so it arrives: mostly one chunk and nothing else.
        """
        if (self._state != _DATA_END or self._pending != b"\r\n") and (self._state != _SIZE or self._pending):
            return b"", data
        end = data.find(b"\r\n", 0, 18)
        size = _sizes.get(data[:end])
        if size is None or len(data) < end + size + 4:
            return b"", data
        if len(data) == end + size + 4 and data.endswith(b"\r\n"):
            inside, rest = data[end + 2:-2], b""
        else:
            inside, rest = _whole_chunks(data)
        if inside:
            self._state, self._pending = _DATA_END, b"\r\n"
        return inside, rest

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes that `data` completes; raises ChunkError."""
        state = self._state
        if state == _DATA and len(data) < self._left:
            self._left -= len(data)
            return data
        whole, data = self.simple(data)
        if whole:
            if data == _LAST:
                self._state, self._pending, self.finished = _DONE, b"", True
                return whole
            return self._with(whole, data) if data else whole
        if state == _DONE:
            self.rest += data
            return b""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        pieces: List[bytes] = []
        try:
            self._take_apart(data, pieces)
        except ChunkError as fault:
            fault.before = b"".join(pieces)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _with(self, whole: bytes, data: bytes) -> bytes:
        """Return `whole` and what `data` completes after it."""
        try:
            return whole + self.feed(data)
        except ChunkError as fault:
            fault.before = whole + fault.before
            raise

    def _take_apart(self, data: bytes, pieces: List[bytes]) -> None:
        pos = 0
        state = self._state
        left = self._left
        while True:
            if state == _DATA:
                piece = data[pos:pos + left]
                pieces.append(piece)
                pos += len(piece)
                left -= len(piece)
                if left:
                    break
                match = _NEXT_CHUNK(data, pos)
                if match is not None:  # nearly always: one step instead of two
                    left = _size(match.group(1))
                    pos = match.end()
                    state = _DATA if left else _TRAILER
                    continue
                state = _DATA_END
            self._state = state
            pos = self._framing(data, pos)
            state, left = self._state, self._left
            if pos < 0:
                return
            if state == _DONE:
                self.finished = True
                self.rest = data[pos:]
                return
        self._state, self._left = state, left

    def _framing(self, data: bytes, pos: int) -> int:
        """Read one piece of framing at `pos`; return where it ends, -1 while it is incomplete."""
        end = self._trailer(data, pos) if self._state == _TRAILER else self._chunk_start(data, pos)
        if end < 0:
            self._pending = data[pos:]
        return end

    def _chunk_start(self, data: bytes, pos: int) -> int:
        if self._state == _DATA_END:
            end = data[pos:pos + 2]
            if len(end) < 2 and b"\r\n".startswith(end):
                return -1
            if end != b"\r\n":
                raise ChunkError("a chunk is longer than its size says")
            pos += 2
        return self._size_line(data, pos)

    def _size_line(self, data: bytes, pos: int) -> int:
        match = _CHUNK_LINE.match(data, pos)
        if match is None:
            line = data[pos:pos + MAX_EXTENSION + 20]
            starts_well = re.compile(_CHUNK_LINE_START).fullmatch(line) is not None
            if line and (len(data) - pos >= MAX_EXTENSION + 20 or not starts_well):
                raise ChunkError("a chunk does not start with its size in hexadecimal digits")
            return -1
        if match.group(2):
            self._extensions += len(match.group(2))
            if len(match.group(2)) > MAX_EXTENSION or self._extensions > MAX_EXTENSIONS:
                raise ChunkError("the chunk extensions are too long")
        self._left = _size(match.group(1))
        self._state = _DATA if self._left else _TRAILER
        return match.end()

    def _trailer(self, data: bytes, pos: int) -> int:
        if data.startswith(b"\r\n", pos):
            self._state = _DONE
            return pos + 2
        end = data.find(b"\r\n\r\n", pos, pos + MAX_TRAILER)
        if end < 0:
            if len(data) - pos >= MAX_TRAILER:
                raise ChunkError("the trailer is longer than %d bytes" % MAX_TRAILER)
            if re.compile(_BARE_LF).search(data, pos) is not None:
                raise ChunkError("a line of the trailer does not end in CRLF")
            return -1
        try:
            self.trailers = checked_fields(data[pos:end + 2].decode("latin-1"))
        except ValueError:
            raise ChunkError("the trailer is malformed") from None
        self._state = _DONE
        return end + 4
