"""requests adapters that know how long a connection has been idle, and which one carries the call in progress.

vLLM's uvicorn closes a connection that was idle for 5.0 s, and the next write on it still seems to succeed (WIRE.md
§1.6), so a connection idle for longer than ``idle_limit`` is closed here instead of used. And a call must be stoppable
from another thread while it waits for its first byte, so the connection in use is told to an `Exchange` before the
request leaves.
"""

import socket
import threading
import time
from typing import Any, Dict, Optional, Type

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ..http1.timed_socket import TimedSocket

__all__ = ["Exchange", "PoolAdapter", "current"]


class Exchange:
    """One request and its reply on the wire: which socket carries it, how far it got, how to break it off."""

    def __init__(self, patience: Optional[float] = None) -> None:
        self.patience = patience  # seconds that sending may take, and each wait for a byte
        self.started = False  # a pool was asked for a connection
        self.connected = False  # a connection was there
        self.reused = False  # and it had carried a request before
        self.sent_at = 0.0  # when the request's head left, by time.monotonic
        self.fresh = False  # do not take an idle connection
        self.cancelled: Optional[str] = None  # why the exchange was broken off
        self._connection: Any = None
        self._socket: Any = None
        self._lock = threading.Lock()

    def attach(self, connection: Any, sock: Any = None) -> None:
        """Tell which connection carries the exchange; called by the connection itself."""
        with self._lock:
            self._connection = connection
            self._socket = sock
            cancelled = self.cancelled
        if sock is not None and sock.gettimeout() != self.patience:
            # urllib3 leaves the connect timeout on it, or that of the previous reply: too little to send a long body.
            sock.settimeout(self.patience)
        if cancelled is not None:
            raise ConnectionAbortedError(cancelled)

    def cancel(self, why: str) -> None:
        """Break the exchange off from any thread: whoever waits for its bytes wakes up with an error."""
        with self._lock:
            if self.cancelled is None:
                self.cancelled = why
            sock = self._socket
            if sock is None:
                sock = getattr(self._connection, "sock", None)
            if sock is not None:
                shut(sock)

    def detach(self) -> None:
        """Forget the connection: it may carry another exchange from now on."""
        with self._lock:
            self._connection = self._socket = None

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit how long the next read may wait for a byte."""
        sock = self._socket
        if sock is not None:
            try:
                if isinstance(sock, TimedSocket):
                    sock.limit_receiving(seconds)
                else:
                    sock.settimeout(seconds)
            except OSError:
                pass  # closed by another thread: the read finds out


def shut(sock: Any) -> None:
    """Shut a socket down both ways; unlike closing it, this wakes a thread that reads from it."""
    try:
        if isinstance(sock, socket.socket):
            # Not SSLSocket.shutdown, which takes the TLS object away from under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except (OSError, ValueError):
        pass  # closed already


class _Current(threading.local):
    exchange: Optional[Exchange] = None


current = _Current()


class _Watched:
    """The part that both connection classes share. `answers` counts the replies since it was opened."""

    sock: Any
    answers = 0
    idle_since = 0.0
    carries: Optional[Exchange] = None

    def connect(self) -> None:
        self.answers = 0
        super().connect()  # type: ignore[misc]
        exchange = self.carries = current.exchange
        if exchange is not None:
            exchange.connected = True
            exchange.attach(self, self.sock)

    def putrequest(self, *args: Any, **kwargs: Any) -> Any:
        exchange = self.carries = current.exchange
        if exchange is not None:
            exchange.reused = self.sock is not None and self.answers > 0
            exchange.connected = self.sock is not None
            exchange.sent_at = time.monotonic()
            exchange.attach(self, self.sock)
        return super().putrequest(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        response = super().getresponse(*args, **kwargs)  # type: ignore[misc]
        self.answers += 1
        return response


class _WatchedHTTPConnection(_Watched, HTTPConnection):
    pass


class _WatchedHTTPSConnection(_Watched, HTTPSConnection):
    pass


class _AgeingPool:
    """The part that both pool classes share: connections that were idle for too long are opened anew."""

    idle_limit = 4.0

    def _get_conn(self, *args: Any, **kwargs: Any) -> Any:
        exchange = current.exchange
        if exchange is not None:
            exchange.started = True
        connection = super()._get_conn(*args, **kwargs)  # type: ignore[misc]
        if getattr(connection, "sock", None) is not None:
            idle = time.monotonic() - connection.idle_since
            if idle > self.idle_limit or (exchange is not None and exchange.fresh):
                connection.close()
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.idle_since = time.monotonic()
            if connection.carries is not None:
                # From here on another thread may use it: the reply that it carried must not break it off.
                connection.carries.detach()
                connection.carries = None
        super()._put_conn(connection)  # type: ignore[misc]


class _AgeingHTTPPool(_AgeingPool, HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _AgeingHTTPSPool(_AgeingPool, HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection

    def _validate_conn(self, conn: Any) -> None:
        if self.cert_reqs == "CERT_NONE":  # insecure_skip_verify: asked for by name, so no InsecureRequestWarning
            if getattr(conn, "sock", None) is None:
                conn.connect()
        else:
            super()._validate_conn(conn)


class PoolAdapter(HTTPAdapter):
    """requests' own adapter over pools that drop connections idle for more than `idle_limit` seconds."""

    def __init__(self, idle_limit: float = 4.0, **kwargs: Any) -> None:
        self._pool_classes: Dict[str, Type[Any]] = {
            "http": type("HTTPPool", (_AgeingHTTPPool,), {"idle_limit": idle_limit}),
            "https": type("HTTPSPool", (_AgeingHTTPSPool,), {"idle_limit": idle_limit}),
        }
        super().__init__(**kwargs)

    def close(self) -> None:
        """Close all idle connections; urllib3 2 leaves those of a pool open while any reply of it is kept."""
        for manager in [self.poolmanager] + list(self.proxy_manager.values()):
            for key in manager.pools.keys():
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> Any:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not known and not str(proxy).lower().startswith("socks"):
            manager.pool_classes_by_scheme = self._pool_classes
        return manager
