"""What the lean adapter reads: the head of a reply from a socket, its body as it comes, and requests' view of both."""

import datetime
import socket
from typing import Any, Iterator, Optional, Tuple

import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers
from urllib3.exceptions import ProtocolError
from urllib3.response import HTTPResponse

from ..http1 import head as http1
from ..http1.chunked import ChunkedDecoder
from ..http1.head import ResponseHead, find_head_end, parse_response_head

__all__ = ["BLOCK", "Body", "LeanResponse", "read_head"]

BLOCK = 65536  # bytes read at a time, unless more are asked for
_INTERIM = 16  # 1xx heads before the reply
_NO_TIME = datetime.timedelta(0)


def read_head(sock: socket.socket, data: bytes, method: str) -> Tuple[ResponseHead, bytes]:
    """Return the head of the reply and the bytes after it; `data` is what has come already."""
    for _ in range(_INTERIM):
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            data, end = _collected(sock, data)
        head = parse_response_head(data[:end], method)
        data = data[end:]
        if head.status >= 200:
            return head, data
        if head.status == 101:
            raise http1.ProtocolError(400, "the server switches to another protocol, which nobody asked for")
    raise http1.ProtocolError(400, "more than %d interim replies" % _INTERIM)


def _collected(sock: socket.socket, data: bytes) -> Tuple[bytes, int]:
    """Return a head that did not come in one piece with what follows it, and where it ends."""
    buffer = bytearray(data)
    seen = 0
    while True:
        end = find_head_end(buffer, seen, request=False)
        if end >= 0:
            return bytes(buffer), end
        seen = len(buffer)
        data = sock.recv(BLOCK)
        if not data:
            if not buffer:
                raise ConnectionResetError("the server closed the connection without a reply")
            raise ProtocolError("the connection ended inside the head of the reply")
        buffer += data


class Body:
    """The body of a reply as it comes in; what requests and reply.py call ``raw``."""

    long_block = 4 * BLOCK  # what to ask for where nobody waits for the first part; not through urllib3, which waits

    def __init__(self, connection: Any, head: ResponseHead, rest: bytes) -> None:
        self.head = head
        self.status = head.status
        self.reason = head.reason
        self._ended = False  # nothing more will come
        self.on_release: Any = None
        self._releases = False
        self._connection: Any = connection
        self._rest = rest  # received, still to be taken apart
        self._ready = b""  # taken apart, still to be handed out
        self._fault: Optional[http1.ProtocolError] = None
        self._left = head.body_length
        self._chunks = ChunkedDecoder() if head.chunked else None
        self._keep = head.keep_alive
        if self._left == 0:
            self._end(rest)

    @property
    def closed(self) -> bool:
        """Whether nothing is left to be read; urllib3 1.26 reads no further then."""
        return self._ended and not self._ready

    def read1(self, amt: Optional[int] = None, decode_content: Optional[bool] = None) -> bytes:
        """Return what is there of the body, at most `amt` bytes, waiting for the first; ``b""`` at its end."""
        block = self._ready
        if block:
            self._ready = b""
        else:
            size = amt if amt is not None and amt > BLOCK else BLOCK
            chunks = self._chunks
            block = self._next_counted(size) if chunks is None else self._next_of_chunks(chunks, size)
        if amt is not None and 0 <= amt < len(block):
            self._ready = block[amt:]
            return block[:amt]
        return block

    def read(self, amt: Optional[int] = None, decode_content: Optional[bool] = None) -> bytes:
        """Return what is there of the body, at most `amt` bytes; all of it without `amt`."""
        if amt is not None and amt >= 0:
            return self.read1(amt)
        return b"".join(iter(self.read1, b""))

    def stream(self, amt: int = BLOCK, decode_content: Optional[bool] = None) -> Iterator[bytes]:
        """Yield the body in blocks of at most `amt` bytes."""
        return iter(lambda: self.read1(amt), b"")

    def release_conn(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        connection = self._connection
        if connection is None or not self._ended or not self._keep:
            self.close()
            return
        self._connection = None
        self.on_release(connection)

    def release_at_end(self) -> None:
        """Give the connection back as soon as the body has been read to its end, as urllib3 does."""
        self._releases = True
        if self._ended:
            self.release_conn()

    def close(self) -> None:
        """Close the connection unless it was given back."""
        connection, self._connection = self._connection, None
        self._ended = True
        if connection is not None:
            connection.close()

    def _next_counted(self, size: int) -> bytes:
        while not self._ended:
            block = self._counted(self._received(size))
            if block:
                return block
        return b""

    def _next_of_chunks(self, chunks: ChunkedDecoder, size: int) -> bytes:
        while not self._ended:
            if self._fault is not None:
                raise self._fault
            data = self._received(size)
            try:
                block = chunks.feed(data)
            except http1.ProtocolError as fault:
                self._fault = fault
                block = fault.before
            if chunks.finished:
                self._end(chunks.rest)
            if block:
                return block
        return b""

    def _received(self, size: int) -> bytes:
        data: bytes = self._rest
        if data:
            self._rest = b""
            return data
        connection = self._connection
        if connection is None or connection.sock is None:
            raise ProtocolError("the connection was closed")
        try:
            data = connection.sock.recv(size)
        except BlockingIOError as error:
            raise socket.timeout("timed out") from error
        if not data:
            self._cut_off()
        return data

    def _cut_off(self) -> None:
        """Take the end of the connection for that of the body, or raise."""
        if self._chunks is not None:
            raise ProtocolError("the connection ended inside a chunked body")
        if self._left is not None:
            raise ProtocolError("the connection ended %d bytes before the body's length" % self._left)
        self._end(b"")

    def _counted(self, data: bytes) -> bytes:
        if self._left is not None:
            extra = data[self._left:]
            data = data[:self._left]
            self._left -= len(data)
            if not self._left:
                self._end(extra)
        return data

    def _end(self, extra: bytes) -> None:
        self._ended = True
        if extra:  # bytes that belong to no reply: what comes next on this connection is not to be trusted
            self._keep = False
        if self._releases:
            self.release_conn()


class _DecodedBody(HTTPResponse):
    """A body with a ``Content-Encoding``: nobody asked for one, and urllib3 decodes it all the same."""

    def __init__(self, body: Body, headers: Any) -> None:
        plain = {name: value for name, value in headers.items() if name != "transfer-encoding"}
        super().__init__(
            body, plain, body.status, reason=body.reason, preload_content=False,  # type: ignore[arg-type]
        )
        self._body_below = body

    def release_conn(self) -> None:
        """Give the connection back."""
        self._body_below.release_conn()


class LeanResponse(requests.Response):
    """A response whose parts that hardly anybody reads are made when somebody does."""

    def __init__(self, request: requests.PreparedRequest, body: Body) -> None:
        self._content = False  # type: ignore[assignment]  # requests' own mark for "not read yet"
        self._content_consumed = False
        self._next = None
        self.history = []
        self.elapsed = _NO_TIME
        self.status_code = body.status
        self.reason = body.reason
        self.url = request.url or ""
        self.request = request
        self.fields = fields = body.head.fields
        coding = fields.get("content-encoding", "identity")
        self.raw = body if coding == "identity" else _DecodedBody(body, fields)

    def __getattr__(self, name: str) -> Any:
        if name == "headers":
            self.headers = CaseInsensitiveDict(self.fields)
        elif name == "cookies":
            self.cookies = RequestsCookieJar()
        elif name == "encoding":
            self.encoding = get_encoding_from_headers(self.headers)
        else:
            raise AttributeError(name)
        return self.__dict__[name]
