"""HTTP/1.1 heads, read strictly by RFC 9112 and quickly; no sockets.

Both sides share it: the gateway's server reads requests, the adapter reads responses. What is
ambiguous is refused, not repaired: a message that two readers could frame differently is how requests
are smuggled past one of them. Chunked bodies are taken apart in chunked.py.
"""

import re
from typing import Dict, Optional, Pattern, Tuple, Union

from .header_lines import FIELD_LINE, TOKEN, Pairs, keep, read_lines

__all__ = [
    "HeadError",
    "ProtocolError",
    "RequestHead",
    "ResponseHead",
    "find_head_end",
    "parse_request_head",
    "parse_response_head",
]

MAX_LINE = 8 * 1024  # bytes of a request or status line
MAX_HEAD = 64 * 1024  # bytes of a whole head
MAX_FIELDS = 100  # header lines

Buffer = Union[bytes, bytearray]


class ProtocolError(ValueError):
    """The bytes are not HTTP/1.1 as RFC 9112 has it; the connection cannot be read any further.

    ``status`` is what a server answers; ``message`` never quotes a header value.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class HeadError(ProtocolError):
    """The head of a request or response cannot be accepted."""


_REQUEST_LINE = re.compile(r"(%s) ([!\"$-~]+) HTTP/1\.([01])" % TOKEN)
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*))?")
_NAME = TOKEN
_OTHER_VERSION = r"(?:%s [!-~]+ )?HTTP/[0-9](?:\.[0-9])?(?: .*)?" % TOKEN
_REQUEST_START = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: [!\"$-~]*(?: [HTP/0-9.]{0,8}\r?)?)?"
_STATUS_START = rb"H(?:T(?:T(?:P(?:/[\t -~\x80-\xff]*\r?)?)?)?)?"
_BARE_LF = rb"(?<!\r)\n|\r(?!\n)(?!\Z)"
_ABSOLUTE = r"https?://([^/?@]*)(/[^?]*)?(\?.*)?"
_HOST = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_SINGLE = frozenset(("content-length", "host", "transfer-encoding"))

_starts: Dict[Pattern[str], Dict[str, Tuple[str, ...]]] = {_REQUEST_LINE: {}, _STATUS_LINE: {}}


class _Head:
    """What requests and responses have in common.

    ``headers`` are (lower-case name, value) pairs as they came, latin-1; ``fields`` maps each name to
    its value, a repeated one joined with commas. ``content_length`` is what the head declares.
    ``body_length`` is the number of body bytes that follow, ``None`` where the body ends otherwise: by
    its last chunk if ``chunked``, else (a response only) with the connection.
    """

    __slots__ = (
        "version", "headers", "fields", "keep_alive", "content_length", "chunked", "body_length",
    )

    def __init__(self, minor: str, headers: Pairs) -> None:
        self.version = "HTTP/1.1" if minor == "1" else "HTTP/1.0"
        self.headers = headers
        fields = dict(headers)
        if len(fields) != len(headers):
            fields = _joined(headers)
        self.fields: Dict[str, str] = fields
        connection = fields.get("connection")
        if connection is None or connection == "keep-alive":
            self.keep_alive = minor == "1" or connection is not None
        else:
            tokens = [token.strip(" \t") for token in connection.lower().split(",")]
            self.keep_alive = "close" not in tokens and (minor == "1" or "keep-alive" in tokens)
        length = fields.get("content-length")
        self.content_length = None if length is None else _content_length(length)
        self.chunked = "transfer-encoding" in fields
        if self.chunked:
            self._check_coding(fields["transfer-encoding"].lower())
        self.body_length: Optional[int] = None if self.chunked else self.content_length

    def get(self, name: str) -> Optional[str]:
        """Return the value of a header by its lower-case name; repeated lines joined with commas."""
        return self.fields.get(name)

    def _check_coding(self, coding: str) -> None:
        if self.content_length is not None:
            raise HeadError(400, "both Content-Length and Transfer-Encoding; send one of them")
        if self.version == "HTTP/1.0":
            raise HeadError(400, "Transfer-Encoding in an HTTP/1.0 message")
        if coding != "chunked":
            known = re.fullmatch(r"(?:(?:x-)?(?:gzip|compress)|deflate)[\t ]*,[\t ]*chunked", coding)
            raise HeadError(501 if known else 400, "the only Transfer-Encoding accepted is chunked")


class RequestHead(_Head):
    """The head of a request: ``target`` is a path with its query, or ``*``.

    ``host`` is the authority of an absolute target, else the Host header (``None`` in HTTP/1.0 only).
    """

    __slots__ = ("method", "target", "host", "expect_continue")

    def __init__(self, method: str, target: str, minor: str, headers: Pairs) -> None:
        super().__init__(minor, headers)
        self.method = method
        self.host = self.fields.get("host")
        if self.host is None:
            if minor == "1":
                raise HeadError(400, "no Host header")
        elif _HOST.fullmatch(self.host) is None:
            raise HeadError(400, "the Host header is not a host and port")
        self.target = target if target[0] == "/" else self._other_target(target)
        if self.body_length is None and not self.chunked:
            self.body_length = 0
        self.expect_continue = False
        if "expect" in self.fields:
            self._check_expect(self.fields["expect"])

    def _other_target(self, target: str) -> str:
        if target == "*" and self.method == "OPTIONS":
            return target
        if self.method == "CONNECT":
            raise HeadError(501, "CONNECT is not offered; this is no proxy")
        match = re.compile(_ABSOLUTE, re.IGNORECASE).fullmatch(target)
        if match is None or not match.group(1) or _HOST.fullmatch(match.group(1)) is None:
            raise HeadError(400, "the request target is neither a path nor an http:// URL")
        # RFC 9112 §3.2.2: the target's authority replaces whatever Host says.
        host, path, query = match.group(1), match.group(2), match.group(3) or ""
        self.host = self.fields["host"] = host
        self.headers = [pair for pair in self.headers if pair[0] != "host"]
        self.headers.append(("host", host))
        if path is None and not query and self.method == "OPTIONS":
            return "*"
        return (path or "/") + query

    def _check_expect(self, value: str) -> None:
        if value.lower() != "100-continue":
            raise HeadError(417, "the only Expect accepted is 100-continue")
        # RFC 9110 §10.1.1: a server ignores it from HTTP/1.0, and it means nothing without a body.
        self.expect_continue = self.version == "HTTP/1.1" and self.body_length != 0


class ResponseHead(_Head):
    """The head of a response to a request of method `method`; 1xx heads included.

    ``keep_alive`` is false where the body ends with the connection.
    """

    __slots__ = ("status", "reason")

    def __init__(self, status: int, reason: str, minor: str, headers: Pairs, method: str) -> None:
        super().__init__(minor, headers)
        self.status = status
        self.reason = reason
        if status < 200 or status in (204, 304) or method == "HEAD":
            self.body_length = 0
            self.chunked = False
        elif self.body_length is None and not self.chunked:
            self.keep_alive = False


def _joined(headers: Pairs) -> Dict[str, str]:
    fields: Dict[str, str] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name in _SINGLE:
            raise HeadError(400, "more than one %s header" % name.title())
        else:
            fields[name] += ("; " if name == "cookie" else ", ") + value
    return fields


def _content_length(value: str) -> int:
    if not (value.isdigit() and value.isascii() and len(value) <= 18):
        raise HeadError(400, "Content-Length is not a number of bytes")
    return int(value)


# ---------------------------------------------------------------- a whole head


def parse_request_head(head: Buffer) -> RequestHead:
    """Read a request head, from its first byte to the end of its blank line.

    Raises HeadError with 400, 414, 417, 431, 501 or 505.
    """
    text = head.decode("latin-1")
    parts = _taken_apart(text, _REQUEST_LINE)
    if parts is None:
        raise _fault(text, True)
    (method, target, minor), headers = parts
    return RequestHead(method, target, minor, headers)


def parse_response_head(head: Buffer, method: str) -> ResponseHead:
    """Read the head of the response to a request of `method`; raises HeadError."""
    text = head.decode("latin-1")
    parts = _taken_apart(text, _STATUS_LINE)
    if parts is None:
        raise _fault(text, False)
    (minor, status, reason), headers = parts
    return ResponseHead(int(status), reason or "", minor, headers, method)


def _taken_apart(text: str, start_line: Pattern[str]) -> Optional[Tuple[Tuple[str, ...], Pairs]]:
    """Return the parts of the first line and the fields, ``None`` for a head that is not to be accepted."""
    lines = text.split("\r\n")
    if not 3 <= len(lines) <= MAX_FIELDS + 3 or lines[-1] or lines[-2] or len(text) > MAX_HEAD:
        return None
    start = _starts[start_line].get(lines[0])
    if start is None:
        start = _started(lines[0], start_line)
        if start is None:
            return None
    headers = read_lines(lines[1:-2])
    return None if headers is None else (start, headers)


def _started(line: str, start_line: Pattern[str]) -> Optional[Tuple[str, ...]]:
    match = start_line.fullmatch(line) if len(line) <= MAX_LINE else None
    if match is None:
        return None
    start = match.groups()
    if len(line) < 100 and "?" not in line:
        keep(_starts[start_line], line, start)
    return start


def find_head_end(buffer: Buffer, seen: int = 0, request: bool = True) -> int:
    """Return the offset after a head's blank line, or -1 while it has not arrived.

    `seen` bytes of the buffer were there in an earlier call. Raises HeadError as soon as what has arrived
    cannot become a head, so that nobody waits for the rest.
    """
    end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
    if end >= 0:
        return end + 4
    line_end = buffer.find(b"\n", 0, MAX_LINE + 2)
    if line_end < 0:
        if len(buffer) > MAX_LINE:
            raise _long_line(request)
        start = _REQUEST_START if request else _STATUS_START
        if buffer and re.compile(start).fullmatch(buffer) is None:
            raise HeadError(400, "these bytes are not HTTP/1.1")
        return -1
    if re.compile(_BARE_LF).search(buffer, max(0, seen - 1)) is not None:
        raise HeadError(400, "a line of the head does not end in CRLF")
    if seen <= line_end:
        line = buffer[:line_end - 1].decode("latin-1")
        fault = _line_fault(line, request)
        if fault is not None:
            raise fault
    if len(buffer) > MAX_HEAD:
        raise HeadError(431, "the head is longer than %d bytes" % MAX_HEAD)
    return -1


# ---------------------------------------------------------------- what was wrong with it


def _fault(text: str, request: bool) -> HeadError:
    """Say why a head did not match; slow, and only for heads that are refused."""
    lines = text.split("\r\n")
    if len(lines[0]) > MAX_LINE:
        return _long_line(request)
    if len(text) > MAX_HEAD:
        return HeadError(431, "the head is longer than %d bytes" % MAX_HEAD)
    fault = _line_fault(lines[0], request)
    if fault is not None:
        return fault
    for line in lines[1:-2]:
        if FIELD_LINE.fullmatch(line) is None:
            return HeadError(400, _field_fault(line))
    if len(lines) - 3 > MAX_FIELDS:
        return HeadError(431, "more than %d header lines" % MAX_FIELDS)
    return HeadError(400, "the head does not end at its blank line")


def _line_fault(line: str, request: bool) -> Optional[HeadError]:
    if len(line) > MAX_LINE:
        return _long_line(request)
    if (_REQUEST_LINE if request else _STATUS_LINE).fullmatch(line) is not None:
        return None
    if re.compile(_OTHER_VERSION).fullmatch(line) is not None and not re.search(r"HTTP/1\.[01](?: |$)", line):
        return HeadError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return HeadError(400, "the %s line is malformed" % ("request" if request else "status"))


def _long_line(request: bool) -> HeadError:
    if request:
        return HeadError(414, "the request line is longer than %d bytes" % MAX_LINE)
    return HeadError(431, "the status line is longer than %d bytes" % MAX_LINE)


def _field_fault(line: str) -> str:
    if not line:
        return "the head does not end at its blank line"
    if line[0] in " \t":
        return "a header is folded over several lines"
    if "\r" in line or "\n" in line:
        return "a line of the head does not end in CRLF"
    name, colon, _ = line.partition(":")
    if not colon:
        return "a header line has no colon"
    if name.rstrip(" \t") != name:
        return "white space before the colon of a header"
    if re.compile(_NAME).fullmatch(name) is None:
        return "a header name is empty or has a character that is not allowed"
    return "a header value has a control character"
