"""HTTP/1.1 heads, read strictly and written: each production of RFC 9112 and RFC 9110 stands here once; no sockets.

What is ambiguous is refused, not repaired: a message that two readers could frame differently is how requests are
smuggled past one of them.
"""

import re
from typing import Dict, Iterable, Optional, Tuple, Union

__all__ = [
    "FIELD_VALUE", "HOP_BY_HOP", "ProtocolError", "RequestHead", "ResponseHead", "TOKEN", "field_block",
    "find_head_end", "parse_fields", "remains",
]

MAX_LINE = 8 * 1024  # bytes of a request or status line
MAX_HEAD = 64 * 1024  # bytes of a whole head
MAX_FIELDS = 100  # header lines

# token = 1*tchar (RFC 9110 §5.6.2)
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# field-value = *( VCHAR / obs-text / SP / HTAB ), in Latin-1 (RFC 9110 §5.5); bare CR, LF and NUL stay outside
FIELD_VALUE = r"[\t -~\x80-\xff]*"
# field-line = field-name ":" OWS field-value OWS (RFC 9112 §5). No part shares a character with what follows it, so
# a failed match backs off once over the text: the time is linear in the length whatever the input.
_FIELD_LINE = "%s:%s" % (TOKEN, FIELD_VALUE)
_FIELD_LINES = r"(?:%s\r\n)*" % _FIELD_LINE
# request-line = method SP request-target SP HTTP-version (§3); a target is visible ASCII without "#" (§3.2)
_REQUEST_LINE = r"(%s) ([!\"$-~]+) HTTP/1\.([01])" % TOKEN
# status-line = HTTP-version SP status-code SP [ reason-phrase ] (§4); servers leave the second space out
_STATUS_LINE = r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (%s))?" % FIELD_VALUE
# HTTP-message = start-line CRLF *( field-line CRLF ) CRLF (§2.1)
_REQUEST = re.compile(r"%s\r\n(%s)\r\n" % (_REQUEST_LINE, _FIELD_LINES))
_RESPONSE = re.compile(r"%s\r\n(%s)\r\n" % (_STATUS_LINE, _FIELD_LINES))
# Host = uri-host [ ":" port ] (RFC 9110 §7.2)
_HOST = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# absolute-form of a request-target (RFC 9112 §3.2.2)
_ABSOLUTE = r"(?i)https?://([^/?@]*)(/[^?]*)?(\?.*)?"

_REQUEST_START = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: [!\"$-~]*(?: [HTP/0-9.]{0,8}\r?)?)?"
_STATUS_START = rb"H(?:T(?:T(?:P(?:/[\t -~\x80-\xff]*\r?)?)?)?)?"
_OTHER_VERSION = r"(?:%s [!-~]+ )?HTTP/(?!1\.[01](?: |$))[0-9](?:\.[0-9])?(?: .*)?" % TOKEN
_BARE_LINE_END = rb"(?<!\r)\n|\r(?!\n)(?!\Z)"

_SINGLE = frozenset(("content-length", "host", "transfer-encoding"))
# Fields that belong to one connection and are not passed on (RFC 9110 §7.6.1, and what proxies add to them).
HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
))

Buffer = Union[bytes, bytearray]


class ProtocolError(ValueError):
    """The bytes are not HTTP/1.1 as RFC 9112 has it; the connection cannot be read any further.

    ``status`` is what a server answers; ``message`` never quotes a header value. ``before`` are the body bytes that
    came before the fault.
    """

    before = b""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class _Head:
    """What requests and responses have in common.

    ``fields`` maps each name, in lower case, to its value, Latin-1; a repeated one is joined with commas.
    ``body_length`` is the number of body bytes that follow, ``None`` where the body ends otherwise: by its last
    chunk if ``chunked``, else (a response only) with the connection.
    """

    __slots__ = ("version", "fields", "keep_alive", "chunked", "body_length")

    def __init__(self, minor: str, block: str) -> None:
        self.version = "HTTP/1.1" if minor == "1" else "HTTP/1.0"
        self.fields = fields = _fields(block)
        connection = fields.get("connection")
        if connection is None:
            self.keep_alive = minor == "1"
        else:
            options = [option.strip(" \t") for option in connection.lower().split(",")]
            self.keep_alive = "close" not in options and (minor == "1" or "keep-alive" in options)
        length = fields.get("content-length")
        self.body_length: Optional[int] = None
        if length is not None:
            if not (length.isdigit() and length.isascii() and len(length) <= 18):
                raise ProtocolError(400, "Content-Length is not a number of bytes")
            self.body_length = int(length)
        self.chunked = "transfer-encoding" in fields
        if self.chunked:
            self._check_coding(fields["transfer-encoding"].lower())

    def _check_coding(self, coding: str) -> None:
        if self.body_length is not None:
            raise ProtocolError(400, "both Content-Length and Transfer-Encoding; send one of them")
        if self.version == "HTTP/1.0":
            raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 message")
        if coding != "chunked":
            known = re.fullmatch(r"(?:(?:x-)?(?:gzip|compress)|deflate)[\t ]*,[\t ]*chunked", coding)
            raise ProtocolError(501 if known else 400, "the only Transfer-Encoding accepted is chunked")


class RequestHead(_Head):
    """A request's head, read from its first byte to the end of its blank line.

    ``target`` is a path with its query, or ``*``; an absolute one has become Host and path. ``expect_continue`` says
    that the client waits for 100 Continue before it sends the body. Raises ProtocolError with 400, 414, 417, 431, 501
    or 505.
    """

    __slots__ = ("method", "target", "expect_continue")

    def __init__(self, head: Buffer) -> None:
        text = head.decode("latin-1")
        match = _REQUEST.fullmatch(text)
        if match is None or match.end(3) > MAX_LINE or len(text) > MAX_HEAD:
            raise _fault(text, True)
        self.method, target, minor, block = match.groups()
        super().__init__(minor, block)
        fields = self.fields
        self.target = target if target[0] == "/" else self._other_target(target)
        host = fields.get("host")
        if host is None:
            if minor == "1":
                raise ProtocolError(400, "no Host header")
        elif _HOST.fullmatch(host) is None:
            raise ProtocolError(400, "the Host header is not a host and port")
        if self.body_length is None and not self.chunked:
            self.body_length = 0
        self.expect_continue = False
        if "expect" in fields:
            if fields["expect"].lower() != "100-continue":
                raise ProtocolError(417, "the only Expect accepted is 100-continue")
            # RFC 9110 §10.1.1: a server ignores it from HTTP/1.0, and it means nothing without a body.
            self.expect_continue = minor == "1" and self.body_length != 0

    def _other_target(self, target: str) -> str:
        if target == "*" and self.method == "OPTIONS":
            return target
        if self.method == "CONNECT":
            raise ProtocolError(501, "CONNECT is not offered; this is no proxy")
        match = re.fullmatch(_ABSOLUTE, target)
        if match is None or not match.group(1) or _HOST.fullmatch(match.group(1)) is None:
            raise ProtocolError(400, "the request target is neither a path nor an http:// URL")
        if self.version == "HTTP/1.1" and "host" not in self.fields:
            raise ProtocolError(400, "no Host header")
        # RFC 9112 §3.2.2: the target's authority replaces whatever Host says.
        self.fields["host"], path, query = match.group(1), match.group(2), match.group(3) or ""
        return "*" if path is None and not query and self.method == "OPTIONS" else (path or "/") + query


class ResponseHead(_Head):
    """The head of a response to a request of method `method`; 1xx heads included (RFC 9112 §6.3).

    ``keep_alive`` is false where the body ends with the connection. Raises ProtocolError.
    """

    __slots__ = ("status", "reason")

    def __init__(self, head: Buffer, method: str) -> None:
        text = head.decode("latin-1")
        match = _RESPONSE.fullmatch(text)
        if match is None or match.start(4) > MAX_LINE + 2 or len(text) > MAX_HEAD:
            raise _fault(text, False)
        minor, digits, reason, block = match.groups()
        super().__init__(minor, block)
        self.status = status = int(digits)
        self.reason = reason or ""
        if status < 200 or status in (204, 304) or method == "HEAD":
            self.body_length = 0
            self.chunked = False
        elif self.body_length is None and not self.chunked:
            self.keep_alive = False


# ---------------------------------------------------------------- reading


def parse_fields(block: str) -> Dict[str, str]:
    """Read header or trailer lines, each ended by CRLF, as names in lower case and values; raises ProtocolError."""
    if re.fullmatch(_FIELD_LINES, block) is None:
        raise ProtocolError(400, "a header line is malformed")
    return _fields(block)


def _fields(block: str) -> Dict[str, str]:
    fields: Dict[str, str] = {}
    lines = block.split("\r\n")
    if len(lines) > MAX_FIELDS + 1:
        raise ProtocolError(431, "more than %d header lines" % MAX_FIELDS)
    lines.pop()
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if name in fields:
            if name in _SINGLE:
                raise ProtocolError(400, "more than one %s header" % name.title())
            value = fields[name] + ("; " if name == "cookie" else ", ") + value
        fields[name] = value
    return fields


def find_head_end(buffer: Buffer, seen: int = 0, request: bool = True) -> int:
    """Return the offset after a head's blank line, or -1 while it has not arrived.

    `seen` bytes of the buffer were there in an earlier call. Raises ProtocolError as soon as what has arrived
    cannot become a head, so that nobody waits for the rest.
    """
    end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
    if end >= 0:
        return end + 4
    line_end = buffer.find(b"\n", 0, MAX_LINE + 2)
    if line_end < 0:
        if len(buffer) > MAX_LINE:
            raise _long_line(request)
        if buffer and re.fullmatch(_REQUEST_START if request else _STATUS_START, buffer) is None:
            raise ProtocolError(400, "these bytes are not HTTP/1.1")
        return -1
    if re.compile(_BARE_LINE_END).search(buffer, max(0, seen - 1)) is not None:
        raise ProtocolError(400, "a line of the head does not end in CRLF")
    if seen <= line_end:
        fault = _line_fault(buffer[:line_end - 1].decode("latin-1"), request)
        if fault is not None:
            raise fault
    if len(buffer) > MAX_HEAD:
        raise ProtocolError(431, "the head is longer than %d bytes" % MAX_HEAD)
    return -1


def remains(head: Buffer) -> Tuple[str, str, Dict[str, str]]:
    """Return method, target and sound header lines of a request head that was refused, whatever there is of it.

    They are for a log, and for the page that asked; nothing may be done because of them.
    """
    lines = [line.rstrip("\r") for line in head.decode("latin-1").split("\n")]
    match = re.match(_REQUEST_LINE.partition(" HTTP")[0], lines[0][:MAX_LINE])
    fields: Dict[str, str] = {}
    for line in lines[1:]:
        if re.fullmatch(_FIELD_LINE, line) is not None:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            fields[name] = "%s, %s" % (fields[name], value) if name in fields else value
    return (match.group(1), match.group(2), fields) if match else ("", "", fields)


# ---------------------------------------------------------------- writing


def field_block(fields: Iterable[Tuple[str, str]]) -> str:
    """Write header lines; raises ValueError where one would not be read back as it is."""
    lines = list(map("\0".join, fields))
    text = "\r\n".join(lines) + "\r\n" if lines else ""
    # NUL stands neither in names nor in values, so a colon or a line end in the wrong place is found.
    if _WRITTEN.fullmatch(text) is None or text.count("\0") != len(lines):
        raise ValueError("a header name or value has a character that HTTP does not allow")
    return text.replace("\0", ": ")


_WRITTEN = re.compile(r"(?:%s\0%s\r\n)*" % (TOKEN, FIELD_VALUE))


# ---------------------------------------------------------------- what was wrong with a head


def _fault(text: str, request: bool) -> ProtocolError:
    """Say why a head did not match; slow, and only for heads that are refused."""
    lines = text.split("\r\n")
    if len(lines[0]) > MAX_LINE:
        return _long_line(request)
    if len(text) > MAX_HEAD:
        return ProtocolError(431, "the head is longer than %d bytes" % MAX_HEAD)
    fault = _line_fault(lines[0], request)
    if fault is not None:
        return fault
    for line in lines[1:-2]:
        if re.fullmatch(_FIELD_LINE, line) is None:
            return ProtocolError(400, _field_fault(line))
    return ProtocolError(400, "the head does not end at its blank line")


def _line_fault(line: str, request: bool) -> Optional[ProtocolError]:
    if len(line) > MAX_LINE:
        return _long_line(request)
    if re.fullmatch(_REQUEST_LINE if request else _STATUS_LINE, line) is not None:
        return None
    if re.fullmatch(_OTHER_VERSION, line) is not None:
        return ProtocolError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return ProtocolError(400, "the %s line is malformed" % ("request" if request else "status"))


def _long_line(request: bool) -> ProtocolError:
    if request:
        return ProtocolError(414, "the request line is longer than %d bytes" % MAX_LINE)
    return ProtocolError(431, "the status line is longer than %d bytes" % MAX_LINE)


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
    if re.fullmatch(TOKEN, name) is None:
        return "a header name is empty or has a character that is not allowed"
    return "a header value has a control character"
