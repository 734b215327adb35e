"""A client's socket with a time limit on every wait."""

import socket
import time
from typing import Tuple

from ..timed_socket import TIMED_OUT, TimedSocket

__all__ = ["Channel"]

_LINGER = 5.0  # seconds in all that a refused client may go on sending
_LINGER_IDLE = 1.0  # seconds of silence after which it has understood
_JOINED = 64 * 1024  # bytes up to which parts are copied together rather than gathered by the kernel


class Channel:
    """Receive and send on a connected socket, each wait limited in seconds.

    A send that fits into the kernel's buffer costs one system call, and so does a read.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: TimedSocket) -> None:
        self.sock = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # a Unix socket, or a client that has gone
            pass

    def receive(self, size: int, seconds: float) -> bytes:
        """Return what has arrived, at most `size` bytes; ``b""`` at the end of the input.

        Raises TimeoutError after `seconds` of silence, another OSError if the connection broke.
        """
        self.sock.limit_receiving(seconds)
        try:
            return self.sock.recv(size)
        except TIMED_OUT:
            raise TimeoutError("nothing was received for %g seconds" % seconds) from None

    def send(self, parts: Tuple[bytes, ...], seconds: float) -> None:
        """Send all parts in one write where the kernel takes them.

        Raises TimeoutError once the client has taken nothing for `seconds`.
        """
        sock = self.sock
        sock.limit_sending(seconds)
        total = sum(map(len, parts))
        data = b""
        try:
            if len(parts) == 1 or total <= _JOINED or not hasattr(sock, "sendmsg"):
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                sent = sock.send(data)
            else:
                sent = sock.sendmsg(parts)
            if sent < total:
                rest = memoryview(data or b"".join(parts))[sent:]
                while rest:
                    rest = rest[sock.send(rest):]
        except TIMED_OUT:
            raise TimeoutError("nothing was taken for %g seconds" % seconds) from None

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
