"""A socket with a time limit for receiving and one for sending, which the kernel keeps where it can.

With a limit of Python's own every read is a poll and a read, and each lets go of the GIL: among many threads that is a
good part of what a small call costs. Linux keeps the limits itself (socket(7), SO_RCVTIMEO and SO_SNDTIMEO).
"""

import socket
import struct
import sys
from typing import Any, Optional

__all__ = ["KernelTimedSocket", "TIMED_OUT", "TimedSocket", "timed"]

# What an operation raises when its time is over.
TIMED_OUT = (BlockingIOError, socket.timeout)

_LONGEST = 1e9  # seconds


class TimedSocket(socket.socket):
    """Both limits by way of ``settimeout``; in seconds, ``None`` waits for ever."""

    __slots__ = ()

    def limit_receiving(self, seconds: Optional[float]) -> None:
        """Limit how long the next ``recv`` may wait."""
        if seconds != self.gettimeout():
            self.settimeout(seconds)

    def limit_sending(self, seconds: Optional[float]) -> None:
        """Limit how long the next ``send`` may wait for room."""
        if seconds != self.gettimeout():
            self.settimeout(seconds)


class KernelTimedSocket(TimedSocket):
    """Both limits kept by the kernel."""

    __slots__ = ("_receiving", "_sending")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        super().settimeout(None)
        self._receiving: Optional[float] = None
        self._sending: Optional[float] = None

    def limit_receiving(self, seconds: Optional[float]) -> None:
        """Limit how long a ``recv`` may wait."""
        if seconds != self._receiving:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))
            self._receiving = seconds

    def limit_sending(self, seconds: Optional[float]) -> None:
        """Limit how long a ``send`` may wait for room."""
        if seconds != self._sending:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))
            self._sending = seconds

    def settimeout(self, value: Optional[float]) -> None:
        """Set both limits."""
        self.limit_receiving(value)
        self.limit_sending(value)

    def gettimeout(self) -> Optional[float]:
        """Return the limit for receiving."""
        return self._receiving


def _timeval(seconds: Optional[float]) -> bytes:
    """Return a ``struct timeval``; zero is the kernel's word for "for ever"."""
    if seconds is None:
        return struct.pack("ll", 0, 0)
    microseconds = max(1, int(min(seconds, _LONGEST) * 1000000))
    return struct.pack("ll", *divmod(microseconds, 1000000))


_KIND = KernelTimedSocket if sys.platform == "linux" and struct.calcsize("l") == 8 else TimedSocket


def timed(sock: socket.socket) -> TimedSocket:
    """Return a socket that takes the place of `sock`."""
    return _KIND(sock.family, sock.type, sock.proto, fileno=sock.detach())
