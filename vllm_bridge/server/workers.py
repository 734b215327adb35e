"""Worker processes that listen together."""

import logging
import os
import selectors
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any, Callable, Dict, List, Optional

from .addresses import Listener
from .listener import Server

__all__ = ["run"]

logger = logging.getLogger("vllm_bridge.gateway")

MakeServer = Callable[[Listener, int], Server]
Reload = Callable[[Optional[Server]], bool]

_NOT_STARTED = 3  # exit code of a worker that could not make its server
_SOON = 1.0  # seconds of life below which a worker's death delays the next one
_LONGEST_DELAY = 5.0
_HANGUP = getattr(signal, "SIGHUP", None)  # not on Windows
_SIGNALS = tuple(number for number in (signal.SIGTERM, signal.SIGINT, _HANGUP) if number is not None)
_MARGIN = 10.0  # seconds that a worker gets on top of its time to stop


def _nothing(server: Optional[Server]) -> bool:
    """Read nothing: there is nothing that could have changed."""
    return False


def run(
    make_server: MakeServer,
    sock: Listener,
    workers: int = 1,
    *,
    graceful_timeout: float = 30.0,
    before_fork: Optional[Callable[[int], None]] = None,
    worker_started: Optional[Callable[[int, int], None]] = None,
    reload: Reload = _nothing,
) -> int:
    """Serve on what listens with `workers` processes until SIGTERM or SIGINT; return the exit code.

    ``make_server(sock, index)`` is called once in each process, with indexes from 0; with one worker, or where there
    is no fork, in this one. A worker that dies is replaced under its index. ``before_fork(index)`` and
    ``worker_started(index, pid)`` are called in the parent. A second SIGINT does not wait for running
    answers. On SIGHUP ``reload(server)`` is called in each process; in the parent of workers first, with ``None``, and
    in those only if that returned True; where it is blocked until now it is no longer. Call it in the main thread,
    before any thread is started. Closes `sock`.
    """
    if workers <= 1 or not hasattr(os, "fork"):
        return _serve(make_server(sock, 0), None, reload)
    return _Parent(make_server, sock, workers, graceful_timeout, before_fork, worker_started, reload).run()


def _serve(server: Server, lifeline: Optional[socket.socket] = None, reload: Reload = _nothing) -> int:
    """Serve in this process until a signal, or until the other end of `lifeline` is closed."""
    interrupts: List[int] = []

    def stop(number: int, frame: Optional[FrameType]) -> None:
        interrupts.append(number)
        hurry = number == getattr(signal, "SIGQUIT", None) or interrupts.count(signal.SIGINT) > 1
        server.stop(0.0 if hurry else None)

    def hang_up(number: int, frame: Optional[FrameType]) -> None:
        server.call_soon(reload)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if _HANGUP is not None:
        before[_HANGUP] = signal.signal(_HANGUP, hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (_HANGUP,))  # one that came meanwhile may have waited
    if lifeline is None:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    else:
        # Ctrl-C reaches the whole group; the parent turns it into one SIGTERM, or SIGQUIT in a hurry.
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
        before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, stop)
        threading.Thread(target=_outlive, args=(lifeline, server), daemon=True, name="vllm-bridge-lifeline").start()
    # A signal that comes just before the loop begins to wait would wake it with the next connection only.
    wakeup = signal.set_wakeup_fd(server.waker.fileno(), warn_on_full_buffer=False)
    try:
        server.serve_forever()
    finally:
        signal.set_wakeup_fd(wakeup)
        server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _outlive(lifeline: socket.socket, server: Server) -> None:
    """Stop the server when the parent is gone, however it went."""
    try:
        while lifeline.recv(1):
            pass
    except OSError:
        pass
    server.stop()


class _Worker:
    """A child as its parent sees it; its end of the lifeline reads as ended when the child is dead."""

    def __init__(self, index: int, pid: int, lifeline: socket.socket) -> None:
        self.index = index
        self.pid = pid
        self.lifeline = lifeline
        self.started = time.monotonic()


class _Parent:
    """Keep the number of workers up until a signal, then see all of them out."""

    def __init__(
        self,
        make_server: MakeServer,
        sock: Listener,
        count: int,
        graceful_timeout: float,
        before_fork: Optional[Callable[[int], None]],
        worker_started: Optional[Callable[[int, int], None]],
        reload: Reload,
    ) -> None:
        self._make_server = make_server
        self._sock = sock
        self._count = count
        self._graceful_timeout = graceful_timeout
        self._before_fork = before_fork
        self._worker_started = worker_started
        self._reload = reload
        self._hung_up = False
        self._workers: Dict[int, _Worker] = {}
        self._due: Dict[int, float] = {}  # index → when its next process may start
        self._early_deaths = 0
        self._interrupts = 0
        self._code = 0
        self._stop_at: Optional[float] = None
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> int:
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._selector.register(self._wake, selectors.EVENT_READ)
        try:
            for index in range(self._count):
                if self._stop_at is None:
                    self._start(index)
            while self._workers or (self._due and self._stop_at is None):
                self._turn()
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            for sock in (self._wake, self._waker):
                sock.close()
            self._sock.close()
        return self._code

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            self._hung_up = True  # for the loop, which it wakes
            return
        if number == signal.SIGINT:
            self._interrupts += 1
        self._stop()

    def _pass_on(self) -> None:
        """Let this process, and then the workers, read anew what they serve by."""
        self._hung_up = False
        if self._reload(None):
            for worker in list(self._workers.values()):
                _kill(worker.pid, signal.SIGHUP)

    def _stop(self) -> None:
        """Tell the workers to finish; on a second Ctrl-C, to stop at once."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._graceful_timeout + _MARGIN
            self._sock.close()  # the workers take what is waiting there
        hurry = self._interrupts > 1
        for worker in list(self._workers.values()):
            _kill(worker.pid, signal.SIGQUIT if hurry else signal.SIGTERM)

    def _turn(self) -> None:
        """Wait for the next thing to do, and do it."""
        if self._hung_up and self._stop_at is None:
            self._pass_on()
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            for worker in self._workers.values():
                logger.error("worker %d did not stop in time and is killed", worker.index)
                _kill(worker.pid, signal.SIGKILL)
            self._stop_at = now + _MARGIN
        until = [self._stop_at] if self._stop_at is not None else list(self._due.values())
        for key, _ in self._selector.select(max(0.0, min(until) - now) if until else None):
            if key.fileobj is self._wake:
                self._wake.recv(4096)
            else:
                self._bury(key.data)
        for index, due in list(self._due.items()):
            if self._stop_at is None and due <= time.monotonic():
                del self._due[index]
                self._start(index)

    def _start(self, index: int) -> None:
        if self._before_fork is not None:
            self._before_fork(index)
        ours, theirs = socket.socketpair()
        # A signal must not meet the parent's handlers in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._child(index, ours, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        worker = self._workers[pid] = _Worker(index, pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        if self._stop_at is not None:  # the signal came while it was made
            _kill(pid, signal.SIGTERM)
        if self._worker_started is not None:
            self._worker_started(index, pid)

    def _child(self, index: int, ours: socket.socket, theirs: socket.socket) -> None:  # pragma: no cover - in a fork
        code = _NOT_STARTED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            self._selector.close()
            # An end that stayed open here would hide the death of its owner.
            for sock in [ours, self._wake, self._waker] + [worker.lifeline for worker in self._workers.values()]:
                sock.close()
            server = self._make_server(self._sock, index)
            code = 1
            code = _serve(server, theirs, self._reload)
        except BaseException:
            logger.critical("worker %d failed", index, exc_info=True)
        finally:
            logging.shutdown()
            os._exit(code)

    def _bury(self, worker: _Worker) -> None:
        """Take note of a dead worker, and when its place is to be filled."""
        self._selector.unregister(worker.lifeline)
        worker.lifeline.close()
        del self._workers[worker.pid]
        status = os.waitpid(worker.pid, 0)[1]
        if self._stop_at is not None:
            return
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _NOT_STARTED:
            logger.critical("worker %d cannot start; stopping", worker.index)
            self._code = 1
            self._stop()
            return
        cause = "signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "exit code %d" % (status >> 8)
        logger.error("worker %d (pid %d) died of %s and is replaced", worker.index, worker.pid, cause)
        now = time.monotonic()
        self._early_deaths = self._early_deaths + 1 if now - worker.started < _SOON else 0
        delay = min(0.1 * 2 ** self._early_deaths, _LONGEST_DELAY) if self._early_deaths else 0.0
        self._due[worker.index] = now + delay


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended
