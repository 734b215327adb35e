"""The gateway behind each server that it is meant for, and a plain client of it."""

import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from wsgiref.validate import validator

from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import read
from vllm_bridge.server.listener import Server

LONG = 30.0  # seconds: no verdict hangs on it
ROOT = Path(__file__).resolve().parents[1]
FACES = ("own", "validated", "gthread", "gevent", "waitress")
Address = Tuple[str, int]


def until(condition: Callable[[], Any], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextmanager
def face(name: str, environ: Mapping[str, str]) -> Iterator[Address]:
    """Run the gateway with settings from `environ` behind one of `FACES`."""
    faces = {"own": _own, "validated": _validated, "waitress": _waitress}
    with faces[name](environ) if name in faces else _gunicorn(environ, name) as address:
        yield address


@contextmanager
def own(gateway: Any, **options: Any) -> Iterator[Address]:
    """Serve a gateway on the project's own server; no thread of it is left afterwards."""
    before = set(threading.enumerate())
    server = Server(gateway, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ("127.0.0.1", server.server_port)
    finally:
        server.shutdown(0)
        thread.join(LONG)
        server.server_close()
        gateway.close()
        until(lambda: not any(thread.name.startswith("vllm-bridge") for thread in set(threading.enumerate()) - before))


@contextmanager
def _own(environ: Mapping[str, str]) -> Iterator[Address]:
    with own(Gateway(read({}, environ))) as address:
        yield address


@contextmanager
def _validated(environ: Mapping[str, str]) -> Iterator[Address]:
    with _waitress(environ, validator) as address:
        yield address


@contextmanager
def _waitress(environ: Mapping[str, str], wrap: Callable[[Any], Any] = lambda app: app) -> Iterator[Address]:
    import waitress.server

    gateway = Gateway(read({}, environ))
    server = waitress.server.create_server(
        wrap(gateway), host="127.0.0.1", port=0, threads=8, channel_request_lookahead=1, map={}
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield ("127.0.0.1", int(server.effective_port))
    finally:
        with suppress(OSError):  # a loop that was awake has closed all before the write that is to wake it
            server.trigger.pull_trigger(lambda: _close(server))
        thread.join(LONG)
        server.task_dispatcher.shutdown()
        gateway.close()


def _close(server: Any) -> None:
    for channel in list(server.active_channels.values()):
        channel.handle_close()
    server.close()  # its loop ends with nothing left to look at


@contextmanager
def _gunicorn(environ: Mapping[str, str], worker_class: str) -> Iterator[Address]:
    command = [
        sys.executable, "-W", "ignore", "-m", "gunicorn", "--worker-class", worker_class, "--threads", "8",
        "--bind", "127.0.0.1:0", "--no-control-socket", "vllm_bridge.gateway:create_app()",
    ]
    if "--no-control-socket" not in _gunicorn_help():
        command.remove("--no-control-socket")
    process = subprocess.Popen(
        command, cwd=str(ROOT), env={**os.environ, **environ}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert process.stderr is not None
        lines: List[str] = []
        for raw in process.stderr:
            lines.append(raw.decode())
            found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", lines[-1])
            if found:
                break
        else:
            raise AssertionError("gunicorn did not start: %s" % "".join(lines))
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield ("127.0.0.1", int(found.group(1)))
    finally:
        process.terminate()
        process.wait(LONG)
        drain.join(LONG)
        process.stderr.close()


def _gunicorn_help() -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "gunicorn", "--help"], stdout=subprocess.PIPE, universal_newlines=True
    ).stdout


# ---------------------------------------------------------------- serve


class Process:
    """The gateway in a process of its own, its lines as they come."""

    def __init__(
        self, *flags: str, environ: Dict[str, str], program: Sequence[str] = (str(ROOT / "scripts" / "gateway.py"),)
    ) -> None:
        self.out: List[str] = []
        self.errors: List[str] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        self.popen = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *flags], env={**clean, **environ}, cwd=str(ROOT),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
        )
        self.threads = [threading.Thread(target=lines.extend, args=(pipe,)) for lines, pipe in (
            (self.out, self.popen.stdout), (self.errors, self.popen.stderr))]
        for thread in self.threads:
            thread.start()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.popen.wait(LONG)
        for thread in self.threads:
            thread.join(LONG)
        for pipe in (self.popen.stdout, self.popen.stderr):
            assert pipe is not None
            pipe.close()
        return code

    @property
    def address(self) -> Any:
        until(lambda: self.out or self.popen.poll() is not None)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.out[0])
        assert found is not None
        return ("127.0.0.1", int(found.group(1)))


@contextmanager
def running(*flags: str, **environ: str) -> Iterator[Process]:
    with watched(Process(*flags, environ=environ)) as process:
        yield process


@contextmanager
def watched(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
        if not process.popen.stdout.closed:  # type: ignore[union-attr]
            process.wait()


def children_of(pid: int) -> List[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], stdout=subprocess.PIPE, universal_newlines=True
    ).stdout.split()
    return [int(word) for word in listed]


# ---------------------------------------------------------------- a client


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Dict[str, Any]:
        error: Dict[str, Any] = self.json["error"]
        return error

    def events(self) -> List[str]:
        """The data of each event, as the server framed them."""
        assert self.headers["content-type"].startswith("text/event-stream"), self.body
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == ""
        return [block.partition("data: ")[2] for block in blocks]


def ask(
    address: Address, method: str, path: str, body: Any = None, headers: Optional[Dict[str, str]] = None
) -> Answer:
    """Make a request on a connection of its own; a body that is no bytes goes as JSON."""
    connection = http.client.HTTPConnection(*address, timeout=LONG)
    try:
        sent = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, bytearray)):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def chat(text: str, **more: Any) -> Dict[str, Any]:
    return {"model": "vllm/echo", "messages": [{"role": "user", "content": text}], **more}


@contextmanager
def log_lines() -> Iterator[List[Dict[str, Any]]]:
    lines: List[Dict[str, Any]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(record.getMessage()))

    logger = logging.getLogger("vllm_bridge.access")
    handler = Collect()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
