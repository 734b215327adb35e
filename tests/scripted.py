"""A socket server that does exactly what a script says: for what neither a mock nor a real server can be made to do.

A script is a list of steps, one script for each connection in the order in which they come; the last one repeats. A
step is ``bytes`` to send, ``("name", argument)`` or just ``"name"``:

request    read one request, head and body, and keep it in ``server.requests``
head       read up to the end of the request's head only
wait       until bytes are there to be read, without reading them
sleep, s   for that long, or until the server is stopped
until, f   until the function returns true
hold       until the client closes its side (noted in ``server.ends`` as "eof" or "reset") or the server stops
rst        close with a reset instead of an orderly end
half       close the sending side
again      start the script over, on the same connection
tls, ctx   speak TLS from here on
drain      read whatever comes until the client closes, slowly enough to fill the client's side first
drain_request   read the body that belongs to a ``head`` before
drip, data, seconds   send byte by byte
repeat, data   send it until the client is gone

At the end of a script the connection is closed in order. ``server.events`` lists the steps that ended, for waiting on.
"""

import json
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

LINGER_RST = struct.pack("ii", 1, 0)


def answer(body: Any, status: str = "200 OK", content_type: str = "application/json", extra: str = "") -> bytes:
    """Return a reply with Content-Length; a dict or list goes out as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
    head = "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n" % (status, content_type, len(data), extra)
    return head.encode("latin-1") + data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(data: Any) -> bytes:
    """Return one event in one HTTP chunk."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return chunk(b"data: %s\n\n" % text.encode("utf-8"))


def delta(text: str, finish: Optional[str] = None) -> Dict[str, Any]:
    """Return a chat chunk as vLLM sends it (chat_stream_count)."""
    choice: Dict[str, Any] = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def completion(text: str = "fine") -> Dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def named(*models: str) -> List[Any]:
    """Return the steps of a server that is asked for its models, and then whether it sleeps, on one connection."""
    listed = answer({"object": "list", "data": [{"id": model, "object": "model"} for model in models]})
    return ["request", listed, "request", answer({"detail": "Not Found"}, "404 Not Found")]


class Request:
    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        self.headers = dict(self.pairs)
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Scripted:
    """The server; a context manager. `listen` False leaves the backlog full, so that nothing is ever accepted."""

    def __init__(self, *scripts: List[Any], accept: bool = True) -> None:
        self.scripts = scripts
        self.requests: List[Request] = []
        self.ends: List[str] = []
        self.connections = 0
        self.log: List[str] = []
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._threads: List[threading.Thread] = []
        self._open: List[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16 if accept else 0)
        self.port = int(self._listener.getsockname()[1])
        self._fillers: List[socket.socket] = []
        self._accepts = accept
        if not accept:
            self._fill()

    @property
    def posts(self) -> List[Request]:
        """The requests that were no questions about the server."""
        return [request for request in self.requests if request.line.startswith("POST ")]

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self.port

    def __enter__(self) -> "Scripted":
        if self._accepts:
            self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopping.set()
        for sock in [self._listener] + self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the script hangs"
        for sock in [self._listener] + self._open + self._fillers:
            sock.close()

    def until(self, text: str, count: int = 1, seconds: float = 10.0) -> None:
        """Wait until a step of that name has been noted `count` times; "eof" is any end of the client's side.

        A client that closes with bytes unread resets the connection, and whether there are any is a matter of time.
        """
        def noted() -> int:
            return len(self.ends) if text == "eof" else self.log.count(text)

        with self._changed:
            done = self._changed.wait_for(lambda: noted() >= count, seconds)
        assert done, "no %s within %g s; there were: %s" % (text, seconds, self.log + self.ends)

    def _fill(self) -> None:
        for _ in range(4):  # Linux takes backlog + 1 connections, and leaves further ones unanswered
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(self._listener.getsockname())
            self._fillers.append(sock)
        time.sleep(0.05)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _note(self, text: str, into: Optional[List[str]] = None) -> None:
        with self._changed:
            (self.log if into is None else into).append(text)
            self._changed.notify_all()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            self._open.append(sock)
            self._start(self._run, sock, script)

    def _run(self, sock: socket.socket, script: List[Any]) -> None:
        state = {"sock": sock, "ahead": b""}
        try:
            position = 0
            while position < len(script) and not self.stopping.is_set():
                step = script[position]
                position += 1
                name = "send" if isinstance(step, bytes) else step if isinstance(step, str) else step[0]
                if name == "again":
                    position = 0
                elif name == "send":
                    state["sock"].sendall(step)
                else:
                    getattr(self, "_do_" + name)(state, *([] if isinstance(step, str) else step[1:]))
                self._note(name)
        except _Gone:
            pass
        except OSError as error:
            self._note("reset" if isinstance(error, ConnectionError) else "failed", self.ends)
        finally:
            state["sock"].close()
            if state["sock"] is not sock:
                sock.close()

    def _receive(self, state: Dict[str, Any]) -> None:
        data = state["sock"].recv(65536)
        if not data:
            self._note("eof", self.ends)
            raise _Gone
        state["ahead"] += data

    def _do_head(self, state: Dict[str, Any]) -> bytes:
        while b"\r\n\r\n" not in state["ahead"]:
            self._receive(state)
        head, _, state["ahead"] = state["ahead"].partition(b"\r\n\r\n")
        state["head"] = bytes(head)
        return bytes(head)

    def _do_request(self, state: Dict[str, Any]) -> None:
        self._do_head(state)
        self._do_drain_request(state)

    def _do_drain_request(self, state: Dict[str, Any]) -> None:
        request = Request(state["head"], b"")
        length = int(request.headers.get("content-length", "0"))
        while len(state["ahead"]) < length:
            self._receive(state)
        request.body, state["ahead"] = state["ahead"][:length], state["ahead"][length:]
        self.requests.append(request)

    def _do_wait(self, state: Dict[str, Any]) -> None:
        state["sock"].recv(1, socket.MSG_PEEK)

    def _do_sleep(self, state: Dict[str, Any], seconds: float) -> None:
        self.stopping.wait(seconds)

    def _do_until(self, state: Dict[str, Any], condition: Callable[[], Any]) -> None:
        while not condition():
            if self.stopping.wait(0.01):
                raise _Gone

    def _do_hold(self, state: Dict[str, Any]) -> None:
        while True:
            self._receive(state)

    def _do_drain(self, state: Dict[str, Any]) -> None:
        while not self.stopping.wait(0.05):
            self._receive(state)

    def _do_rst(self, state: Dict[str, Any], seconds: float = 0.02) -> None:
        time.sleep(seconds)  # what was sent before has to be read first: a reset overtakes it
        state["sock"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
        state["sock"].close()
        raise _Gone

    def _do_half(self, state: Dict[str, Any]) -> None:
        state["sock"].shutdown(socket.SHUT_WR)

    def _do_tls(self, state: Dict[str, Any], context: Any) -> None:
        state["sock"] = context.wrap_socket(state["sock"], server_side=True)
        self._open.append(state["sock"])

    def _do_drip(self, state: Dict[str, Any], data: bytes, seconds: float) -> None:
        for index in range(len(data)):
            state["sock"].sendall(data[index:index + 1])
            if self.stopping.wait(seconds):
                raise _Gone

    def _do_repeat(self, state: Dict[str, Any], data: bytes, pause: float = 0.0) -> None:
        while not self.stopping.wait(pause):
            state["sock"].sendall(data)


class _Gone(Exception):
    """The connection is over."""


def address_of_nobody() -> Tuple[str, int]:
    """Return an address of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()  # type: ignore[no-any-return]


def nobody() -> str:
    """Return a base URL that refuses connections."""
    return "http://%s:%d" % address_of_nobody()


def threads_settle(before: int, seconds: float = 5.0) -> bool:
    """Wait until there are no more threads than `before`."""
    end = time.monotonic() + seconds
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    return threading.active_count() <= before


def steps(transcript):
    """Return the script of a server that answers with a transcript's bytes, framed and ended as recorded."""
    head = [transcript.status_line] + ["%s: %s" % tuple(pair) for pair in transcript.headers]
    script = ["request"]
    if transcript.status_line:
        script.append(("\r\n".join(head) + "\r\n\r\n").encode())
        chunked = ["transfer-encoding", "chunked"] in transcript.headers
        script += [chunk(frame) if chunked else frame for frame in transcript.frames]
        if transcript.end == "chunked terminator":
            script.append(b"0\r\n\r\n")
    if transcript.end == "recorder timeout":
        script.append("hold")
    return script + (["rst"] if "RST" in transcript.end else [])
