"""The ``http.server`` face of the stand-in: connections, keep-alive, streaming, disconnects, recording."""

import json
import socket
import sys
import threading
import time
from collections import deque
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Deque, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from . import audio
from .operations import OPERATIONS, ROUTES, respond
from .refusal import Refusal, detail, phrase, unauthorized
from .reply import Mark, Reply, World, steps

_RECORDED = 1000
_GUARDED = ("/v1", "/v2")
_NO_HTTP = (b"HTTP/1.1 400 Bad Request\r\ndate: %s\r\nserver: uvicorn\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: 30\r\nconnection: close\r\n\r\nInvalid HTTP request received.")


class RecordedRequest:
    """One request that the stand-in got: header names in lower case, the body as bytes and, where it is that, read.

    ``json`` is the parsed body or None; ``form`` the (name, value) pairs of a multipart body in the order sent,
    and ``files`` its files by name; ``client`` the peer's address, equal for requests on one connection.
    """

    def __init__(self, method: str, path: str, headers: Dict[str, str], body: bytes, client: Tuple[str, int]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.client = client
        self.json: Any = None
        self.form: List[Tuple[str, str]] = []
        self.files: Dict[str, audio.Upload] = {}
        kind = headers.get("content-type", "")
        try:
            if kind.startswith("multipart/form-data"):
                form = audio.read_form(headers, body)
                self.form, self.files = form.pairs, form.files
            elif body:
                self.json = json.loads(body)
        except (ValueError, RecursionError, Refusal):
            pass

    def __repr__(self) -> str:
        return "<RecordedRequest %s %s, %d bytes>" % (self.method, self.path, len(self.body))


class EchoServer:
    """Serve a stand-in for vLLM on a socket of its own; ``help(vllm_bridge.echo)`` says what it answers.

    ``port`` 0 takes a free one; ``url`` is the address for clients. It lists ``models`` and answers to these alone;
    ``None``: it lists "echo" and answers to any name. ``delay`` is the seconds that each token takes,
    ``keep_alive`` those after which an idle connection is closed, ``operations`` the ones whose routes exist.
    ``script`` holds directives for the first requests, one text a request. ``requests`` keeps the last 1000
    requests, ``running`` counts the generations in progress. ``with`` starts and stops it; stopping closes all
    connections and leaves no thread.
    """

    def __init__(self, port: int = 0, host: str = "127.0.0.1", models: Optional[Sequence[str]] = ("echo",),
                 api_key: Optional[str] = None, delay: float = 0.0, keep_alive: float = 5.0,
                 operations: Iterable[str] = OPERATIONS, embedding_size: int = 8, max_model_len: int = 32768,
                 script: Iterable[str] = (), request_id_headers: bool = False) -> None:
        self.models = ("echo",) if models is None else tuple(models)
        self._any_model = models is None
        self.delay = delay
        self.keep_alive = keep_alive
        self.operations = frozenset(operations)
        unknown = self.operations - frozenset(OPERATIONS)
        if unknown or not self.models:
            raise ValueError("EchoServer: %s" % (
                "unknown operations %s; there are %s" % (sorted(unknown), ", ".join(OPERATIONS))
                if unknown else "at least one model is needed"))
        self.requests: Deque[RecordedRequest] = deque(maxlen=_RECORDED)
        self._api_key = api_key
        self._embedding_size = embedding_size
        self._max_model_len = max_model_len
        self._request_id_headers = request_id_headers
        self._script: Deque[str] = deque(script)
        self._lock = threading.Lock()
        self._running = 0
        self._count = 0
        self._address = (host, port)
        self._listener: Optional[_Listener] = None
        self._thread: Optional[threading.Thread] = None

    @property
    def running(self) -> int:
        """The number of generations in progress."""
        return self._running

    @property
    def port(self) -> int:
        """The port that is listened on; the one asked for while the server is stopped."""
        return int(self._listener.server_address[1]) if self._listener else self._address[1]

    @property
    def url(self) -> str:
        """The base URL for clients, without ``/v1``."""
        host = "[%s]" % self._address[0] if ":" in self._address[0] else self._address[0]
        return "http://%s:%d" % (host, self.port)

    def script(self, *directives: str) -> None:
        """Let each of the next requests to an operation meet one of ``directives``; an empty text means none."""
        self._script.extend(directives)

    def start(self) -> "EchoServer":
        """Listen and serve from a thread; return self. Raises OSError when the port is taken."""
        if self._listener is None:
            self._listener = _Listener(self._address, self)
            self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True,
                                            name="echo-accept")
            self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving: close every connection and wait for every thread. May be called again."""
        listener, thread = self._listener, self._thread
        if listener is None or thread is None:
            return
        listener.shutdown()
        thread.join()
        listener.server_close()
        listener.hang_up()
        self._address = (self._address[0], self.port)
        self._listener = self._thread = None

    def __enter__(self) -> "EchoServer":
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _count_running(self, change: int) -> None:
        with self._lock:
            self._running += change

    def _refusal(self, method: str, path: str, headers: Dict[str, str]) -> Optional[Refusal]:
        """Say why a request has no route here, or no right to it."""
        guarded = path.startswith(_GUARDED) and method != "OPTIONS"
        if self._api_key is not None and guarded and not self._authorized(headers.get("authorization", "")):
            return unauthorized()
        route = ROUTES.get(path)
        if route is None or (route[1] is not None and route[1] not in self.operations):
            bare = path.rstrip("/")
            if path != bare and bare in ROUTES:
                where = "http://" + headers.get("host", "") + bare
                return Refusal(307, None, headers={"location": where})
            return detail(404, "Not Found")
        if method != route[0]:
            return detail(405, "Method Not Allowed", {"allow": route[0]})
        return None

    def _authorized(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        return scheme.lower() == "bearer" and key == self._api_key

    def _answer(self, method: str, target: str, headers: Dict[str, str], body: bytes) -> Reply:
        path = target.split("?", 1)[0]
        refusal = self._refusal(method, path, headers)
        if refusal is not None:
            return Reply(refusal.payload, refusal.status, refusal.headers)
        with self._lock:
            self._count += 1
            request_id = headers.get("x-request-id") or "%016x" % self._count
            script = self._script.popleft() if self._script and ROUTES[path][1] else ""
        world = World(self.models, self._any_model, self._embedding_size, self._max_model_len, int(time.time()),
                      request_id, self._running)
        reply = respond(path, headers, body, script, world)
        if self._request_id_headers:
            reply.headers["x-request-id"] = request_id
        return reply


class _Gone(Exception):
    """The client has closed its connection."""


class _Listener(ThreadingHTTPServer):
    """Accepts connections and remembers them, so that all can be closed."""

    request_queue_size = 128

    def __init__(self, address: Tuple[str, int], echo: EchoServer) -> None:
        self.echo = echo
        self._guard = threading.Lock()
        self._connections: Set[socket.socket] = set()
        self._workers: List[threading.Thread] = []
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # http.server would look up the host's name here, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True,
                                  name="echo-connection")
        with self._guard:
            self._connections.add(request)
            self._workers = [worker for worker in self._workers if worker.is_alive()] + [thread]
            thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; anything else is printed as http.server does."""
        if not isinstance(sys.exc_info()[1], (OSError, _Gone)):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Close every connection and wait for the threads that served them."""
        with self._guard:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for worker in self._workers:
            worker.join()


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self._served = 0

    def handle_one_request(self) -> None:
        # A connection that has sent nothing yet is never timed out, an idle one is after 5.0 s as by uvicorn.
        self.connection.settimeout(self.server.echo.keep_alive if self._served else None)
        self._served += 1
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send_error(self, code: int, message: Optional[str] = None, explain: Optional[str] = None) -> None:
        """Answer what is no HTTP as uvicorn does (err_bad_http)."""
        self.close_connection = True
        self.wfile.write(_NO_HTTP % formatdate(usegmt=True).encode("ascii"))

    def _serve(self) -> None:
        self.connection.settimeout(None)
        headers: Dict[str, str] = {}
        for name, value in self.headers.items():
            name = name.lower()
            headers[name] = headers[name] + ", " + value if name in headers else value
        try:
            body = self._body(headers)
        except ValueError:
            self.send_error(400)
            return
        echo = self.server.echo
        # Not self.path, in which newer Pythons fold leading slashes (err_double_slash).
        target = self.requestline.split()[1]
        echo.requests.append(RecordedRequest(self.command, target, headers, body, self.client_address))
        try:
            self._perform(echo._answer(self.command, target, headers, body))
        except (_Gone, OSError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _body(self, headers: Dict[str, str]) -> bytes:
        if "chunked" not in headers.get("transfer-encoding", "").lower():
            return self.rfile.read(int(headers.get("content-length") or 0))
        parts = []
        while True:
            size = int(self.rfile.readline(128).split(b";")[0], 16)
            if size == 0:
                break
            parts.append(self.rfile.read(size))
            self.rfile.readline(8)
        while self.rfile.readline(65536).strip():
            pass
        return b"".join(parts)

    def _perform(self, reply: Reply) -> None:
        """Send an answer step by step; the generation ends before its last bytes leave, or with the client."""
        echo = self.server.echo
        head = self._head(reply)
        if self.command == "HEAD":
            reply.payload = None
        generating = int(reply.tokens > 0)
        echo._count_running(generating)
        try:
            for step in steps(reply, echo.delay, head, self._chunk):
                if isinstance(step, float):
                    self._pause(step)
                elif isinstance(step, bytes):
                    self.wfile.write(step)
                elif step is Mark.CUT:
                    self.close_connection = True
                    return
                else:
                    echo._count_running(-generating)
                    generating = 0
            if reply.events is not None and self._chunked:
                self.wfile.write(b"0\r\n\r\n")
        finally:
            echo._count_running(-generating)

    @property
    def _chunked(self) -> bool:
        return self.request_version == "HTTP/1.1"

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data

    def _head(self, reply: Reply) -> bytes:
        """Print the status line and the headers, in uvicorn's order and spelling."""
        streaming, chunked, headers = reply.events is not None, self._chunked, dict(reply.headers)
        if streaming:
            fields = [("content-type", "text/event-stream; charset=utf-8")]
        else:
            fields = [("allow", headers.pop("allow", "")), ("content-length", str(len(reply.body)))]
            kind = headers.pop("content-type", "application/json")
            fields.append(("content-type", kind if reply.body else ""))
        self.close_connection = self.close_connection or streaming and not chunked
        fields.append(("location", headers.pop("location", "")))
        # The 401 comes from before the CORS layer, which adds this one (auth_missing).
        fields.append(("vary", "Origin" if reply.status != 401 else ""))
        fields += headers.items()
        fields.append(("connection", "close" if self.close_connection else ""))
        fields.append(("transfer-encoding", "chunked" if streaming and chunked else ""))
        lines = ["HTTP/1.1 %d %s" % (reply.status, phrase(reply.status)), "date: " + formatdate(usegmt=True),
                 "server: uvicorn"] + ["%s: %s" % field for field in fields if field[1]]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def _pause(self, seconds: float) -> None:
        """Be silent for ``seconds``, or until the client goes: a peek tells, also while nothing is sent."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return
            self.connection.settimeout(left)
            try:
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise _Gone
            except socket.timeout:
                return
            finally:
                self.connection.settimeout(None)
            time.sleep(min(left, 0.05))  # the next request is there already; its client may still leave
