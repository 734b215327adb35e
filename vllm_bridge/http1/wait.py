"""Wait for a socket, with a limit that holds: the only place that waits.

Our sockets do not block (``settimeout(0)``). A limit that the kernel keeps for a blocking socket starts anew
after every signal, and means nothing where gevent or eventlet have put their own functions in the place of the standard
library's; a poll with the time that is left holds in all of these cases. So `readable` and `writable` look everything
up when they are called.
"""

import select
import socket
import time
from typing import Any, Callable, Optional, Union

from ..errors import RequestCancelledError

__all__ = ["Client", "has_left", "readable", "writable"]

Client = Union[None, socket.socket, Callable[[], bool]]

_SLICE = 0.05  # seconds between two questions whether the client is still there
_LONGEST = 86400.0  # seconds; more is for ever, for poll counts milliseconds in an int


def readable(sock: socket.socket, seconds: Optional[float], client: Client = None, writing: bool = False) -> bool:
    """Wait until `sock` can be read, has ended or failed; return False when `seconds` are over (``None``: for ever).

    `client` is who must still be there meanwhile: a socket, or a function that returns True once it has left. Raises
    `RequestCancelledError` when it has. A closed socket counts as readable: reading it says the rest.
    """
    number = sock.fileno()
    kind: Any = getattr(select, "poll", None)  # not on Windows, nor under eventlet
    if number < 0 or kind is None:
        return number < 0 or _in_slices(lambda left: _selected(number, left, writing), seconds, client)
    poll = kind()
    poll.register(number, select.POLLOUT if writing else select.POLLIN)
    other = -1
    if client is not None:
        # gevent's poll knows of reading and writing only.
        if not isinstance(client, socket.socket) or not hasattr(select, "POLLRDHUP") or kind.__module__ != "select":
            return _in_slices(lambda left: poll.poll(left * 1000), seconds, client)
        other = client.fileno()
        if other < 0:
            raise _left()
        poll.register(other, select.POLLRDHUP)
    # A signal does not end the poll, and does not make it longer (PEP 475).
    ready = poll.poll(None if seconds is None or seconds > _LONGEST else max(0.0, seconds) * 1000)
    if ready and other >= 0 and (len(ready) == 2 or ready[0][0] == other):
        raise _left()
    return bool(ready)


def writable(sock: socket.socket, seconds: Optional[float], client: Client = None) -> bool:
    """Wait until `sock` has room, is connected or has failed; otherwise like `readable`."""
    return readable(sock, seconds, client, True)


def _in_slices(once: Callable[[float], Any], seconds: Optional[float], client: Client) -> bool:
    """Wait as `once` does, and look for the client in between."""
    longest = _LONGEST if client is None else _SLICE
    end = None if seconds is None else time.monotonic() + seconds
    left = seconds
    while not once(longest if left is None or left > longest else max(0.0, left)):
        if has_left(client):
            raise _left()
        if end is not None:
            left = end - time.monotonic()
            if left <= 0:
                return False
    return True


def _selected(number: int, seconds: float, writing: bool) -> bool:
    reads, writes = ([], [number]) if writing else ([number], [])
    return any(select.select(reads, writes, writes, seconds))  # Windows tells of a connect that failed in the third


def has_left(client: Client) -> bool:
    """Tell at once whether a client is no longer there."""
    if client is None:
        return False
    if callable(client):
        return client()
    if client.fileno() < 0:
        return True
    if not readable(client, 0):  # asked first: the socket of another server may block, as gunicorn's does
        return False
    try:
        return not client.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: TLS cannot peek
        return False
    except OSError:
        return True


def _left() -> RequestCancelledError:
    return RequestCancelledError("the client left")
