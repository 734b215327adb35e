"""Load on a gateway from one thread: ``load.py JSON`` prints one JSON line; see `Plan` for what the JSON holds.

Replies are not parsed: a status line, the end of the body, the count of events and the stamps of the fake server are
looked for in the bytes.
"""

import json
import select
import socket
import statistics
import sys
import time
from typing import Any, Dict, List, Optional

LAST = b"0\r\n\r\n"
EVENT = b"data: {"


class Plan:
    """What to do: `connections` at once on `port`, each sending `body` to `path` again and again for `seconds`.

    `stream` counts events and expects ``[DONE]``. The first `warm` seconds are not counted. `ramp` is the time in
    which the connections are opened one after another.
    """

    def __init__(self, given: Dict[str, Any]) -> None:
        self.port: int = given["port"]
        self.connections: int = given["connections"]
        self.seconds: float = given["seconds"]
        self.warm: float = given.get("warm", 0.2)
        self.ramp: float = given.get("ramp", 0.0)
        self.stream: bool = given.get("stream", False)
        body = json.dumps(given["body"], separators=(",", ":")).encode()
        head = "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        head += "Content-Length: %d\r\n%s\r\n"
        extra = "".join("%s: %s\r\n" % pair for pair in given.get("headers", {}).items())
        self.request = (head % (given["path"], self.port, len(body), extra)).encode() + body


class Line:
    """One connection and the reply it is reading."""

    __slots__ = ("sock", "blocks", "length", "have", "tail", "first", "sent", "checked")

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.clear()

    def clear(self) -> None:
        self.blocks: List[bytes] = []
        self.length: Optional[int] = None  # of head and body, once the head told it
        self.have = 0
        self.tail = b""
        self.first = True
        self.sent = 0.0
        self.checked = False


class Load:
    """The run; `result` is what it found."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoll = select.epoll()
        self.lines: Dict[int, Line] = {}
        self.times: List[float] = []
        self.firsts: List[float] = []
        self.done = self.events = self.bad = 0
        self.why = ""
        self.counting_from = 0.0

    def run(self) -> Dict[str, Any]:
        plan = self.plan
        start = time.monotonic()
        self.counting_from = start + plan.ramp + plan.warm
        end = self.counting_from + plan.seconds
        opened = 0
        while True:
            now = time.monotonic()
            if now >= end:
                break
            while opened < plan.connections and now >= start + plan.ramp * opened / plan.connections:
                self.open()
                opened += 1
            for fd, _ in self.epoll.poll(min(end - now, 0.002 if opened < plan.connections else 1.0)):
                self.receive(fd)
        for line in self.lines.values():
            line.sock.close()
        return self.result(time.monotonic() - self.counting_from)

    def open(self) -> None:
        try:
            line = Line(self.plan.port)
        except OSError as error:
            self.fail("no connection: %s" % error)
            return
        self.lines[line.sock.fileno()] = line
        self.epoll.register(line.sock.fileno(), select.EPOLLIN)
        self.ask(line)

    def ask(self, line: Line) -> None:
        line.clear()
        line.sent = time.monotonic()
        line.sock.send(self.plan.request)

    def receive(self, fd: int) -> None:
        line = self.lines[fd]
        try:
            data = line.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            data, self.why = b"", str(error)
        if not data:
            self.drop(line, "the connection ended")
            return
        if not line.checked and not self.check(line, data):
            return
        line.blocks.append(data)
        line.have += len(data)
        if self.plan.stream:
            self.events_in(line, data)
        tail = (line.tail + data)[-5:] if len(data) < 5 else data[-5:]
        line.tail = tail
        if line.have == line.length or (line.length is None and tail == LAST):
            self.complete(line)

    def check(self, line: Line, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        if not data.startswith(b"HTTP/1.1 200") or end < 0:
            self.drop(line, data[:300].decode("latin-1"))
            return False
        line.checked = True
        lower = data[:end].lower()
        mark = lower.find(b"content-length:")
        if mark >= 0:
            line.length = end + 4 + int(lower[mark + 15:].split(b"\r", 1)[0])
        return True

    def events_in(self, line: Line, data: bytes) -> None:
        now = time.monotonic()
        if now >= self.counting_from:
            self.events += data.count(EVENT)
        if line.first:
            mark = data.find(b"@")
            if mark >= 0:
                line.first = False
                if now >= self.counting_from:
                    self.firsts.append(now * 1e6 - int(data[mark + 1:mark + 17]))

    def complete(self, line: Line) -> None:
        if self.plan.stream and b"[DONE]" not in b"".join(line.blocks[-3:]):
            self.fail("a stream without [DONE]")
        elif time.monotonic() >= self.counting_from:
            self.done += 1
            self.times.append(time.monotonic() - line.sent)
        self.ask(line)

    def fail(self, why: str) -> None:
        self.bad += 1
        self.why = self.why or why

    def drop(self, line: Line, why: str) -> None:
        self.fail(why)
        self.epoll.unregister(line.sock.fileno())
        del self.lines[line.sock.fileno()]
        line.sock.close()
        if self.bad < 1000:
            self.open()

    def result(self, seconds: float) -> Dict[str, Any]:
        return {
            "per_second": self.done / seconds, "done": self.done, "seconds": seconds,
            "events_per_second": self.events / seconds, "bad": self.bad, "why": self.why,
            "median_ms": statistics.median(self.times) * 1e3 if self.times else None,
            "first_ms": statistics.median(self.firsts) / 1e3 if self.firsts else None,
        }


if __name__ == "__main__":
    print(json.dumps(Load(Plan(json.loads(sys.argv[1]))).run()))
