"""Connections that are kept for the next request, and the requests that they carry. Threads may share a pool."""

import ssl
import time
from collections import deque
from typing import Any, Deque, Dict, Iterator, Optional, Tuple, Union

from .body import Decoder, LengthDecoder
from .chunked import ChunkedDecoder
from .connection import BLOCK, Connection, Exchange, HungUp, NotConnected, Origin, connect, is_own
from .head import ProtocolError, ResponseHead, find_head_end
from .tls import client_context

__all__ = ["Pool", "Response"]

_INTERIM = 16  # 1xx heads before the response
_LOOK = 1.0  # seconds between two looks at all idle connections
# An end that comes so soon after the request was written on a kept connection had begun before: the server closed it
# while the request was under way, and has not read it. In seconds, or times to connect.
_SOON = 0.005
_ROUND_TRIPS = 2


class Pool:
    """Keep connections that have carried a response, at most `kept` to a server and `idle_limit` seconds long.

    There are no locks, which a fork could leave locked: a connection is whose who has taken it out of the pool.
    `authorities` and `cert` are what `tls.client_context` takes.
    """

    def __init__(
        self,
        idle_limit: float = 4.0,
        kept: int = 256,
        authorities: Union[bool, str] = True,
        cert: Union[None, str, Tuple[str, str]] = None,
    ) -> None:
        self.idle_limit = idle_limit
        self.kept = kept
        self._certificates = authorities, cert
        self._context: Optional[ssl.SSLContext] = None
        self._idle: Dict[Origin, Deque[Connection]] = {}
        self._looked = 0.0

    def request(self, origin: Origin, method: str, head: bytes, body: Any, exchange: Exchange) -> "Response":
        """Send a request and return its response, whose body is still to be read.

        `body` is bytes, None, or a `multipart.MultipartBody`. Raises NotConnected, TimedOut, HungUp, ProtocolError for
        what is no response, and what reading the body raises. Only what cannot have been taken is sent again: on a kept
        connection, where writing fails or an end comes at once.
        """
        exchange.carried = True
        kept = self.take(origin)
        try:
            if kept is not None:
                exchange.attach(kept)
                try:
                    return Response(self, exchange, *_carried(kept, method, head, body, exchange))
                except _Stale:
                    if exchange.cancelled is not None:
                        raise
                exchange.drop()
            new = connect(origin, exchange, self._tls_context() if origin.scheme == "https" else None)
            return Response(self, exchange, *_carried(new, method, head, body, exchange))
        except BaseException:
            exchange.drop()
            raise

    def take(self, origin: Origin) -> Optional[Connection]:
        """Return the connection to a server that was used last, if any can be used again."""
        now = time.monotonic()
        if now - self._looked > _LOOK:
            self.tidy()
        idle = self._idle.get(origin)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break  # another thread was faster
            if now - connection.idle_since <= self.idle_limit and connection.is_usable():
                return connection
            connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle.setdefault(connection.origin, deque())
        connection.idle_since = now = time.monotonic()
        if len(idle) < self.kept and connection.pid == connection.process:
            idle.append(connection)
        else:
            connection.close()
        if now - self._looked > _LOOK:
            self.tidy()

    def tidy(self) -> None:
        """Close the idle connections that are too old or have ended."""
        self._looked = now = time.monotonic()
        for idle in list(self._idle.values()):
            for _ in range(len(idle)):
                try:
                    connection = idle.popleft()
                except IndexError:
                    break
                if now - connection.idle_since > self.idle_limit or not connection.is_usable():
                    connection.close()
                else:
                    idle.append(connection)

    def close(self) -> None:
        """Close all idle connections."""
        for idle in list(self._idle.values()):
            while idle:
                try:
                    idle.pop().close()
                except IndexError:
                    break

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            try:
                self._context = client_context(*self._certificates)
            except OSError as error:
                if not is_own(error):
                    raise
                raise NotConnected("tls", "its certificates cannot be read: %s" % error) from error
        return self._context


class _Stale(HungUp):
    """The connection ended so that the server cannot have taken the request, if the connection was a kept one."""


def _carried(
    connection: Connection, method: str, head: bytes, body: Any, exchange: Exchange
) -> Tuple[ResponseHead, bytes]:
    """Send a request; return the head of its response and the bytes after it."""
    unsent: Optional[HungUp] = None
    try:
        if type(body) is bytes and len(body) <= BLOCK:
            connection.send(head + body, exchange)  # in one write
        else:
            _write(connection, head, body, exchange)
    except HungUp as error:
        unsent = error  # the server may have answered before it closed: an error, most likely
    try:
        data = connection.receive(exchange)
    except HungUp as error:
        raise _ended(connection, unsent, str(error)) from error
    if not data:
        raise _ended(connection, unsent, "the server closed the connection without a response") from unsent
    for _ in range(_INTERIM):
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            data, end = _collected(connection, data, exchange)
        response = ResponseHead(data[:end], method)
        data = data[end:]
        if response.status >= 200:
            if unsent is not None:
                response.keep_alive = False
            return response, data
        if response.status == 101:
            raise ProtocolError(400, "the server switches to another protocol, which nobody asked for")
    raise ProtocolError(400, "more than %d interim responses" % _INTERIM)


def _ended(connection: Connection, unsent: Optional[HungUp], reason: str) -> HungUp:
    """Return the error for a connection that ended before a byte of a response had come."""
    if unsent is not None:
        return _Stale(str(unsent))
    soon = max(_SOON, _ROUND_TRIPS * connection.connect_seconds)
    return _Stale(reason) if time.monotonic() - connection.sent_at <= soon else HungUp(reason)


def _write(connection: Connection, head: bytes, body: Any, exchange: Exchange) -> None:
    if body is None or type(body) is bytes:
        connection.send(head, exchange)
        connection.send(body or b"", exchange)
    else:
        body.rewind()
        connection.send(head, exchange)
        for block in iter(lambda: body.read(BLOCK), b""):
            connection.send(block, exchange)


def _collected(connection: Connection, data: bytes, exchange: Exchange) -> Tuple[bytes, int]:
    """Return a head that did not come in one piece with what follows it, and where it ends."""
    buffer = bytearray(data)
    seen = 0
    while True:
        end = find_head_end(buffer, seen, request=False)
        if end >= 0:
            return bytes(buffer), end
        seen = len(buffer)
        data = connection.receive(exchange)
        if not data:
            raise HungUp("the connection ended inside the head of the response")
        buffer += data


class Response:
    """A response whose head has arrived and whose body is read as it comes; what requests calls ``raw``.

    At the body's end (``ended``) the connection goes back to the pool. `read` and what stands below it are there for
    what looks at a requests.Response: hooks and instrumentation.
    """

    __slots__ = (
        "status", "reason", "fields", "version", "ended", "_pool", "_exchange", "_keep", "_decoder", "_rest", "_fault",
    )

    def __init__(self, pool: Pool, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        self.status = head.status
        self.reason = head.reason
        self.fields = head.fields
        self.version = 11 if head.version == "HTTP/1.1" else 10
        self._pool = pool
        self._exchange = exchange
        self._keep = head.keep_alive
        self._rest = rest  # received, still to be taken apart
        self._fault: Optional[ProtocolError] = None
        self._decoder: Decoder = ChunkedDecoder() if head.chunked else LengthDecoder(head.body_length)
        self.ended = self._decoder.finished
        if self.ended:
            self._finish(rest)

    def read1(self, size: int = BLOCK) -> bytes:
        """Return what is there of the body, waiting for it; ``b""`` at its end.

        Raises TimedOut, after which it can be read on, HungUp and ProtocolError.
        """
        body = self._decoder
        while not self.ended:
            if self._fault is not None:
                raise self._fault
            data = self._rest
            if data:
                self._rest = b""
            else:
                data = self._received(size)
            try:
                block = body.feed(data)
            except ProtocolError as fault:
                self._fault = fault
                block = fault.before
            if body.finished:
                self.ended = True
                self._finish(body.rest)
            if block:
                return block
        return b""

    def close(self) -> None:
        """Close the connection, unless the body was read to its end and it is another's."""
        if not self.ended:
            self._exchange.drop()

    def _received(self, size: int) -> bytes:
        connection = self._exchange.connection
        if connection is None:
            raise HungUp("the connection was closed")
        if connection.pid != connection.process:
            raise HungUp("the connection belongs to the process that made it")
        data = connection.receive(self._exchange, size)
        if not data:
            try:
                self._decoder.end()
            except ProtocolError as error:
                raise HungUp(error.message) from None
        return data

    def _finish(self, rest: bytes) -> None:
        exchange = self._exchange
        # Bytes that belong to no response: what comes next on this connection is not to be trusted.
        if rest or not self._keep:
            exchange.drop()
            return
        connection = exchange.connection
        if connection is None or not exchange.detach():
            exchange.drop()
        else:
            exchange.connection = None
            self._pool.give_back(connection)

    # ------------------------------------------------------------ as urllib3 has it

    @property
    def closed(self) -> bool:
        """Whether nothing is left to be read."""
        return self.ended or self._exchange.connection is None

    def read(self, amt: Optional[int] = None, decode_content: Optional[bool] = None) -> bytes:
        """Return what there is of the body; all of it without `amt`."""
        return self.read1() if amt is not None else b"".join(self.stream())

    def stream(self, amt: int = BLOCK, decode_content: Optional[bool] = None) -> Iterator[bytes]:
        """Yield the body in blocks as they come."""
        return iter(self.read1, b"")

    def release_conn(self) -> None:
        """Do what `close` does."""
        self.close()
