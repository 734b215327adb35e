"""An HTTP/1.1 server for any WSGI application, on the classes of ``http.server``."""

import logging
import selectors
import socket
import threading
import time
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterable, Optional, Set, Tuple

from ..http1.timed_socket import timed
from .connection import Connection

__all__ = ["GatewayServer", "listen"]

logger = logging.getLogger("vllm_bridge.gateway")

Application = Callable[[Dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_REFUSING = 32  # connections over the limit that are told so; more are closed without a word
_LAST_JOIN = 5.0  # seconds for threads to end after their sockets were shut


def listen(host: str, port: int, backlog: int = 1024) -> socket.socket:
    """Return a socket that listens on a TCP address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=backlog)


class GatewayServer(ThreadingHTTPServer):
    """Serve a WSGI application over keep-alive connections, a thread for each.

    All times are in seconds. ``header_timeout`` limits a whole request head; ``body_timeout`` each silence
    within a body; ``write_timeout`` how long a client may take nothing; ``keep_alive_timeout`` the pause between
    requests. ``max_body`` (bytes, ``None`` for none) is refused with 413 before the application is called, or
    while it reads a chunked body. Give `sock` to serve on a socket that listens already.
    """

    daemon_threads = True

    def __init__(
        self,
        app: Application,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        sock: Optional[socket.socket] = None,
        max_connections: int = 1000,
        header_timeout: float = 20.0,
        body_timeout: float = 30.0,
        write_timeout: float = 60.0,
        keep_alive_timeout: float = 75.0,
        graceful_timeout: float = 30.0,
        max_body: Optional[int] = None,
        multiprocess: bool = False,
    ) -> None:
        self.app = app
        self.max_connections = max_connections
        self.header_timeout = header_timeout
        self.body_timeout = body_timeout
        self.write_timeout = write_timeout
        self.keep_alive_timeout = keep_alive_timeout
        self.graceful_timeout = graceful_timeout
        self.max_body = max_body
        self.stopping = False
        self.idle: Set[socket.socket] = set()  # connections between two requests
        self._refused: Set[socket.socket] = set()
        self._threads_of: Dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stop_at = float("inf")
        self._ended = threading.Event()
        self._ended.set()
        self._date: Tuple[int, str] = (0, "")
        listener = listen(host, port) if sock is None else sock
        super().__init__(listener.getsockname()[:2], Connection, bind_and_activate=False)
        self.socket.close()  # the one that socketserver made
        self.socket = listener
        # Another process may take a connection between the report and the accept.
        listener.setblocking(False)
        self.server_address = listener.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self.base_environ: Dict[str, Any] = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": self.server_name,
            "SERVER_PORT": str(self.server_port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }

    # ------------------------------------------------------------ running

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until ``stop`` or ``shutdown``, then let running answers finish within the limit."""
        self._ended.clear()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.socket, selectors.EVENT_READ)
                selector.register(self._wake, selectors.EVENT_READ)
                while not self.stopping:
                    for key, _ in selector.select():
                        if key.fileobj is self.socket:
                            self._accept()
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

    def shutdown(self, graceful_timeout: Optional[float] = None) -> None:
        """Stop, and wait until ``serve_forever`` has returned; call it from another thread."""
        self.stop(graceful_timeout)
        self._ended.wait()

    def server_close(self) -> None:
        """Close the listening socket; the running connections are ``shutdown``'s matter."""
        super().server_close()
        self._wake.close()
        self._waker.close()

    def _notify(self) -> None:
        try:
            self._waker.send(b"x")
        except OSError:
            pass  # full: the loop will wake anyway; or closed: there is no loop any more

    def _drain(self) -> None:
        """Finish what runs, until the time given to ``stop`` is over; then cut it off."""
        while self._accept():  # those whose connection was made before the listener closes
            pass
        self.socket.close()
        for sock in list(self.idle):
            _shut(sock, socket.SHUT_RD)  # what has arrived is still read, and answered
        with self._lock:
            threads = list(self._threads_of.values())
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while self._threads_of:
                left = self._stop_at - time.monotonic()
                if left <= 0:
                    break
                if selector.select(left):
                    self._wake.recv(4096)
        with self._lock:
            running = list(self._threads_of)
        for sock in running:
            _shut(sock, socket.SHUT_RDWR)
        end = time.monotonic() + _LAST_JOIN
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self._threads_of:
            logger.warning("%d connections did not end within the time to stop", len(self._threads_of))

    # ------------------------------------------------------------ connections

    def _accept(self) -> bool:
        """Take one waiting connection; tell whether there was one."""
        try:
            request, address = self.get_request()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # no descriptor is free: wait for one
            logger.error("cannot accept a connection: %s", error)
            time.sleep(0.05)
            return False
        self.process_request(request, address)
        return True

    def get_request(self) -> Tuple[Any, Any]:
        """Return the next connection and the address it comes from."""
        sock, address = self.socket.accept()
        return timed(sock), address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        over = len(self._threads_of) - self.max_connections
        if over >= _REFUSING:
            request.close()
            return
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True,
            name="vllm-bridge-connection",
        )
        with self._lock:
            self._threads_of[request] = thread
            self.idle.add(request)
            if over >= 0:
                self._refused.add(request)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            logger.error("cannot serve a connection: %s", error)
            self._forget(request)
            request.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            logger.error("a connection failed", exc_info=True)
        finally:
            self._forget(request)
            self.shutdown_request(request)
            if self.stopping:
                self._notify()

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._threads_of.pop(request, None)
            self._refused.discard(request)
            self.idle.discard(request)

    def is_refused(self, request: socket.socket) -> bool:
        """Tell whether a connection is one too many."""
        return request in self._refused

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
