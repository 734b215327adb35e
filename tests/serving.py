"""Our own server around a small application, and a client that speaks in bytes."""

import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Container, Iterator, List, Optional, Tuple

from vllm_bridge.server.listener import Server
from vllm_bridge.server.request import Answer, Request

LONG = 30.0  # seconds: no verdict hangs on it
TEXT = [("Content-Type", "text/plain")]
MOST = 1000000  # bytes of a body that `echo` takes


def echo(request: Request) -> Answer:
    """Answer with what was asked; everything is read."""
    seen = {"method": request.method, "path": request.path, "query": request.query, "fields": request.fields}
    body = {"body": request.body.read(MOST).decode("latin-1"), **seen}
    return Answer(200, [("Content-Type", "application/json")], json.dumps(body).encode())


class App:
    """An application that answers by a function; probes are not counted, and what ended is kept."""

    probes: Container[str] = ("/probe",)

    def __init__(self, answer: Callable[[Request], Answer] = echo) -> None:
        self.answer = answer
        self.ends: List[Tuple[Request, Answer, bool]] = []

    def refuse(self, request: Request, status: int, message: str) -> Answer:
        fields = [("Content-Type", "application/json"), ("X-Asked", request.method + request.path)]
        return Answer(status, fields, json.dumps({"error": message}).encode())

    def ended(self, request: Request, answer: Answer, complete: bool) -> None:
        self.ends.append((request, answer, complete))

    def statuses(self) -> List[Tuple[int, bool]]:
        return [(answer.status, complete) for _, answer, complete in self.ends]


@contextmanager
def serving(app: Any = echo, **options: Any) -> Iterator[Server]:
    """Serve an application, or a function that answers; no thread is left afterwards."""
    before = set(threading.enumerate())
    server = Server(app if isinstance(app, App) else App(app), **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(0 if server.graceful_timeout == 30.0 else None)
        thread.join(LONG)
        server.server_close()
        until(lambda: set(threading.enumerate()) <= before)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Client:
    """A socket that speaks in bytes."""

    def __init__(self, server: Optional[Server], address: Any = None) -> None:
        self.sock = socket.create_connection(address or server.server_address[:2], timeout=LONG)  # type: ignore
        self.data = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Leave without an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def send(self, data: bytes) -> "Client":
        self.sock.sendall(data)
        return self

    def until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            piece = self.sock.recv(65536)
            assert piece, self.data
            self.data += piece
        end = self.data.index(mark) + len(mark)
        read, self.data = self.data[:end], self.data[end:]
        return read

    def reply(self) -> Tuple[int, str, bytes]:
        """Read one reply with a known length."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        length = int(re.search(r"Content-Length: (\d+)", head).group(1))  # type: ignore[union-attr]
        while len(self.data) < length:
            piece = self.sock.recv(65536)
            assert piece
            self.data += piece
        body, self.data = self.data[:length], self.data[length:]
        return int(head[9:12]), head, body

    def rest(self) -> bytes:
        """Read until the server ends the connection."""
        data, self.data = self.data, b""
        while True:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece
