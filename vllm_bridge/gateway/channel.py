"""A client's socket with a time limit on every wait."""

import select
import socket
import time
from typing import Any, Callable, Optional, Tuple

__all__ = ["Channel"]

_LINGER = 5.0  # seconds in all that a refused client may go on sending
_LINGER_IDLE = 1.0  # seconds of silence after which it has understood
_JOINED = 64 * 1024  # bytes up to which parts are copied together rather than gathered by the kernel


class Channel:
    """Receive and send on a connected socket, each wait limited in seconds.

    The socket never blocks: a send that fits into the kernel's buffer costs one system call, and
    limits change without one.
    """

    __slots__ = ("sock", "_readable", "_writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # a Unix socket, or a client that has gone
            pass
        self._readable = _waiter(sock, False)
        self._writable: Optional[Callable[[float], bool]] = None

    def receive(self, size: int, seconds: float) -> bytes:
        """Return what has arrived, at most `size` bytes; ``b""`` at the end of the input.

        Raises TimeoutError after `seconds` of silence, another OSError if the connection broke.
        """
        while self._readable(seconds):
            try:
                return self.sock.recv(size)
            except (BlockingIOError, InterruptedError):  # reported readable, and was not
                continue
        raise TimeoutError("nothing was received for %g seconds" % seconds)

    def send(self, parts: Tuple[bytes, ...], seconds: float) -> None:
        """Send all parts in one write where the kernel takes them.

        Raises TimeoutError once the client has taken nothing for `seconds`.
        """
        total = sum(map(len, parts))
        data = b""
        try:
            if len(parts) == 1 or total <= _JOINED or not hasattr(self.sock, "sendmsg"):
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                sent = self.sock.send(data)
            else:
                sent = self.sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < total:
            self._send_rest(memoryview(data or b"".join(parts))[sent:], seconds)

    def _send_rest(self, rest: memoryview, seconds: float) -> None:
        if self._writable is None:
            self._writable = _waiter(self.sock, True)
        while rest:
            if not self._writable(seconds):
                raise TimeoutError("nothing was taken for %g seconds" % seconds)
            try:
                rest = rest[self.sock.send(rest):]
            except (BlockingIOError, InterruptedError):
                continue

    def linger(self) -> None:
        """End the output and read on for a while, so that the last reply reaches a client that is still sending.

        Closing with unread input would reset the connection, and the reply could be lost with it.
        """
        end = time.monotonic() + _LINGER
        try:
            self.sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < end and self.receive(65536, _LINGER_IDLE):
                pass
        except OSError:
            pass


def _waiter(sock: socket.socket, write: bool) -> Callable[[float], bool]:
    """Return a function that waits for the socket, at most the seconds it is given."""
    if hasattr(select, "poll"):
        poll: Any = select.poll()
        poll.register(sock, select.POLLOUT if write else select.POLLIN)

        def wait(seconds: float, _poll: Callable[[float], Any] = poll.poll) -> bool:
            return bool(_poll(seconds * 1000))

        return wait

    def wait_by_select(seconds: float) -> bool:  # pragma: no cover - Windows
        readable, writable, _ = select.select([] if write else [sock], [sock] if write else [], [], seconds)
        return bool(readable or writable)

    return wait_by_select  # pragma: no cover - Windows
