"""multipart/form-data, sending: a request body that is read while it is sent (RFC 7578; `formdata` receives).

Names and file names are escaped as the WHATWG's form encoding does it. No file is held in memory.
"""

import copy
import inspect
import io
import os
import re
import tempfile
from typing import IO, Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

from ..errors import BadRequestError
from .formdata import CONTROLS, TOKEN, MultipartReader, Part

__all__ = ["FilePart", "MultipartBody", "MultipartReader", "Part"]

_BLOCK = 64 * 1024
_IN_MEMORY = 1024 * 1024  # of a file that cannot be rewound; what is beyond goes to disk
_HEAD = 16  # bytes shown to FilePart.guess

# What readers raise that cannot seek, or not as files do: pipes, streams of frameworks, a `seek` of one argument.
_NO_SEEK = (AttributeError, OSError, NotImplementedError, TypeError, ValueError)

_UNSAFE = r'[\x00-\x08\x0a-\x1f\x7f"\\]'


# ---------------------------------------------------------------- sending


class FilePart(NamedTuple):
    """One file of a form: bytes, or a binary file object.

    `guess` names a file that has no name: it is shown the first 16 bytes and returns
    ``(filename, content_type)``.
    """

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
        self._middle = b""  # the file, where it was given as bytes
        self._line = b"--" + self.boundary.encode("ascii")
        self._file_head = b""
        self._tail = self._line + b"--\r\n"
        self._size = 0
        if file_part is not None:
            self._size = self._take(file_part)
            self._tail = b"\r\n" + self._tail
        try:
            if file_part is not None:
                self._file_head = self._line + b"\r\n" + _file_headers(file_part, self._peek(self._size)) + b"\r\n"
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
        content = part.content
        self._name = part.name
        if isinstance(content, bytes):
            self._middle = content
            return len(content)
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
        self._file = self._own = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)
        try:
            for block in iter(lambda: self._checked(content.read(_BLOCK)), b""):
                self._file.write(block)
        except BaseException:
            self.close()
            raise
        return self._file.tell()

    def _peek(self, size: int) -> bytes:
        return self._read_file(0, min(size, _HEAD)) if size else b""

    def _read_file(self, offset: int, size: int) -> bytes:
        if self._file is None:
            return self._middle[offset:offset + size]
        if not size:
            return b""
        if self._file.tell() != offset:
            self._file.seek(offset)
        data = self._checked(self._file.read(size))
        if not data:
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
        raise BadRequestError("%s is not text that UTF-8 can carry (character %d)" % (shown, error.start),
                              param=shown) from None
