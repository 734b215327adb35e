"""Worker processes: who answers, who is replaced, and how all of them end."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

from serving import TEXT, App
from vllm_bridge.server import workers
from vllm_bridge.server.addresses import listen
from vllm_bridge.server.listener import Server
from vllm_bridge.server.request import Answer

LONG = 30.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SCRIPT = """
import logging, os, sys, time
sys.path[:0] = ["tests"]
from serving import TEXT, Answer, App, Server
from vllm_bridge.server import listener
from vllm_bridge.server.addresses import listen
from vllm_bridge.server.workers import run

listener._LAST_WORDS = 0.1

logging.basicConfig(format="%(message)s")

def answer(request):
    if request.path == "/crash":
        os._exit(9)
    return Answer(200, TEXT, slow() if request.path == "/slow" else b"%d %d" % (os.getpid(), INDEX))

def slow():
    yield b"start"
    time.sleep(float(sys.argv[2]))
    yield b"end"

def make_server(sock, index):
    global INDEX
    INDEX = index
    if index == 1 and "broken" in sys.argv:
        raise ValueError("cannot be made")
    return Server(App(answer), sock=sock, multiprocess=True)

sock = listen("127.0.0.1", 0)
print(sock.getsockname()[1], flush=True)
code = run(make_server, sock, int(sys.argv[1]), graceful_timeout=20,
           before_fork=lambda index: print("fork", index, flush=True),
           worker_started=lambda index, pid: print("worker", index, pid, flush=True))
sys.exit(code)
"""


class Family:
    """A parent with its workers, run as a script."""

    def __init__(self, *args: str) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root, text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def workers(self, count: int) -> List[int]:
        """Read `count` notices of started workers; return their pids."""
        pids = []
        for _ in range(count):
            fork, index = self.process.stdout.readline().split()  # type: ignore[union-attr]
            word, started, pid = self.process.stdout.readline().split()  # type: ignore[union-attr]
            assert (fork, word, started) == ("fork", "worker", index)
            pids.append(int(pid))
        return pids

    def ask(self, path: str = "/", sock: Optional[socket.socket] = None) -> bytes:
        sock = sock or socket.create_connection(("127.0.0.1", self.port), LONG)
        with sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
            data = b""
            while True:
                piece = sock.recv(65536)
                if not piece:
                    return data.partition(b"\r\n\r\n")[2]
                data += piece

    def end(self) -> int:
        try:
            return self.process.wait(LONG)
        finally:
            self.process.kill()


@pytest.fixture
def family() -> Iterator[Callable[..., Family]]:
    made: List[Family] = []

    def make(*args: str) -> Family:
        made.append(Family(*args))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.communicate()


def gone(pid: int) -> bool:
    """Tell whether a process that is not our child has ended."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        try:  # an orphan that nobody reaps
            if ") Z " in Path("/proc/%d/stat" % pid).read_text():
                return True
        except OSError:
            pass
        time.sleep(0.01)
    return False


def answers(each: Family, pids: List[int]) -> None:
    """Ask until every one of the workers has answered."""
    missing, end = set(pids), time.monotonic() + LONG
    while missing:
        assert time.monotonic() < end, missing
        socks = [socket.create_connection(("127.0.0.1", each.port), LONG) for _ in range(8)]
        for sock in socks:
            missing.discard(int(each.ask(sock=sock).split()[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_workers_answer_and_end_with_their_parent(family: Any, number: signal.Signals) -> None:
    each = family("2", "0")
    pids = each.workers(2)
    answers(each, pids)
    each.process.send_signal(number)
    assert each.end() == 0
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_dies_is_replaced(family: Any) -> None:
    each = family("2", "0")
    first = each.workers(2)
    answers(each, first)
    os.kill(first[0], signal.SIGKILL)
    second = each.workers(1)
    answers(each, [first[1], second[0]])
    assert each.ask("/crash") == b""
    third = each.workers(1)
    living = (set(first[1:]) | set(second) | set(third))
    living = {pid for pid in living if not gone_now(pid)}
    assert len(living) == 2
    answers(each, list(living))
    each.process.terminate()
    assert each.end() == 0
    log = each.process.stderr.read()
    assert "died of signal 9 and is replaced" in log and "died of exit code 9" in log


def gone_now(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_running_answers_finish(family: Any) -> None:
    each = family("2", "1.0")
    pids = each.workers(2)
    answers(each, pids)
    sock = socket.create_connection(("127.0.0.1", each.port), LONG)
    sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"start" in sock.recv(65536)
    each.process.terminate()
    data = b""
    with sock:
        while True:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    assert data == b"3\r\nend\r\n0\r\n\r\n"
    assert each.end() == 0


def test_a_second_interrupt_does_not_wait(family: Any) -> None:
    each = family("2", "0.5")
    pids = each.workers(2)
    answers(each, pids)
    sock = socket.create_connection(("127.0.0.1", each.port), LONG)
    with sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"start" in sock.recv(65536)
        each.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        each.process.send_signal(signal.SIGINT)
        assert sock.recv(65536) == b""  # cut off before its end
    assert each.end() == 0


def test_workers_do_not_outlive_a_parent_that_was_killed(family: Any) -> None:
    each = family("2", "0")
    pids = each.workers(2)
    each.process.kill()
    assert each.end() == -signal.SIGKILL
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_cannot_start_ends_all(family: Any) -> None:
    each = family("2", "0", "broken")
    pids = each.workers(2)
    assert each.end() == 1
    assert all(gone(pid) for pid in pids)
    assert "worker 1 cannot start; stopping" in each.process.stderr.read()


# ---------------------------------------------------------------- in this process


app = App(lambda request: Answer(200, TEXT, b"ok"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_worker_serves_in_this_process(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    sock = listen("127.0.0.1", 0)
    address = sock.getsockname()

    def ask_and_stop() -> None:
        with socket.create_connection(address, LONG) as client:
            for _ in range(20):  # by then the main thread waits for the next connection
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                seen[:] = [client.recv(65536)]
            # As where the signal comes just before the main thread begins to wait: it interrupts no wait of that.
            signal.pthread_kill(threading.get_ident(), number)
            seen.append(client.recv(65536))

    seen: List[bytes] = []
    thread = threading.Thread(target=ask_and_stop)
    thread.start()
    assert workers.run(lambda sock, index: Server(app, sock=sock), sock) == 0
    thread.join(LONG)
    assert seen[0].endswith(b"\r\n\r\nok") and seen[1] == b""
    assert signal.getsignal(number) is before


def test_a_worker_stops_when_its_lifeline_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for shut in (False, True):
        ours, theirs = socket.socketpair()
        with theirs:
            ours.close() if not shut else theirs.shutdown(socket.SHUT_RDWR)
            assert workers._serve(Server(app), theirs) == 0
            ours.close()
    closed = socket.socket()
    closed.close()
    assert workers._serve(Server(app), closed) == 0
    assert signal.getsignal(signal.SIGTERM) is before


class Fork:
    """Stand for os.fork: a parent's view of children that end as they are told."""

    def __init__(self, monkeypatch: Any, *scripts: str) -> None:
        self.scripts = list(scripts)
        monkeypatch.setattr(workers.os, "fork", self)

    def __call__(self) -> int:
        script = self.scripts.pop(0) if self.scripts else "import time; time.sleep(60)"
        # Its end of the lifeline is its standard input.
        code = "import os, signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, [2, 15]); " + script
        theirs = self._theirs()
        child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs)
        child.returncode = 0  # the parent under test reaps it
        return child.pid

    @staticmethod
    def _theirs() -> Any:
        frame = sys._getframe(2)
        return frame.f_locals["theirs"]


def test_the_parent_replaces_and_stops(monkeypatch: Any, caplog: Any) -> None:
    fork = Fork(monkeypatch, "os._exit(7)", "os.kill(os.getpid(), 9)")
    started: List[int] = []

    def worker_started(index: int, pid: int) -> None:
        started.append(index)
        if len(started) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert workers.run(lambda *args: Server(app), listen("127.0.0.1", 0), 2, worker_started=worker_started) == 0
    assert sorted(started) == [0, 0, 1, 1] and not fork.scripts
    assert "died of exit code 7" in caplog.text and "died of signal 9" in caplog.text


def test_the_parent_kills_who_does_not_stop(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(workers, "_MARGIN", 0.1)
    ignore = "import signal, time; signal.signal(15, signal.SIG_IGN); signal.signal(3, signal.SIG_IGN); time.sleep(60)"
    Fork(monkeypatch, ignore, ignore)

    def before_fork(index: int) -> None:
        if index == 1:
            time.sleep(0.5)  # the first child ignores signals by now
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    sock = listen("127.0.0.1", 0)
    assert workers.run(lambda *args: Server(app), sock, 2, graceful_timeout=0, before_fork=before_fork) == 0
    assert sock.sockets[0].fileno() == -1
    assert not [record for record in caplog.records if record.levelno > logging.ERROR]


def test_the_parent_gives_up_on_a_worker_that_cannot_start(monkeypatch: Any, caplog: Any) -> None:
    Fork(monkeypatch, "os._exit(3)")
    assert workers.run(lambda *args: Server(app), listen("127.0.0.1", 0), 2) == 1
    assert "cannot start" in caplog.text


def test_a_child_that_is_gone_already_needs_no_signal() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    workers._kill(child.pid, signal.SIGTERM)
