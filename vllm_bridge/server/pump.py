"""Streams that are merely passed on, all from one thread.

A stream costs its own thread two or three switches of threads an event, and with hundreds of streams the threads wait
for each other more than for the servers. So a connection's thread lends its stream to the pump while every event of it
passes unread, and gets it back for whatever else comes: the end, an error, a silence, a client that takes nothing.
"""

import logging
import os
import select
import socket
import threading
import time
from typing import Any, Dict, Optional, Protocol

from .channel import Channel

__all__ = ["Passing", "Pump"]

logger = logging.getLogger("vllm_bridge.gateway")

_TICK = 0.5  # seconds between two looks for silent streams
_SILENCE = 1.0  # seconds after which a stream's own thread, which knows the time limits, waits for it
_IDLE = 5.0  # seconds without any stream, after which the thread ends


class Passing(Protocol):
    """What a stream lets others ask, between two of its items."""

    def fileno(self) -> int:
        """Return the number of the socket that its events come from, -1 where `arrived` cannot be asked."""

    def arrived(self) -> Optional[bytes]:
        """Return what can be passed on without waiting, ``b""`` if nothing can; ``None`` where the next item is due."""


class _Lent:
    """A stream in the pump's care. `rest` is what its client has yet to get when it is given back."""

    __slots__ = ("arrived", "send", "given_back", "rest", "heard")

    def __init__(self, stream: Passing, channel: Channel) -> None:
        self.arrived = stream.arrived
        self.send = channel.send_now
        self.given_back = threading.Lock()
        self.given_back.acquire()
        self.rest = b""
        self.heard = time.monotonic()


class Pump:
    """Pass streams on to their clients as chunks, as long as nothing in them needs a look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: Dict[int, _Lent] = {}  # by the number of the socket that the events come from
        self._thread: Optional[threading.Thread] = None
        self._pid = 0  # of the process that the thread is in
        self._epoll: Any = None
        self._wake: Any = None
        self._closed = False

    def carry(self, stream: Passing, channel: Channel) -> None:
        """Pass on what comes until the calling thread has to go on itself with the stream's next item.

        Raises OSError if the client has gone.
        """
        number = stream.fileno()
        if number < 0 or not hasattr(select, "epoll"):
            return
        while True:
            block = stream.arrived()
            if block is None:
                return
            if not block:
                break
            channel.send(b"%x\r\n%b\r\n" % (len(block), block))
        lent = _Lent(stream, channel)
        if self._take(number, lent):
            lent.given_back.acquire()
            if lent.rest:
                channel.send(lent.rest)

    def close(self) -> None:
        """Give all streams back and end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread if self._pid == os.getpid() else None
            if thread is not None:
                self._wake.send(b"x")
        if thread is not None:
            thread.join()

    def _take(self, number: int, lent: _Lent) -> bool:
        """Take a stream over, unless the system has no thread or descriptor left for that."""
        with self._lock:
            if self._closed or number in self._lent:
                return False
            try:
                if self._thread is None or self._pid != os.getpid():  # after a fork it is the parent's
                    self._start()
                self._lent[number] = lent
                self._epoll.register(number, select.EPOLLIN)
            except (OSError, RuntimeError) as error:
                self._lent.pop(number, None)
                logger.debug("a stream stays with its thread: %r", error)
                return False
        return True

    def _start(self) -> None:
        self._lent = {}
        waked, self._wake = socket.socketpair()
        self._epoll = select.epoll()
        try:
            self._epoll.register(waked, select.EPOLLIN)
            thread = threading.Thread(target=self._run, args=(waked,), daemon=True, name="vllm-bridge-pump")
            self._pid = os.getpid()
            self._thread = thread
            thread.start()
        except (OSError, RuntimeError):
            self._thread = None
            for each in (self._epoll, waked, self._wake):
                each.close()
            raise

    def _run(self, waked: socket.socket) -> None:
        epoll = self._epoll
        idle_since = looked = time.monotonic()
        try:
            while not self._closed:
                ready = epoll.poll(_TICK)
                now = time.monotonic()
                for number, _ in ready:
                    lent = self._lent.get(number)
                    if lent is not None and not self._pass_on(lent, now):
                        self._give_back(number)
                if now - looked >= _TICK:
                    looked = now
                    self._give_back_silent(now)
                if self._lent:
                    idle_since = now
                elif now - idle_since > _IDLE and self._may_end():
                    return
        finally:
            with self._lock:
                if self._epoll is epoll:
                    self._thread = None
                for number in list(self._lent):
                    self._give_back(number)
                epoll.close()
                waked.close()
                self._wake.close()

    def _may_end(self) -> bool:
        with self._lock:
            if self._lent:
                return False
            self._thread = None
            return True

    def _pass_on(self, lent: _Lent, now: float) -> bool:
        """Pass on what has come; tell whether the stream may stay."""
        try:
            block = lent.arrived()
            if not block:
                return block is not None
            lent.heard = now
            lent.rest = b"%x\r\n%b\r\n" % (len(block), block)
            lent.rest = lent.send(lent.rest)
            return not lent.rest
        except Exception as error:  # its own thread meets it again
            logger.debug("a stream goes back to its thread: %r", error)
            return False

    def _give_back(self, number: int) -> None:
        lent = self._lent.pop(number)
        try:
            self._epoll.unregister(number)
        except (OSError, ValueError):
            pass  # closed meanwhile
        finally:
            lent.given_back.release()

    def _give_back_silent(self, now: float) -> None:
        for number, lent in list(self._lent.items()):
            if now - lent.heard > _SILENCE:
                self._give_back(number)
