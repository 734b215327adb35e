"""multipart/form-data, receiving: a reader that is fed bytes as they arrive (RFC 7578, RFC 2046).

It is strict where servers differ: line ends are CRLF, headers are UTF-8 and not folded, none comes twice.
"""

import re
from typing import IO, Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import unquote

from ..errors import BadRequestError

__all__ = ["MultipartReader", "Part"]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Compiled when the first form comes: every program that imports the library would pay for them at its start.
_PARAMETER = r';[ \t]*(%s)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;" \t]+)[ \t]*' % TOKEN
_BOUNDARY = r"[\x20-\x7e]{0,69}[\x21-\x7e]"


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


_PREAMBLE, _DELIMITER, _HEADERS, _BODY, _EPILOGUE = range(5)


class MultipartReader:
    """Read a form from blocks of bytes, cut anywhere, in bounded memory.

    `max_fields` bounds the number of parts, `max_files` how many of them are files, `max_header_bytes` the headers of
    one part, `max_field_bytes` all fields together with all headers. `spool` makes the file that a file part is
    written to. Everything malformed is a ``BadRequestError`` of `feed` or `finish`, which closes the files.
    """

    def __init__(
        self,
        content_type: str,
        *,
        spool: Callable[[], IO[bytes]],
        max_fields: int = 1000,
        max_files: int = 8,
        max_field_bytes: int = 1024 * 1024,
        max_header_bytes: int = 16 * 1024,
    ) -> None:
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self._spool = spool
        self._max_fields = max_fields
        self._max_files = max_files
        self._max_field_bytes = max_field_bytes
        self._max_header_bytes = max_header_bytes
        # The first delimiter has no line end before it where there is no preamble.
        self._buffer = bytearray(b"\r\n")
        self._state = _PREAMBLE
        self._searched = 0
        self._held = 0
        self._parts: List[Part] = []
        self._current = Part("", None, None, b"")
        self._value = bytearray()
        self._files: List[IO[bytes]] = []
        self._error: Optional[BadRequestError] = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._refuse_again()
        if self._state == _EPILOGUE:
            return
        self._buffer += data
        try:
            while _STEPS[self._state](self):
                pass
        except BaseException as error:
            self._error = error if isinstance(error, BadRequestError) else None
            self.close()
            raise

    def finish(self) -> List[Part]:
        """Return the parts in their order, files rewound; the caller closes those."""
        self._refuse_again()
        if self._state != _EPILOGUE:
            self._error = _malformed("it ends without its closing boundary")
            self.close()
            raise self._error
        for file in self._files:
            file.seek(0)
        return self._parts

    def close(self) -> None:
        """Close every file written so far."""
        for file in self._files:
            file.close()

    def _refuse_again(self) -> None:
        if self._error is not None:
            raise self._error

    # Each step consumes what it can from the buffer, and tells whether the next one can go on.

    def _preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            del self._buffer[:max(0, len(self._buffer) - len(self._delimiter) + 1)]
            return False
        del self._buffer[:at + len(self._delimiter)]
        self._state = _DELIMITER
        return True

    def _boundary_line(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._buffer.clear()
            self._state = _EPILOGUE
            return False
        end = self._buffer.find(b"\r\n")
        padding = bytes(self._buffer if end < 0 else self._buffer[:end])
        if len(padding) > self._max_header_bytes:
            raise _malformed("a boundary line is too long")
        if end < 0:
            if padding not in (b"-", b"\r") and padding.rstrip(b"\r").strip(b" \t"):
                raise _malformed("a boundary is followed by something else than a line end")
            return False
        if padding.strip(b" \t"):
            raise _malformed("a boundary is followed by something else than a line end")
        del self._buffer[:end]  # the line end stays: it may be the first half of an empty header block
        self._state, self._searched = _HEADERS, 0
        return True

    def _headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        size = (len(self._buffer) - 3 if end < 0 else end) - 2  # the line end before it does not count
        if size > self._max_header_bytes:
            raise _malformed("the headers of a part exceed %d bytes" % self._max_header_bytes)
        if end < 0:
            self._searched = max(0, len(self._buffer) - 3)
            return False
        self._begin(bytes(self._buffer[2:end]))
        del self._buffer[:end + 4]
        self._state = _BODY
        return True

    def _body(self) -> bool:
        at = self._buffer.find(self._delimiter)
        ready = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if ready > 0:
            self._write(bytes(self._buffer[:ready]))
            del self._buffer[:ready]
        if at < 0:
            return False
        del self._buffer[:len(self._delimiter)]
        self._parts.append(self._current if self._current.filename is not None
                           else self._current._replace(value=bytes(self._value)))
        self._state = _DELIMITER
        return True

    def _begin(self, block: bytes) -> None:
        if len(self._parts) >= self._max_fields:
            raise _malformed("it has more than %d fields" % self._max_fields)
        self._hold(len(block))
        name, filename, content_type = _part_headers(block)
        self._value = bytearray()
        self._current = Part(name, filename, content_type, b"")
        if filename is not None:
            if len(self._files) >= self._max_files:
                raise _malformed("it has more than %d files" % self._max_files)
            self._files.append(self._spool())
            self._current = self._current._replace(value=self._files[-1])

    def _write(self, data: bytes) -> None:
        if self._current.filename is not None:
            self._files[-1].write(data)
        else:
            self._hold(len(data))
            self._value += data

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max_field_bytes:
            raise _malformed("its fields exceed %d bytes together" % self._max_field_bytes)


_STEPS: Dict[int, Callable[[MultipartReader], bool]] = {
    _PREAMBLE: MultipartReader._preamble,
    _DELIMITER: MultipartReader._boundary_line,
    _HEADERS: MultipartReader._headers,
    _BODY: MultipartReader._body,
    _EPILOGUE: lambda reader: False,
}


def _malformed(what: str) -> BadRequestError:
    return BadRequestError("invalid multipart body: " + what)


def _boundary(content_type: str) -> bytes:
    kind, parameters = _parameters(content_type, "Content-Type")
    if kind != "multipart/form-data":
        raise BadRequestError("Content-Type must be multipart/form-data, got %.100r" % content_type)
    boundary = parameters.get("boundary")
    if boundary is None:
        raise BadRequestError("Content-Type multipart/form-data has no boundary")
    if not re.fullmatch(_BOUNDARY, boundary):
        raise BadRequestError("Content-Type has an invalid boundary: it must be 1 to 70 ASCII characters")
    return boundary.encode("ascii")


def _part_headers(block: bytes) -> Tuple[str, Optional[str], Optional[str]]:
    """Return name, filename and content type of a part."""
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("the headers of a part are not UTF-8") from None
    headers: Dict[str, str] = {}
    for line in text.split("\r\n"):
        label, colon, value = line.partition(":")
        if not colon or not re.fullmatch(TOKEN, label) or CONTROLS.search(value):
            raise _malformed("bad header line %.100r" % line)
        if label.lower() in headers:
            raise _malformed("a part has two %.100s headers" % label)
        headers[label.lower()] = value.strip(" \t")
    kind, parameters = _parameters(headers.get("content-disposition", ""), "Content-Disposition")
    if kind != "form-data" or "name" not in parameters:
        raise _malformed("a part has no Content-Disposition: form-data with a name")
    # Deprecated by RFC 7578, and read by no two servers in the same way.
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in ("binary", "8bit", "7bit"):
        raise _malformed("Content-Transfer-Encoding %.100r is not supported" % encoding)
    return parameters["name"], _filename(parameters), headers.get("content-type")


def _filename(parameters: Dict[str, str]) -> Optional[str]:
    extended = parameters.get("filename*")  # RFC 5987, which older HTTP clients send
    if extended is None or "filename" in parameters:
        return parameters.get("filename")
    charset, _, encoded = extended.partition("'")
    try:
        if charset.lower() != "utf-8":
            raise ValueError
        return unquote(encoded.partition("'")[2], errors="strict")
    except ValueError:
        raise _malformed("bad filename* %.100r" % extended) from None


def _parameters(text: str, where: str) -> Tuple[str, Dict[str, str]]:
    """Split ``kind; name=value; name="value"`` into the kind, in lower case, and its parameters."""
    kind = text.partition(";")[0]
    at = len(kind)
    found: Dict[str, str] = {}
    parameter = re.compile(_PARAMETER)
    while text[at:].strip(" \t;"):
        match = parameter.match(text, at)
        if match is None or match.group(1).lower() in found:
            raise BadRequestError("invalid %s header: %.200r" % (where, text))
        value = match.group(2)
        if value.startswith('"'):
            # Browsers leave a backslash as it is, curl escapes quote and backslash with one.
            value = re.sub(r'\\(["\\])', r"\1", value[1:-1])
        found[match.group(1).lower()] = value
        at = match.end()
    return kind.strip(" \t").lower(), found
