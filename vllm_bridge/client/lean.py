"""A lean requests adapter for plain HTTP without a proxy: connections of ``http.client``, heads read by http1.py.

A small call costs a third of what it costs over urllib3's pools. What it is not made for goes to the adapter beside it:
TLS, proxies, bodies of unknown length, and everything while ``HTTPAdapter.send`` is replaced, as the ``responses``
library does. What http1.py is not sure of is refused.
"""

import http.client
import select
import socket
import threading
import time
from types import FunctionType, ModuleType
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Set, Tuple
from urllib.parse import urlsplit

import requests
import requests.adapters
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.exceptions import ProtocolError

from .adapter import Exchange, current
from ..http1 import head as http1
from ..http1.head import field_block
from .lean_reply import BLOCK, Body, LeanResponse, read_head
from ..http1.timed_socket import TIMED_OUT, TimedSocket, timed

__all__ = ["LeanAdapter", "PlainRequest", "is_own"]

_URLS = 256  # addresses taken apart and kept
_SEND: Any = HTTPAdapter.send  # as it was at import

Timeout = Tuple[Optional[float], Optional[float]]


class _Target(NamedTuple):
    """A URL taken apart: whom to connect to, and how the request begins."""

    origin: Tuple[str, int]
    path: str
    host: str


class PlainRequest(requests.PreparedRequest):
    """A request of the transport's: its headers, a dict, frame it by Content-Length alone; a host goes by ``Host``."""


class _Connection(http.client.HTTPConnection):
    """A connection that knows whether it may carry another request. `idle_since` is of time.monotonic."""

    sock: Optional[TimedSocket]
    idle_since = 0.0
    _poll: Any = None

    def connect(self) -> None:
        super().connect()
        self.sock = timed(self.sock)  # type: ignore[arg-type]
        self._poll = None

    def is_usable(self, idle_limit: float) -> bool:
        """Tell whether nothing speaks against another request; bytes that nobody asked for do, and so does the end."""
        sock = self.sock
        if sock is None or time.monotonic() - self.idle_since > idle_limit:
            return False
        if self._poll is None:
            if not hasattr(select, "poll"):  # pragma: no cover - Windows
                return not select.select([sock], [], [], 0)[0]
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        return not self._poll.poll(0)


class LeanAdapter(BaseAdapter):
    """Send what is plain HTTP to a server itself, and anything else through `other`.

    Connections idle for more than `idle_limit` seconds are not used again; at most `pool_maxsize` of a server are
    kept. Threads may share it.
    """

    def __init__(self, other: BaseAdapter, idle_limit: float = 4.0, pool_maxsize: int = 10) -> None:
        super().__init__()
        self._other = other
        self._idle_limit = idle_limit
        self._pool_maxsize = pool_maxsize
        self._idle: Dict[Tuple[str, int], List[_Connection]] = {}
        self._lock = threading.Lock()
        self._targets: Dict[str, Optional[_Target]] = {}

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request and return its response with the body still to be read; raises what requests raises."""
        url = request.url or ""
        target = self._targets.get(url) or self._target(url)
        limits = timeout if type(timeout) is tuple else (timeout, timeout)
        fields = list(request.headers.items())
        if type(request) is PlainRequest:
            plain, named = True, "Host" in request.headers
        else:
            names = {name.lower() for name, _ in fields}
            plain, named = _is_plain(request.body, names, limits), "host" in names
        replaced = HTTPAdapter.send is not _SEND or not _IS_OWN
        proxied = proxies and any(proxies.values()) and select_proxy(url, proxies)
        if target is None or proxied or replaced or not plain:
            request.headers = CaseInsensitiveDict(fields)
            return self._other.send(
                request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies
            )
        if not named:
            fields.insert(0, ("Host", target.host))
        try:
            head = "%s %s HTTP/1.1\r\n%s\r\n" % (request.method, target.path, field_block(fields))
        except ValueError as error:
            raise requests.exceptions.InvalidHeader(str(error), request=request) from None
        watched = current.exchange
        exchange = watched or Exchange(limits[1])
        connection = self._connected(target, limits, exchange, request)
        try:
            body = _carry(connection, exchange, head.encode("latin-1"), request)
        except BaseException as error:
            connection.close()
            _raise_as_requests_does(error, request)
        body.on_release = self._give_back
        if watched is None:  # nobody has to let go of the connection before it may carry another request
            body.release_at_end()
        response = LeanResponse(request, body)
        response.connection = self  # type: ignore[assignment]
        if not stream:
            response.content
        return response

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            lists, self._idle = list(self._idle.values()), {}
        for idle in lists:
            for connection in idle:
                connection.close()
        self._other.close()

    # ------------------------------------------------------------ connections

    def _connected(
        self, target: _Target, limits: Timeout, exchange: Exchange, request: requests.PreparedRequest
    ) -> _Connection:
        exchange.started = True
        connection = None if exchange.fresh else self._take(target.origin)
        exchange.reused = connection is not None
        if connection is None:
            connection = _Connection(*target.origin, timeout=limits[0])
            try:
                connection.connect()
            except socket.timeout as error:
                raise requests.exceptions.ConnectTimeout(error, request=request) from error
            except UnicodeError as error:
                raise requests.exceptions.InvalidURL("the host name is not one: %s" % error, request=request) from error
            except OSError as error:
                raise requests.exceptions.ConnectionError(error, request=request) from error
        exchange.connected = True
        return connection

    def _take(self, origin: Tuple[str, int]) -> Optional[_Connection]:
        """Return the connection that was used last, if any is usable."""
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                if not idle:
                    return None
                connection = idle.pop()
            if connection.is_usable(self._idle_limit):
                return connection
            connection.close()

    def _give_back(self, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault((connection.host, connection.port), [])
            if len(idle) < self._pool_maxsize:
                idle.append(connection)
                return
        connection.close()

    def _target(self, url: str) -> Optional[_Target]:
        """Return how to reach a URL, ``None`` if that is not this adapter's."""
        if url in self._targets:
            return self._targets[url]
        if len(self._targets) >= _URLS:
            self._targets.clear()
        self._targets[url] = target = _taken_apart(url)
        return target


def _taken_apart(url: str) -> Optional[_Target]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname
    if parts.scheme != "http" or not host or "@" in parts.netloc or "%" in host or not url.isascii():
        return None
    path = parts.path or "/"
    if parts.query:
        path += "?" + parts.query
    shown = "[%s]" % host if ":" in host else host
    if not set(path).isdisjoint(" \t\r\n\x7f") or any(ord(char) < 33 for char in path):
        return None
    return _Target((host, port or 80), path, shown if port in (None, 80) else "%s:%d" % (shown, port))


def is_own(function: Any, module: ModuleType) -> bool:
    """Tell whether a function is the one that requests brings, and not somebody's in its place."""
    # A proxy object (wrapt) would show the globals of what it wraps.
    return type(function) is FunctionType and function.__globals__ is module.__dict__


_IS_OWN = is_own(_SEND, requests.adapters)


def _is_plain(body: Any, names: Set[str], limits: Any) -> bool:
    if body is not None and type(body) is not bytes and not (hasattr(body, "read") and hasattr(body, "__len__")):
        return False
    if "transfer-encoding" in names or (body is not None and "content-length" not in names):
        return False
    if len(limits) != 2:
        return False
    for limit in limits:
        if limit is not None and not isinstance(limit, (int, float)):
            return False
    return True


def _carry(
    connection: _Connection, exchange: Exchange, head: bytes, request: requests.PreparedRequest
) -> Body:
    """Send a request and read the head of its reply."""
    sock = connection.sock
    assert sock is not None
    exchange.sent_at = time.monotonic()
    exchange.attach(connection, sock)
    complete = True
    try:
        _write(sock, head, request.body)
    except TIMED_OUT:
        raise
    except (BrokenPipeError, ConnectionResetError):
        complete = False  # the server may have answered before it closed: an error, most likely
    method = request.method or ""
    data = sock.recv(BLOCK)
    if data:
        exchange.reused = False  # it was not closed, so whatever follows is this reply's own trouble
    reply, data = read_head(sock, data, method)
    body = Body(connection, reply, data)
    if not complete:
        reply.keep_alive = body._keep = False
    return body


def _write(sock: socket.socket, head: bytes, body: Any) -> None:
    if body is None:
        sock.sendall(head)
    elif type(body) is bytes:
        if len(body) <= BLOCK:  # head and body leave in one write
            sock.sendall(head + body)
        else:
            sock.sendall(head)
            sock.sendall(body)
    else:
        sock.sendall(head)
        for block in iter(lambda: body.read(BLOCK), b""):
            sock.sendall(block)


def _raise_as_requests_does(error: BaseException, request: requests.PreparedRequest) -> NoReturn:
    if isinstance(error, TIMED_OUT):
        raise requests.exceptions.ReadTimeout(error, request=request) from error
    if isinstance(error, (OSError, ProtocolError)):
        raise requests.exceptions.ConnectionError(error, request=request) from error
    if isinstance(error, http1.ProtocolError):
        raise requests.exceptions.InvalidHeader(str(error), request=request) from error
    raise error
