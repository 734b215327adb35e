"""multipart/form-data, sent and received (RFC 7578, RFC 2046); no file is held in memory.

What is sent is read while it goes out, names escaped as the WHATWG's form encoding does it. What is received is fed as
it arrives.
"""

import copy
import inspect
import io
import os
import re
from typing import IO, Any, Callable, Generator, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from ..errors import BadRequestError
from .head import TOKEN
from .part_head import CONTROLS, boundary_of, malformed, part_head
from .spool import spool

__all__ = ["FilePart", "MultipartBody", "MultipartReader", "Part"]

_BLOCK = 64 * 1024
_IN_MEMORY = 1024 * 1024  # of a file that cannot be rewound; what is beyond goes to disk
_HEAD = 16  # bytes shown to FilePart.guess

# What readers raise that cannot seek, or not as files do: pipes, streams of frameworks, a `seek` of one argument.
_NO_SEEK = (AttributeError, OSError, NotImplementedError, TypeError, ValueError)

_UNSAFE = r'[\x00-\x08\x0a-\x1f\x7f"\\]'


class FilePart(NamedTuple):
    """One file of a form. `guess` names one without a name: its first 16 bytes → ``(filename, content_type)``."""

    name: str
    content: Union[bytes, IO[bytes]]
    filename: Optional[str] = None
    content_type: Optional[str] = None
    guess: Optional[Callable[[bytes], Tuple[str, str]]] = None
    headers: Tuple[Tuple[str, str], ...] = ()


class MultipartBody:
    """A form as a request body: ``len()``, ``read(n)``, iteration; the file is read while it is sent.

    The file goes up whole, from its beginning, wherever it stands. A file that cannot seek is first copied to a
    temporary file (in memory up to 1 MiB), so that the length is known and a retry can start over; `close` removes
    that copy and leaves the caller's file open. Raises ``BadRequestError`` for what no form can carry.
    """

    def __init__(
        self, fields: Iterable[Tuple[str, str]], file_part: Optional[FilePart] = None, boundary: Optional[str] = None
    ) -> None:
        self.boundary = os.urandom(16).hex() if boundary is None else boundary
        if not re.fullmatch(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}", self.boundary):
            raise ValueError("boundary must be 1 to 70 of the characters that RFC 2046 allows: %r" % self.boundary)
        self._own: Optional[IO[bytes]] = None
        self._file: Optional[IO[bytes]] = None
        self._name = ""
        self._line = b"--" + self.boundary.encode("ascii")
        self._file_head = b""
        self._tail = self._line + b"--\r\n"
        self._size = 0
        try:
            if file_part is not None:
                self._size = self._take(file_part)
                headers = _file_headers(file_part, self._read_file(0, min(self._size, _HEAD)))
                self._file_head = self._line + b"\r\n" + headers + b"\r\n"
                self._tail = b"\r\n" + self._tail
            self._begin(list(fields))
        except BaseException:
            self.close()
            raise

    def _begin(self, fields: List[Tuple[str, str]]) -> None:
        head = bytearray()
        for name, value in fields:
            head += self._line + b'\r\nContent-Disposition: form-data; name="' + _escaped(name) + b'"\r\n\r\n'
            head += _encoded(value, name) + b"\r\n"
        self._fields = fields
        self._head = bytes(head) + self._file_head
        self._file_end = len(self._head) + self._size
        self._length = self._file_end + len(self._tail)
        self._position = 0

    def with_field(self, name: str, value: str) -> "MultipartBody":
        """Return this form with another value for a field that it has; both read the same file, one at a time."""
        other = copy.copy(self)
        other._begin([(label, value if label == name else text) for label, text in self._fields])
        return other

    @property
    def content_type(self) -> str:
        """The Content-Type header that belongs to this body."""
        bare = re.fullmatch(TOKEN, self.boundary)
        return "multipart/form-data; boundary=" + (self.boundary if bare else '"%s"' % self.boundary)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_BLOCK), b"")

    def read(self, size: Optional[int] = -1) -> bytes:
        """Return the next bytes, at most `size` (all that is left without it); empty at the end."""
        if size is None or size < 0:
            return b"".join(self)
        at = self._position
        if at < len(self._head):
            data = self._head[at:at + size]
        elif at < self._file_end:
            data = self._read_file(at - len(self._head), min(size, self._file_end - at))
        else:
            data = self._tail[at - self._file_end:at - self._file_end + size]
        self._position += len(data)
        return data

    def rewind(self) -> None:
        """Start over, for another attempt."""
        self._position = 0

    def close(self) -> None:
        """Remove the temporary copy, if one was made."""
        if self._own is not None:
            self._own.close()

    def _take(self, part: FilePart) -> int:
        content = io.BytesIO(part.content) if isinstance(part.content, bytes) else part.content
        self._name = part.name
        if getattr(content, "closed", False):
            raise BadRequestError("file is closed", param=part.name)
        if isinstance(content, io.TextIOBase):
            self._checked(None)
        self._file = content
        try:
            content.seek(0, os.SEEK_END)
            size = content.tell()  # seek() itself returns None for a SpooledTemporaryFile before Python 3.11
            content.seek(0)
        except _NO_SEEK:
            return self._spool(content)
        return size

    def _spool(self, content: IO[bytes]) -> int:
        try:
            content.seek(0)
        except _NO_SEEK:
            pass  # from where it stands
        self._file = self._own = spool(_IN_MEMORY)
        for block in iter(lambda: self._checked(content.read(_BLOCK)), b""):
            self._file.write(block)
        return self._file.tell()

    def _read_file(self, offset: int, size: int) -> bytes:
        assert self._file is not None
        if self._file.tell() != offset:
            self._file.seek(offset)
        data = self._checked(self._file.read(size))[:size]
        if size and not data:
            # Less than Content-Length promised: the server would wait for the rest until its timeout.
            raise BadRequestError("file became shorter while it was sent", param=self._name)
        return data

    def _checked(self, data: Any) -> bytes:
        if isinstance(data, (bytes, bytearray, memoryview)):
            return bytes(data)
        if inspect.isawaitable(data):
            if inspect.iscoroutine(data):
                data.close()  # or Python warns that it was never awaited
            raise BadRequestError("file is read asynchronously: give its bytes, await file.read()", param=self._name)
        raise BadRequestError("file must be opened in binary mode ('rb')", param=self._name)


def _file_headers(part: FilePart, head: bytes) -> bytes:
    filename, content_type = part.filename, part.content_type
    if not filename:
        guessed = part.guess(head) if part.guess is not None else (part.name, "application/octet-stream")
        filename, content_type = guessed[0], content_type or guessed[1]
    lines = [b'Content-Disposition: form-data; name="%s"; filename="%s"' % (_escaped(part.name), _escaped(filename))]
    for name, value in (("Content-Type", content_type or "application/octet-stream"),) + part.headers:
        if not re.fullmatch(TOKEN, name) or CONTROLS.search(value):
            raise BadRequestError("header %.100r of the file cannot be sent" % name, param=part.name)
        lines.append(_encoded("%s: %s" % (name, value), part.name))
    return b"\r\n".join(lines) + b"\r\n"


def _escaped(text: str) -> bytes:
    # Quote, CR and LF as the WHATWG has it. The other controls and the backslash too: parsers differ on whether a
    # backslash escapes the quote after it.
    return _encoded(re.sub(_UNSAFE, lambda found: "%%%02X" % ord(found.group()), text), text)


def _encoded(text: str, name: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = name.encode("ascii", "backslashreplace").decode("ascii")
        problem = "%s is not text that UTF-8 can carry (character %d)" % (shown, error.start)
        raise BadRequestError(problem, param=shown) from None


# ---------------------------------------------------------------- receiving


class Part(NamedTuple):
    """One part of a received form; ``value`` is bytes, or the spooled file where ``filename`` is not ``None``."""

    name: str
    filename: Optional[str]
    content_type: Optional[str]
    value: Any

    def text(self) -> str:
        """Return the value of a field as text; raises ``BadRequestError`` where it is not UTF-8."""
        try:
            return str(self.value.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadRequestError("form field %.100r is not UTF-8" % self.name, param=self.name) from None


class MultipartReader:
    """Read a form from blocks of bytes, cut anywhere, in bounded memory.

    `max_fields` bounds the number of parts, `max_files` how many of them are files, `max_header_bytes` the headers of
    one part, `max_field_bytes` all fields together with all headers. `spool` makes the file that a file part is
    written to. Everything malformed is a ``BadRequestError`` of `feed` or `finish`, which closes the files.
    """

    def __init__(
        self, content_type: str, *, spool: Callable[[], IO[bytes]], max_fields: int = 1000, max_files: int = 8,
        max_field_bytes: int = 1024 * 1024, max_header_bytes: int = 16 * 1024,
    ) -> None:
        self._delimiter = b"\r\n--" + boundary_of(content_type)
        self._spool = spool
        self._max_fields = max_fields
        self._max_files = max_files
        self._max_field_bytes = max_field_bytes
        self._max_header_bytes = max_header_bytes
        self._buffer = bytearray(b"\r\n")  # the first delimiter has no line end before it where there is no preamble
        self._reading = self._parts_in_turn()
        self._done = False
        self._held = 0
        self._parts: List[Part] = []
        self._value = bytearray()
        self._files: List[IO[bytes]] = []
        self._error: Optional[BaseException] = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        if self._error is not None:
            raise self._error
        if self._done:
            return
        self._buffer += data
        try:
            next(self._reading)
        except StopIteration:
            self._done = True
            self._buffer.clear()
        except BaseException as error:
            self._error = error
            self.close()
            raise

    def finish(self) -> List[Part]:
        """Return the parts in their order, files rewound; the caller closes those."""
        if not self._done:
            self._error = self._error or malformed("it ends without its closing boundary")
            self.close()
            raise self._error
        for file in self._files:
            file.seek(0)
        return self._parts

    def close(self) -> None:
        """Close every file written so far."""
        for file in self._files:
            file.close()

    def _parts_in_turn(self) -> Iterator[None]:
        """Read part after part from the buffer; stop where more bytes are needed."""
        yield from self._until_boundary(lambda data: None)
        while True:
            yield from self._boundary_line()
            if self._buffer.startswith(b"--"):
                return
            block = yield from self._headers()
            if len(self._parts) >= self._max_fields:
                raise malformed("it has more than %d fields" % self._max_fields)
            self._hold(len(block))
            name, filename, content_type = part_head(block)
            if filename is None:
                self._value = bytearray()
                yield from self._until_boundary(self._keep)
                self._parts.append(Part(name, None, content_type, bytes(self._value)))
            else:
                if len(self._files) >= self._max_files:
                    raise malformed("it has more than %d files" % self._max_files)
                file = self._spool()
                self._files.append(file)
                yield from self._until_boundary(file.write)
                self._parts.append(Part(name, filename, content_type, file))

    def _until_boundary(self, write: Callable[[bytes], Any]) -> Iterator[None]:
        while True:
            at = self._buffer.find(self._delimiter)
            ready = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
            if ready > 0:
                write(bytes(self._buffer[:ready]))
                del self._buffer[:ready]
            if at >= 0:
                del self._buffer[:len(self._delimiter)]
                return
            yield

    def _boundary_line(self) -> Iterator[None]:
        """Read up to the line end behind a boundary, which stays: it may be half an empty block of headers."""
        while not self._buffer.startswith(b"--"):
            end = self._buffer.find(b"\r\n")
            padding = bytes(self._buffer if end < 0 else self._buffer[:end])
            if len(padding) > self._max_header_bytes:
                raise malformed("a boundary line is too long")
            if padding.strip(b" \t") and (end >= 0 or (padding != b"-" and padding.rstrip(b"\r").strip(b" \t"))):
                raise malformed("a boundary is followed by something else than a line end")
            if end >= 0:
                del self._buffer[:end]
                return
            yield

    def _headers(self) -> Generator[None, None, bytes]:
        searched = 0
        while True:
            end = self._buffer.find(b"\r\n\r\n", searched)
            size = (len(self._buffer) - 3 if end < 0 else end) - 2  # the line end before it does not count
            if size > self._max_header_bytes:
                raise malformed("the headers of a part exceed %d bytes" % self._max_header_bytes)
            if end >= 0:
                block = bytes(self._buffer[2:end])
                del self._buffer[:end + 4]
                return block
            searched = max(0, len(self._buffer) - 3)
            yield

    def _keep(self, data: bytes) -> None:
        self._hold(len(data))
        self._value += data

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max_field_bytes:
            raise malformed("its fields exceed %d bytes together" % self._max_field_bytes)
