"""A request's body, as an application reads it: ``wsgi.input``."""

from typing import Callable, Iterator, List, Optional

from ..http1.chunked import ChunkedDecoder
from ..http1.head import ProtocolError

__all__ = ["BodyError", "RequestBody"]


class BodyError(OSError):
    """The body cannot be read: too slow (408), too long (413), broken or cut (400).

    An application lets it pass; the server answers with ``status`` and closes the connection.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class RequestBody:
    """Read the body of one request and not a byte more.

    `more` returns the next bytes of the connection, never none, or raises BodyError; `give_back` takes what
    came after the body. `length` is ``None`` for a chunked body, of which `most` bytes are accepted.
    """

    __slots__ = ("failed", "_more", "_give_back", "_left", "_decoder", "_most", "_ready")

    def __init__(
        self,
        more: Callable[[], bytes],
        give_back: Callable[[bytes], None],
        length: Optional[int],
        most: Optional[int] = None,
    ) -> None:
        self.failed = False
        self._more = more
        self._give_back = give_back
        self._left = length or 0
        self._decoder = ChunkedDecoder() if length is None else None
        self._most = most
        self._ready = b""  # decoded, not yet read by the application

    @property
    def unread(self) -> Optional[int]:
        """How many bytes are still to come from the connection, ``None`` if that is not known."""
        if self._decoder is None or self._decoder.finished:
            return self._left
        return None

    def _next(self) -> bytes:
        """Return the next piece of the body, ``b""`` at its end."""
        if self._ready:
            piece, self._ready = self._ready, b""
            return piece
        if self.failed:
            raise BodyError(400, "the request body could not be read")
        try:
            return self._known_length() if self._decoder is None else self._chunked(self._decoder)
        except OSError:
            self.failed = True
            raise

    def _known_length(self) -> bytes:
        if not self._left:
            return b""
        data = self._more()
        if len(data) > self._left:
            self._give_back(data[self._left:])
            data = data[:self._left]
        self._left -= len(data)
        return data

    def _chunked(self, decoder: ChunkedDecoder) -> bytes:
        while not decoder.finished:
            try:
                piece = decoder.feed(self._more())
            except ProtocolError as error:
                raise BodyError(error.status, error.message) from None
            if self._most is not None:
                self._most -= len(piece)
                if self._most < 0:
                    raise BodyError(413, "the request body is longer than this server accepts")
            if decoder.finished:
                self._give_back(decoder.rest)
            if piece:
                return piece
        return b""

    def read(self, size: Optional[int] = -1) -> bytes:
        """Return `size` bytes, fewer at the end of the body; everything if negative or absent."""
        if size is None or size < 0:
            pieces = list(iter(self._next, b""))
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces = []
        while size > 0:
            piece = self._next()
            if not piece:
                break
            if len(piece) > size:
                self._ready = piece[size:]
                piece = piece[:size]
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readline(self, size: Optional[int] = -1) -> bytes:
        """Return the bytes up to and with the next newline, at most `size` if it is not negative."""
        room = -1 if size is None or size < 0 else size
        pieces: List[bytes] = []
        while room:
            piece = self._next()
            if not piece:
                break
            end = piece.find(b"\n") + 1 or len(piece)
            if 0 <= room < end:
                end = room
            pieces.append(piece[:end])
            self._ready = piece[end:]
            room -= end if room > 0 else 0
            if pieces[-1].endswith(b"\n"):
                break
        return b"".join(pieces)

    def readlines(self, hint: Optional[int] = -1) -> List[bytes]:
        """Return the remaining lines, or enough of them to pass `hint` bytes."""
        lines: List[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def drain(self) -> bool:
        """Read and forget what the application left; tell whether the body was whole."""
        try:
            while self._next():
                pass
        except OSError:
            return False
        return True
