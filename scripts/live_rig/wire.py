"""One HTTP exchange over a plain socket: what was sent is chosen byte by byte, what came is kept frame by frame.

A frame is one chunk of a chunked body, or the whole of any other body: how the kernel cut that says nothing about the
server.
"""

import socket
import time
from typing import Any, Dict, List, Optional, Tuple

LENGTH = "content-length reached"
LAST_CHUNK = "chunked terminator"
CUT_CHUNKS = "EOF BEFORE chunked terminator (truncated body)"
NOTHING = "EOF before any response"
CLOSED = "EOF"
RESET = "connection reset (RST)"
SILENT = "recorder timeout"


class Reply:
    """A reply as far as it came."""

    def __init__(self) -> None:
        self.status_line: Optional[str] = None
        self.headers: List[List[str]] = []
        self.frames: List[bytes] = []
        self.end = NOTHING

    def header(self, name: str) -> Optional[str]:
        return next((value for key, value in self.headers if key.lower() == name), None)


class _Source:
    """Bytes of a socket, read as they are needed, until a moment in time."""

    def __init__(self, connection: socket.socket, limit: float) -> None:
        self.connection = connection
        self.until = time.monotonic() + limit
        self.buffer = b""
        self.end: Optional[str] = None

    def more(self) -> bool:
        """Read once; False at the end, whose kind is then in `end`."""
        self.connection.settimeout(max(0.05, self.until - time.monotonic()))
        try:
            data = self.connection.recv(65536)
        except socket.timeout:
            self.end = SILENT
            return False
        except ConnectionResetError:
            self.end = RESET
            return False
        if not data:
            self.end = CLOSED
            return False
        self.buffer += data
        return True

    def until_mark(self, mark: bytes) -> Optional[bytes]:
        """Take what comes before a mark."""
        while mark not in self.buffer:
            if not self.more():
                return None
        head, _, self.buffer = self.buffer.partition(mark)
        return head

    def take(self, count: int) -> Optional[bytes]:
        """Take so many bytes."""
        while len(self.buffer) < count:
            if not self.more():
                return None
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data


def exchange(port: int, request: bytes, method: str, limit: float = 120.0) -> Reply:
    """Send a request to 127.0.0.1 and read the reply to its end."""
    reply = Reply()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.settimeout(60)
        try:
            connection.sendall(request)
        except (ConnectionResetError, BrokenPipeError):
            pass                               # the server has answered before it had read all
        source = _Source(connection, limit)
        head = source.until_mark(b"\r\n\r\n")
        if head is None:
            reply.end = NOTHING if source.end == CLOSED else str(source.end)
            return reply
        lines = head.decode("latin-1").split("\r\n")
        reply.status_line = lines[0]
        reply.headers = [list(line.partition(": ")[::2]) for line in lines[1:]]
        if (reply.header("transfer-encoding") or "").lower() == "chunked":
            _read_chunks(source, reply)
        else:
            _read_plain(source, reply, method)
    return reply


def _read_chunks(source: _Source, reply: Reply) -> None:
    while True:
        size = source.until_mark(b"\r\n")
        if size is None:
            break
        count = int(size.split(b";")[0], 16)
        data = source.take(count + 2)
        if data is None:
            break
        if count == 0:
            reply.end = LAST_CHUNK
            return
        reply.frames.append(data[:-2])
    reply.end = CUT_CHUNKS if source.end == CLOSED else str(source.end)


def _read_plain(source: _Source, reply: Reply, method: str) -> None:
    length = reply.header("content-length")
    if method == "HEAD":
        while source.more():
            pass
        reply.end = "EOF before content-length (%d/%s)" % (len(source.buffer), length)
        return
    if length is not None:
        body = source.take(int(length))
        if body is not None:
            reply.end = LENGTH
            reply.frames = [body] if body else []
            return
        reply.end = "EOF before content-length (%d/%s)" % (len(source.buffer), length)
    else:
        while source.more():
            pass
        reply.end = str(source.end)
    reply.frames = [source.buffer] if source.buffer else []


def text(data: bytes) -> str:
    """Write bytes as a transcript does."""
    return data.decode("utf-8", "backslashreplace")


def as_record(name: str, server: str, request: Dict[str, Any], reply: Reply) -> Dict[str, Any]:
    """Put an exchange into the form of a transcript."""
    return {"name": name, "server": server, "request": request, "status_line": reply.status_line,
            "headers": reply.headers, "end": reply.end, "frames": [text(frame) for frame in reply.frames]}


def head(method: str, path: str, port: int, headers: Dict[str, str], length: Optional[int]) -> bytes:
    """Write a request's head; the transcript's headers may override what is always there."""
    fields: List[Tuple[str, str]] = [("Host", "127.0.0.1:%d" % port), ("Accept", "*/*")]
    if length is not None and "Transfer-Encoding" not in headers:
        fields.append(("Content-Length", str(length)))
    fields += list(headers.items()) + [("Connection", "close")]
    lines = ["%s %s HTTP/1.1" % (method, path)] + ["%s: %s" % field for field in fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
