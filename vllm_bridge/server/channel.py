"""A client's socket with a time limit on every wait."""

import socket
import time
from typing import NoReturn, Tuple

from ..http1.timed_socket import TIMED_OUT, TimedSocket

__all__ = ["Channel"]

_LINGER = 5.0  # seconds in all that a refused client may go on sending
_LINGER_IDLE = 1.0  # seconds of silence after which it has understood
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
_JOINED = 64 * 1024  # bytes up to which parts are copied together rather than gathered by the kernel


class Channel:
    """Receive and send on a connected socket, each wait limited in seconds.

    A send that fits into the kernel's buffer costs one system call, and so does a read. `patience` is how many
    seconds the other side may take nothing. ``lost`` tells that a send or a read has failed: nobody is there any more.
    """

    __slots__ = ("sock", "lost", "_patience")

    def __init__(self, sock: TimedSocket, patience: float) -> None:
        self.sock = sock
        self.lost = False
        self._patience = patience
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
        except OSError:
            self.lost = True
            raise

    def send(self, data: bytes) -> None:
        """Send all of it; raises TimeoutError once nothing was taken for `patience` seconds, or another OSError."""
        sock = self.sock
        sock.limit_sending(self._patience)
        try:
            sent = sock.send(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:])
        except OSError as error:
            self._fail(error)

    def send_parts(self, parts: Tuple[bytes, ...]) -> None:
        """Send all parts, in one write where the kernel takes them."""
        total = sum(map(len, parts))
        if total <= _JOINED or not hasattr(self.sock, "sendmsg"):
            self.send(b"".join(parts))
            return
        self.sock.limit_sending(self._patience)
        try:
            sent = self.sock.sendmsg(parts)
            if sent < total:
                self._send_rest(memoryview(b"".join(parts))[sent:])
        except OSError as error:
            self._fail(error)

    def send_now(self, data: bytes) -> bytes:
        """Send what the kernel takes at once; return the rest."""
        try:
            sent = self.sock.send(data, _DONT_WAIT)
        except BlockingIOError:
            return data
        except OSError:
            self.lost = True
            raise
        return data[sent:]

    def _send_rest(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self.sock.send(rest):]

    def _fail(self, error: OSError) -> NoReturn:
        self.lost = True
        if isinstance(error, TIMED_OUT):
            raise TimeoutError("nothing was taken for %g seconds" % self._patience) from None
        raise error

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
