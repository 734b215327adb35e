"""One connection to a server, plain or TLS, and the exchange that it carries."""

import errno
import os
import socket
import ssl
import time
from types import FrameType
from typing import Any, List, NamedTuple, Optional, Protocol, Tuple, Union

from . import wait
from .limits import Limits, TimedOut
from .tls import TLSSocket

__all__ = ["BLOCK", "Connection", "Exchange", "HungUp", "NotConnected", "Origin", "connect", "is_own"]

BLOCK = 65536  # bytes received at a time, unless more are asked for

_LACKING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_UNDER_WAY = frozenset((errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY))


class Origin(NamedTuple):
    """Whom to connect to. `scheme` is http or https; `address` is the one to take of those that the host has."""

    scheme: str
    host: str
    port: int
    address: Optional[str] = None


class NotConnected(Exception):
    """No connection could be made: ``kind`` is "address", "refused", "tls", or "lacking", this machine's own lack."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class HungUp(Exception):
    """The connection ended or failed before the response was complete."""


class Held(Protocol):
    """What carries an exchange: a connection of ours, or urllib3's."""

    def shut(self) -> None:
        """Shut it down, so that a thread that waits for it wakes up."""


class Exchange(Limits):
    """A request and its response, which any thread and any signal's handler may break off: there is no lock.

    Whoever takes the connection out of ``_held`` decides what becomes of it: the exchange when it ends, or who cancels
    it. Closing it is always the exchange's own.
    """

    __slots__ = ("client", "cancelled", "carried", "raised", "connection", "_held")

    def __init__(
        self,
        connect: Optional[float] = None,
        silence: Optional[float] = None,
        deadline: Optional[float] = None,
        client: wait.Client = None,
    ) -> None:
        self.connect = connect
        self.silence = silence
        self.deadline = deadline
        self.client = client
        self.cancelled: Optional[str] = None  # why it was broken off
        self.carried = False  # by a connection of ours, not urllib3's
        self.raised: Optional[BaseException] = None  # by the caller's file, while urllib3 read it
        self.connection: Optional["Connection"] = None
        self._held: List[Held] = []

    def attach(self, connection: "Connection") -> None:
        """Take a connection, unless the exchange has been broken off."""
        self.carried = True
        self.connection = connection
        self._held.append(connection)
        if self.cancelled is not None:
            raise HungUp(self.cancelled)

    def hold(self, held: Held) -> None:
        """Let whoever cancels the exchange shut that down; raises HungUp if it has been broken off."""
        self._held.append(held)
        if self.cancelled is not None:
            raise HungUp(self.cancelled)

    def detach(self) -> bool:
        """Let go of what carries the exchange; False if somebody has broken it off, or there is nothing."""
        try:
            self._held.pop()
        except IndexError:
            return False
        return True

    def drop(self) -> None:
        """Close the connection."""
        self.detach()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def cancel(self, why: str) -> None:
        """Break the exchange off: whoever waits for its bytes wakes up."""
        if self.cancelled is None:
            self.cancelled = why
        try:
            held = self._held.pop()
        except IndexError:
            return
        held.shut()


class Connection:
    """A socket to a server. Its methods raise HungUp and TimedOut, and `wait`'s error for a client that left.

    What a signal's handler raises meanwhile passes as it is.
    """

    __slots__ = ("origin", "socket", "pid", "connect_seconds", "sent_at", "idle_since", "_channel", "_tls")

    process = os.getpid()  # of whoever asks; a connection belongs to the process ``pid`` that made it

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.socket = sock
        self.pid = self.process
        self.connect_seconds = 0.0  # how long it took to connect, TLS not counted
        self.sent_at = 0.0  # when the last byte was written, of time.monotonic
        self.idle_since = 0.0
        self._channel: Union[socket.socket, TLSSocket] = sock
        self._tls: Optional[TLSSocket] = None

    def receive(self, exchange: Exchange, size: int = BLOCK) -> bytes:
        """Return what has come, waiting for it; ``b""`` at the end."""
        tls = self._tls
        while True:
            left = exchange.silence if exchange.deadline is None else exchange.left()
            if (tls is None or not tls.pending()) and not wait.readable(self.socket, left, exchange.client):
                raise exchange.over()
            try:
                return self._channel.recv(size)
            except OSError as error:
                _check(error)

    def send(self, data: bytes, exchange: Exchange) -> None:
        """Send all of the data."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._channel.send(rest):]
            except OSError as error:
                _check(error)
                self._wait_for_room(exchange)
        while self._tls is not None:
            try:
                self._tls.flush()
                break
            except OSError as error:
                _check(error)
                self._wait_for_room(exchange)
        self.sent_at = time.monotonic()

    def is_usable(self) -> bool:
        """Tell whether it may carry another request: it has not ended, and nothing came that nobody asked for."""
        return not (self._tls is not None and self._tls.pending()) and not wait.readable(self.socket, 0)

    def shut(self) -> None:
        """Shut it down, which unlike closing wakes a thread that waits for it; not after a fork, for it is shared."""
        if self.pid == self.process:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already

    def close(self) -> None:
        """Close this process's descriptor."""
        self.socket.close()

    def _wait_for_room(self, exchange: Exchange) -> None:
        if not wait.writable(self.socket, exchange.left(), exchange.client):
            raise exchange.over()

    def reach(self, address: Any, limits: Limits, client: wait.Client) -> None:
        """Connect the socket."""
        started = time.monotonic()
        try:
            code = self.socket.connect_ex(address)
        except OSError as error:
            raise _not_connected(error) from error
        if code in _UNDER_WAY:
            if not wait.writable(self.socket, limits.left(), client):
                raise TimedOut("connect")
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            ours = code in _LACKING or (code == errno.EADDRNOTAVAIL and self.socket.family == socket.AF_INET)
            raise NotConnected("lacking" if ours else "refused", os.strerror(code))  # no port left; or no IPv6 here
        self.connect_seconds = time.monotonic() - started

    def secure(self, context: ssl.SSLContext, limits: Limits, client: wait.Client) -> None:
        """Speak TLS from now on."""
        self._channel = self._tls = tls = TLSSocket(self.socket, context, self.origin.host)
        while True:
            try:
                tls.handshake()
                return
            except OSError as error:
                if not is_own(error):
                    raise
                if not isinstance(error, BlockingIOError):
                    raise NotConnected("tls", _words(error)) from error
            if not wait.readable(self.socket, limits.left(), client):
                raise TimedOut("connect")


def _forked() -> None:
    Connection.process = os.getpid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


def connect(origin: Origin, exchange: Exchange, context: Optional[ssl.SSLContext]) -> Connection:
    """Make a connection for an exchange, by one of the host's addresses; raises NotConnected and TimedOut."""
    limits = exchange.connecting()
    try:
        return _connected(origin, exchange, context, limits)
    except TimedOut:
        whole = exchange.deadline
        raise TimedOut("connect" if whole is None or time.monotonic() < whole else "deadline") from None


def _connected(
    origin: Origin, exchange: Exchange, context: Optional[ssl.SSLContext], limits: Limits
) -> Connection:
    addresses = _addresses(origin)
    failure: Exception = NotConnected("address", "the host has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left = limits.left()
        share = Limits(None if left is None else left / (len(addresses) - number), None, None).connecting()
        try:
            sock = socket.socket(family, kind, protocol)
            connection = Connection(origin, sock)
            exchange.attach(connection)
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            failure = _not_connected(error)
            exchange.drop()
            continue
        try:
            connection.reach(address, share, exchange.client)
        except (NotConnected, TimedOut) as error:
            failure = error
            exchange.drop()
            continue
        if context is not None:
            connection.secure(context, limits, exchange.client)
        return connection
    raise failure


def _addresses(origin: Origin) -> List[Tuple[Any, ...]]:
    try:
        return list(socket.getaddrinfo(origin.address or origin.host, origin.port, 0, socket.SOCK_STREAM))
    except UnicodeError as error:
        raise NotConnected("address", "the host name is not one: %s" % error) from error
    except OSError as error:
        if not is_own(error):
            raise
        try:
            socket.socket().close()  # without a descriptor to be had no name is found either
        except OSError as lack:
            raise _not_connected(lack) from lack
        raise NotConnected("address", _words(error)) from error


def _not_connected(error: OSError) -> NotConnected:
    if not is_own(error):
        raise error
    return NotConnected("lacking" if error.errno in _LACKING else "refused", _words(error))


def _check(error: OSError) -> None:
    """Return if a socket would block; raise HungUp for what else it said, and what it did not say as it is."""
    if not is_own(error):
        raise error
    if not isinstance(error, BlockingIOError):
        raise HungUp(_words(error)) from error


def _words(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def is_own(error: BaseException) -> bool:
    """Tell whether what was called has raised an error.

    It is another's if a signal's handler raised it, which runs wherever the main thread is just then (it was given the
    frame that it interrupted), or if it was put here from another thread (no system call of ours raises OSError without
    a number).
    """
    frames: List[FrameType] = []
    step = error.__traceback__
    while step is not None:
        for value in step.tb_frame.f_locals.values() if frames else ():
            if value in frames if type(value) is FrameType else type(value) is tuple and _has_frame(value, frames):
                return False
        frames.append(step.tb_frame)
        step = step.tb_next
    here = bool(frames) and frames[-1].f_globals.get("__name__", "").startswith(__package__ or "")
    return not (here and isinstance(error, OSError) and error.errno is None)


def _has_frame(values: Tuple[Any, ...], frames: List[FrameType]) -> bool:
    return any(type(value) is FrameType and value in frames for value in values)
