"""The body of a response that requests has made: read block by block, whatever stands behind ``raw``."""

import socket
from typing import Any, Optional

from urllib3.response import HTTPResponse

from ..http1.connection import Exchange, HungUp

__all__ = ["RawBody"]


class RawBody:
    """A response's body as it comes, still encoded. What its hooks have read already is read again."""

    def __init__(self, response: Any, exchange: Exchange) -> None:
        self.ended = False
        self._response = response
        self._raw: Any = response.raw
        self._exchange = exchange
        self._limit: Optional[float] = exchange.limits.silence
        self._sock = _socket_of(self._raw)
        self._content: Optional[bytes] = response.content if response._content_consumed else None
        if self._sock is not None:
            exchange.hold(_Hold(self._sock))

    @property
    def decoded(self) -> bool:
        """Whether the content is what `read1` returns, and not its encoding."""
        return self._content is not None

    def read1(self, size: int = 65536) -> bytes:
        """Return what is there of the body, waiting for it; ``b""`` at its end."""
        if self._content is not None:
            block, self._content = self._content, b""
        else:
            self._set_timeout(self._exchange.limits.left())
            block = self._read(size)
        self.ended = not block
        if self.ended:
            self._exchange.detach()
        return block

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._exchange.detach()
        self._response.close()

    def _read(self, size: int) -> bytes:
        raw = self._raw
        if not isinstance(raw, HTTPResponse):  # an adapter's own, or a test double's
            return raw.read(size) or b""
        if hasattr(raw, "read1"):  # urllib3 2.2 and newer
            return raw.read1(size, decode_content=False)
        below: Any = getattr(raw, "_fp", None)
        if not hasattr(below, "read1"):
            return raw.read(size, decode_content=False) or b""
        # urllib3 1.26 waits for whole chunks; http.client under it gives what is there.
        block: bytes = below.read1(size)
        if not block:
            if getattr(below, "length", None):
                raise HungUp("%d bytes are missing" % below.length)
            raw.release_conn()
        return block

    def _set_timeout(self, seconds: Optional[float]) -> None:
        if seconds != self._limit and self._sock is not None:
            self._limit = seconds
            self._sock.settimeout(seconds)


class _Hold:
    """What breaks off an exchange that urllib3's connection carries."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def shut(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass  # closed already


def _socket_of(raw: Any) -> Any:
    """Return the socket that urllib3 reads from, if it is where its versions of today have it."""
    return getattr(getattr(raw, "_connection", None), "sock", None)
