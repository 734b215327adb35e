"""The body of a response that requests has made: read block by block, whatever stands behind ``raw``."""

import http.client
import os
import socket
from typing import Any, Optional

from urllib3.response import HTTPResponse

from ..http1 import wait
from ..http1.connection import Exchange, HungUp

__all__ = ["RawBody"]


class RawBody:
    """A response's body as it comes, still encoded. What its hooks have read already is read again."""

    def __init__(self, response: Any, exchange: Exchange) -> None:
        self.ended = False
        self._response = response
        self._raw: Any = response.raw
        self._exchange = exchange
        self._below: Any = getattr(self._raw, "_fp", None)  # http.client's response
        self._buffer: Any = getattr(self._below, "fp", None)
        # Where there is none each read takes the time that it takes.
        self._sock: Any = getattr(getattr(self._buffer, "raw", None), "_sock", None)
        self._content: Optional[bytes] = response.content if response._content_consumed else None
        self.resumes = self._sock is not None  # a read that took too long may be tried again
        if self._sock is not None:
            try:
                exchange.hold(_Hold(self._sock))
            except HungUp:
                response.close()
                raise

    @property
    def decoded(self) -> bool:
        """Whether the content is what `read1` returns, and not its encoding."""
        return self._content is not None

    def read1(self, size: int = 65536) -> bytes:
        """Return what is there of the body, waiting for it; ``b""`` at its end."""
        if self._content is not None:
            block, self._content = self._content, b""
        else:
            left = self._exchange.left()
            if self._sock is not None and not self._has_come():
                if not wait.readable(self._sock, left, self._exchange.client):
                    raise self._exchange.over()
                self._sock.settimeout(self._exchange.left())
            block = self._read(size)
        self.ended = not block
        if self.ended:
            self._exchange.detach()
        return block

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._exchange.detach()
        self._response.close()

    def _has_come(self) -> bool:
        """Tell whether http.client has received what it has not yet given; the socket may have nothing more to say."""
        below = self._below
        if below.fp is None or below.length == 0:
            return True  # it is at its end
        self._sock.settimeout(0)
        try:
            ahead = self._buffer.peek(1)
        except (OSError, ValueError):
            return False
        finally:
            self._sock.settimeout(self._exchange.left())
        # The line end after a chunk is not the next one.
        return bool(ahead) and not (below.chunk_left == 0 and b"\r\n".startswith(ahead))

    def _read(self, size: int) -> bytes:
        raw = self._raw
        if not isinstance(raw, HTTPResponse):  # an adapter's own, or a test double's
            return raw.read(size) or b""
        if hasattr(raw, "read1"):  # urllib3 2.2 and newer
            return raw.read1(size, decode_content=False)
        if not isinstance(self._below, http.client.HTTPResponse):
            return raw.read(size, decode_content=False) or b""
        # urllib3 1.26 waits for whole chunks; http.client under it gives what is there.
        block: bytes = self._below.read1(size)
        if not block:
            if self._below.length:
                raise HungUp("%d bytes are missing" % self._below.length)
            self._below.close()  # its read1 does not, at the end of a known length (Python 3.8)
            raw.release_conn()
        return block


class _Hold:
    """What breaks off an exchange that urllib3's connection carries."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._pid = os.getpid()

    def shut(self) -> None:
        if self._pid == os.getpid():
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except (OSError, ValueError):
                pass  # closed already
