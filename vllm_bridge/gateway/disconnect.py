"""Noticing a client that goes away while its answer is still being computed.

A server only learns of it by reading or writing, and while vLLM works on a long prompt there is nothing to write.
"""

import os
import select
import socket
import threading
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

__all__ = ["Watcher"]

_TICK = 0.2  # seconds between two looks
_IDLE_TICKS = 25  # looks without anything to look at, after which the thread ends
_GONE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)

Look = Callable[[], bool]


class Watcher:
    """Look at the sockets of running requests, all from one thread that lives as long as there are any.

    Several looks a second over all of them cost less than telling a selector of every request.
    """

    def __init__(self) -> None:
        self._watched: Dict[int, Tuple[Any, Callable[[], None]]] = {}  # by id of the environ
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._pid = 0  # of the process that the thread is in
        self._wake = threading.Event()
        self._closed = False

    def watch(self, environ: Mapping[str, Any], gone: Callable[[], None]) -> int:
        """Call `gone` once when the client of a request has left; return a number for `discard`.

        Without a socket in the environ (another server) nothing is watched: 0.
        """
        target = environ.get("vllm_bridge.socket") or _target(environ)
        if target is None:
            return 0
        token = id(environ)
        self._watched[token] = (target, gone)
        with self._lock:  # against a thread that is just deciding to end
            if self._thread is None or self._pid != os.getpid():  # after a fork it is the parent's
                self._start()
        return token

    def discard(self, token: int) -> None:
        """Look at a request no longer."""
        self._watched.pop(token, None)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if not self._closed:
            self._pid = os.getpid()
            self._thread = threading.Thread(target=self._run, daemon=True, name="vllm-bridge-disconnects")
            self._thread.start()

    def _run(self) -> None:
        try:
            self._look_again_and_again()
        except BaseException:
            self._thread = None  # the next request starts another
            raise

    def _look_again_and_again(self) -> None:
        idle = 0
        while not self._wake.wait(_TICK):
            if self._watched:
                idle = 0
                self._look()
                continue
            idle += 1
            if idle >= _IDLE_TICKS:
                with self._lock:
                    if not self._watched:
                        self._thread = None
                        return

    def _look(self) -> None:
        watched = list(self._watched.items())
        for token, gone in _left(watched):
            if self._watched.pop(token, None) is not None:
                gone()


def _target(environ: Mapping[str, Any]) -> Any:
    """Return what tells of the client: its socket, or the server's own function."""
    for name in ("gunicorn.socket", "waitress.client_disconnected"):
        target = environ.get(name)
        if target is not None:
            return target
    return None


_Watched = List[Tuple[int, Tuple[Any, Callable[[], None]]]]


def _left(watched: _Watched) -> List[Tuple[int, Callable[[], None]]]:
    """Return those whose client has left."""
    left = []
    polled: Dict[int, Tuple[int, Callable[[], None]]] = {}
    poll = select.poll() if hasattr(select, "POLLRDHUP") else None
    for token, (target, gone) in watched:
        if callable(target):
            if target():
                left.append((token, gone))
        elif poll is not None:
            number = target.fileno()
            if number >= 0:
                poll.register(number, _GONE)
                polled[number] = (token, gone)
        elif _ended(target):
            left.append((token, gone))
    if poll is not None and polled:
        left += [polled[number] for number, events in poll.poll(0) if events & _GONE]
    return left


def _ended(sock: Any) -> bool:
    """Tell by a peek whether the other side has closed; a request behind this one hides it."""
    try:
        readable, _, _ = select.select([sock], [], [], 0)
        return bool(readable) and sock.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: TLS sockets cannot peek
        return False
    except OSError:
        return True
