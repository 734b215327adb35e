"""An HTTP/1.1 server for any application (see request.py), on the classes of ``http.server``."""

import errno
import logging
import selectors
import socket
import threading
import time
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple

from .addresses import Listener, listen
from .connection import Connection
from .request import Application

__all__ = ["Server"]

logger = logging.getLogger("vllm_bridge.gateway")

_SPARE = 64  # descriptors for everything that is no connection
_FIRST_SAY = 1.0  # seconds that a new connection has for its first request before it may have to give way
_AFTER_OTHERS = 0.02  # seconds that a worker with all places taken leaves a new connection to the other workers
_LAST_WORDS = 2.0  # seconds to tell clients that the time to stop is over
_LAST_JOIN = 3.0  # seconds for threads to end after their connections were cut off
_COMPLAINTS = 60.0  # seconds between two lines in the log on the same lack


class Server(ThreadingHTTPServer):
    """Serve an application over keep-alive connections, a thread for each.

    All times are in seconds. ``header_timeout`` limits a whole request head; ``body_timeout`` each silence
    within a body; ``write_timeout`` how long a client may take nothing; ``keep_alive_timeout`` the pause between
    requests. ``max_connections`` is how many of the requests that the application counts are answered at once; more
    connections than that may be open, and where there is no room for another, the one that is idle for longest gives
    way. Give `sock` to serve on what listens already, and `multiprocess` where other processes do so too.
    """

    daemon_threads = True

    def __init__(
        self,
        application: Application,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        sock: Optional[Listener] = None,
        max_connections: int = 1000,
        header_timeout: float = 20.0,
        body_timeout: float = 30.0,
        write_timeout: float = 60.0,
        keep_alive_timeout: float = 75.0,
        graceful_timeout: float = 30.0,
        multiprocess: bool = False,
    ) -> None:
        self.application = application
        self.places, self.most_open = _fitting(max_connections)
        self.header_timeout = header_timeout
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.keep_alive_timeout = keep_alive_timeout
        self.graceful_timeout = graceful_timeout
        self.stopping = False
        self.idle: Dict[socket.socket, float] = {}  # connections without a request, longest first, and when they may go
        self.threads: Dict[socket.socket, threading.Thread] = {}  # one for each open connection
        self.free_places: List[None] = [None] * self.places  # one for each request that may still begin
        self._multiprocess = multiprocess
        self._lock = threading.Lock()
        self._stop_at = float("inf")
        self._over = False
        self._ended = threading.Event()
        self._ended.set()
        self._complained = float("-inf")
        self._date: Tuple[int, str] = (0, "")
        listener = listen(host, port) if sock is None else sock
        super().__init__(listener.getsockname()[:2], Connection, bind_and_activate=False)
        self.socket.close()  # the one that socketserver made
        self.socket: Any = listener
        # Another process may take a connection between the report and the accept.
        listener.setblocking(False)
        self.server_address = listener.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self._wake, self.waker = socket.socketpair()
        self._due: List[Callable[["Server"], Any]] = []  # for the loop to call
        self._wake.setblocking(False)
        self.waker.setblocking(False)

    # ------------------------------------------------------------ running

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``stop`` or ``shutdown``, then let running answers finish within the limit."""
        self._ended.clear()
        try:
            with selectors.DefaultSelector() as selector:
                for sock in self.socket.sockets:
                    selector.register(sock, selectors.EVENT_READ)
                selector.register(self._wake, selectors.EVENT_READ)
                while not self.stopping:
                    for key, _ in selector.select():
                        if key.fileobj is self._wake:
                            self._wake.recv(4096)
                        elif self._has_room():
                            self._accept()
                    while self._due:
                        self._due.pop()(self)
            self._drain()
        finally:
            self._ended.set()

    def stop(self, graceful_timeout: Optional[float] = None) -> None:
        """Make ``serve_forever`` stop accepting, finish and return; safe in a signal handler.

        A second call can only shorten the time.
        """
        limit = self.graceful_timeout if graceful_timeout is None else graceful_timeout
        self._stop_at = min(self._stop_at, time.monotonic() + limit)
        self.stopping = True
        self._notify()

    def call_soon(self, function: Callable[["Server"], Any]) -> None:
        """Make ``serve_forever`` call a function with this server between two connections; safe in a signal handler."""
        self._due.append(function)
        self._notify()

    def shutdown(self, graceful_timeout: Optional[float] = None) -> None:
        """Stop, and wait until ``serve_forever`` has returned; call it from another thread."""
        self.stop(graceful_timeout)
        self._ended.wait()

    def server_close(self) -> None:
        """Close the listening socket; the running connections are ``shutdown``'s matter."""
        super().server_close()
        self._wake.close()
        self.waker.close()

    def is_over(self) -> bool:
        """Tell whether the time to stop is over, so that what still runs has to end."""
        return self._over

    def _notify(self) -> None:
        try:
            self.waker.send(b"x")
        except OSError:
            pass  # full: the loop will wake anyway; or closed: there is no loop any more

    def _pause(self, seconds: float) -> None:
        """Wait until a connection ends or `stop` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if selector.select(max(0.0, seconds)):
                self._wake.recv(4096)

    def _drain(self) -> None:
        """Finish what runs, until the time given to ``stop`` is over; then say so, and cut it off."""
        while self._accept():  # those whose connection was made before the listener closes
            pass
        self.socket.close()
        for sock in list(self.idle):
            _shut(sock, socket.SHUT_RD)  # what has arrived is still read, and answered
        while self.threads and time.monotonic() < self._stop_at:
            self._pause(self._stop_at - time.monotonic())
        # Who waits for a server waits for the client too, and takes this for its leaving.
        self._over = True
        self._cut_off(socket.SHUT_RD, _LAST_WORDS)
        self._cut_off(socket.SHUT_RDWR, _LAST_JOIN)
        if self.threads:
            logger.warning("%d connections did not end within the time to stop", len(self.threads))

    def _cut_off(self, how: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._lock:
            threads = list(self.threads.items())
        for sock, _ in threads:
            _shut(sock, how)
        for _, thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    # ------------------------------------------------------------ connections

    def _has_room(self) -> bool:
        """Tell whether another connection may be taken; make room for it, or leave it to another process."""
        if len(self.threads) >= self.most_open:
            self._give_way()
            self._pause(0.05)
            return len(self.threads) < self.most_open
        if self._multiprocess and not self.free_places:
            self._pause(_AFTER_OTHERS)
        return True

    def _give_way(self) -> bool:
        """End the connection that is idle for longest; tell whether there is one."""
        now = time.monotonic()
        for sock, may_go in list(self.idle.items()):
            if may_go <= now and self.idle.pop(sock, None) is not None:
                _shut(sock, socket.SHUT_RD)  # a request that has just come is still answered
                return True
        return False

    def _accept(self) -> bool:
        """Take one waiting connection; tell whether there was one."""
        try:
            request, address = self.get_request()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self._complain("cannot accept a connection: %s", error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._give_way()
            self._pause(0.05)
            return False
        self.process_request(request, address)
        return True

    def get_request(self) -> Tuple[Any, Any]:
        """Return the next connection and the address it comes from."""
        sock, address = self.socket.accept()
        sock.setblocking(False)
        return sock, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        for last in (False, True):
            thread = threading.Thread(
                target=self.process_request_thread, args=(request, client_address), daemon=True,
                name="vllm-bridge-connection",
            )
            with self._lock:
                self.threads[request] = thread
                self.idle[request] = time.monotonic() + _FIRST_SAY
            try:
                thread.start()
                return
            except RuntimeError as error:  # the system has no thread left
                self._forget(request)
                if last or not self._give_way():
                    self._complain("cannot serve a connection: %s", error)
                    request.close()
                    return
                self._pause(0.1)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            logger.error("a connection failed", exc_info=True)
        finally:
            self.shutdown_request(request)
            full = len(self.threads) >= self.most_open
            self._forget(request)
            if self.stopping or full:
                self._notify()

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self.threads.pop(request, None)
            self.idle.pop(request, None)

    def _complain(self, text: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > _COMPLAINTS:
            self._complained = now
            logger.error(text, error)

    # ------------------------------------------------------------ what connections ask

    def date_line(self) -> str:
        """Return the Date header line of this second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, "Date: %s\r\n" % formatdate(now, usegmt=True))
        return self._date[1]


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # it has ended meanwhile


def _fitting(places: int) -> Tuple[int, int]:
    """Return how many requests may run and how many connections may be open, with the descriptors that there are.

    A request needs two, one of them to a server; an open connection without a request one.
    """
    most_open = places + max(places, 32)
    try:
        import resource
    except ImportError:  # Windows
        return places, most_open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = places + most_open + _SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):
            pass  # some systems have a lower limit than they say
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return places, most_open
    room = soft - min(_SPARE, soft // 4)
    fitting = max(1, min(places, room * 2 // 5))
    if fitting < places:
        logger.warning("only %d files may be open (ulimit -n): %d requests at once, not %d", soft, fitting, places)
    return fitting, max(2, room - fitting)
