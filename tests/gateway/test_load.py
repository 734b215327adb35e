"""The gateway under load: a server that dies and comes back, and many slow streams.

The sizes fit a busy machine; with ``VLLM_BRIDGE_LONG=1`` they are the full ones. ``-s`` shows the figures.
"""

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from faces import LONG, ROOT, Address, ask, chat, own, until
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

REQUESTS, STREAMS, SECONDS = (200, 300, 60) if os.environ.get("VLLM_BRIDGE_LONG") else (120, 40, 1)
CLIENTS = 8
CHAT = "/v1/chat/completions"


class Load:
    """A steady load from several threads, until stopped; counts what failed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.done = 0
        self.failures: List[Any] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(LONG)

    def _run(self, number: int) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                answer = ask(self.address, "POST", CHAT, chat("one two three", stream=number % 2 == 0))
                good = answer.status == 200 and b'"error"' not in answer.body
                problem: Any = (answer.status, answer.body)
            except Exception as error:
                good, problem = False, error
            with self._lock:
                self.done += 1
                if not good:
                    self.failures.append((began, problem))
            time.sleep(0.01)

    def more(self, count: int) -> None:
        """Wait for so many requests more."""
        wanted = self.done + count
        until(lambda: self.done >= wanted, 10 * LONG)


def shares(servers: Tuple[EchoServer, EchoServer], load: Load, count: int) -> Tuple[int, int]:
    before = [len(server.requests) for server in servers]
    load.more(count)
    first, second = (len(server.requests) - had for server, had in zip(servers, before))
    return first, second


def test_a_server_that_dies_and_comes_back_costs_no_request(capsys: Any) -> None:
    with EchoServer() as one, EchoServer() as two:
        config = ProviderConfig(keys=[{"url": one.url}, {"url": two.url}])
        with own(Gateway(Settings(config))) as address, Load(address) as load:
            before = shares((one, two), load, REQUESTS // 3)
            two.stop()
            gone = time.monotonic()
            without = shares((one, two), load, REQUESTS // 3)
            two.start()
            back = len(two.requests)
            until(lambda: len(two.requests) > back + 1)  # the probe, and one more
            after = shares((one, two), load, REQUESTS // 3)
    with capsys.disabled():
        print("\nload: %d requests, %d failed; shares before %s, without the second %s, after %s"
              % (load.done, len(load.failures), before, without, after))
    # What a server had taken when it died is not sent to another: it may have been half done.
    under_way = [each for each in load.failures if each[0] < gone]
    assert [each for each in load.failures if each not in under_way] == [] and len(under_way) <= CLIENTS
    for first, second in (before, after):
        assert second > 0 and first > 0
        # A fair coin that gives one side less than a seventh in 40 throws has one chance in a million.
        assert min(first, second) * 7 > first + second


# ---------------------------------------------------------------- many slow streams


class Figures(NamedTuple):
    threads: int
    descriptors: int
    kib: int


def figures(pid: int) -> Figures:
    status = Path("/proc/%d/status" % pid).read_text()
    found = {name: int(value) for name, value in re.findall(r"(?m)^(Threads|VmRSS):\s+(\d+)", status)}
    return Figures(found["Threads"], len(os.listdir("/proc/%d/fd" % pid)), found["VmRSS"])


@contextmanager
def process(upstream: str) -> Iterator[Tuple[int, Address]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    popen = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "gateway.py"), "--port", "0", "--upstream", upstream],
        env=clean, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True,
    )
    assert popen.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", popen.stdout.readline())
        assert found is not None
        reading = threading.Thread(target=popen.stdout.read)
        reading.start()
        yield popen.pid, ("127.0.0.1", int(found.group(1)))
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait(LONG)
        reading.join(LONG)
        popen.stdout.close()


def streams(address: Address, count: int, body: Dict[str, Any]) -> Tuple[int, float]:
    """Run so many streams at once; return how many came to their end, and the longest silence in one, in seconds."""
    data = json.dumps(body).encode()
    head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (CHAT, len(data))
    tails: Dict[socket.socket, bytes] = {}
    last: Dict[socket.socket, float] = {}
    whole, silence = 0, 0.0
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            sock = socket.create_connection(address, timeout=LONG)
            sock.sendall(head.encode() + data)
            selector.register(sock, selectors.EVENT_READ)
            tails[sock] = b""
        while tails:
            ready = selector.select(LONG)
            assert ready, "%d streams are silent" % len(tails)
            now = time.monotonic()
            for key, _ in ready:
                sock = key.fileobj  # type: ignore[assignment]
                block = sock.recv(65536)
                if sock in last:
                    silence = max(silence, now - last[sock])
                last[sock] = now
                if block:
                    tails[sock] = (tails[sock] + block)[-100:]
                    continue
                whole += b"data: [DONE]\n\n" in tails.pop(sock)
                selector.unregister(sock)
                sock.close()
    return whole, silence


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_many_slow_streams_leave_nothing_behind(capsys: Any) -> None:
    count = SECONDS * 4
    body = chat("!slow 0.25 !count %d" % count, stream=True)
    with EchoServer() as echo, process(echo.url) as (pid, address):
        assert streams(address, 2, chat("!count 3", stream=True))[0] == 2
        fresh = figures(pid)
        seen: List[Figures] = []
        for _ in range(2):
            running = threading.Thread(target=lambda: seen.append(at_work(echo, pid)))
            running.start()
            started = time.monotonic()
            whole, silence = streams(address, STREAMS, body)
            seconds = time.monotonic() - started
            running.join(LONG)
            assert whole == STREAMS
            until(lambda: figures(pid).threads <= fresh.threads + 1)  # the watcher of clients may still be there
            seen.append(figures(pid))
        # Idle connections to the server end after their 4 seconds, at the next request.
        time.sleep(4.5)
        assert streams(address, 1, chat("!count 3", stream=True))[0] == 1
        until(lambda: figures(pid).threads <= fresh.threads + 1)
        last = figures(pid)
    with capsys.disabled():
        print("\nstreams: %d of %.1f s each (longest silence %.2f s)\n  before %s\n  at work %s\n  after %s\n"
              "  at work again %s\n  after %s\n  at the end %s" % (STREAMS, seconds, silence, fresh, *seen, last))
    assert seen[0].threads >= STREAMS  # it was a load
    assert last.descriptors <= fresh.descriptors + 2
    assert seen[3].kib <= seen[1].kib + 8 * 1024  # the second round needs no more than the first left


def at_work(echo: EchoServer, pid: int) -> Figures:
    until(lambda: echo.running == STREAMS, 2 * LONG)
    return figures(pid)
