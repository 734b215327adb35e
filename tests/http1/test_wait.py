"""Waiting for sockets: limits that hold under signals, gevent and eventlet, and a client who leaves meanwhile."""

import contextlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Iterator, Tuple

import pytest

from vllm_bridge.errors import RequestCancelledError
from vllm_bridge.http1 import wait

Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    here.settimeout(0)
    with here, there:
        yield here, there


@pytest.fixture
def client() -> Iterator[Pair]:
    """Return our end of a client's connection, and the client's."""
    ours, its = socket.socketpair()
    ours.settimeout(0)
    with ours, its:
        yield ours, its


@pytest.fixture(params=["poll", "poll without POLLRDHUP", "select"])
def system(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look like each of the systems that there are."""
    if request.param != "poll":
        monkeypatch.delattr(select, "POLLRDHUP")
    if request.param == "select":
        monkeypatch.delattr(select, "poll")


def test_data_an_end_and_an_error_are_readable(pair: Pair, system: None) -> None:
    here, there = pair
    assert not wait.readable(here, 0)
    there.send(b"x")
    assert wait.readable(here, None)
    assert here.recv(10) == b"x"
    assert not wait.readable(here, 0)
    there.close()
    assert wait.readable(here, 5)
    assert here.recv(10) == b""


def test_a_closed_socket_is_ready_so_that_the_next_call_says_so(pair: Pair, system: None) -> None:
    pair[0].close()
    assert wait.readable(pair[0], 5)
    assert wait.writable(pair[0], 5)


def test_a_full_socket_is_not_writable_until_it_is_read(pair: Pair, system: None) -> None:
    here, there = pair
    with contextlib.suppress(BlockingIOError):
        while True:
            here.send(bytes(65536))
    assert not wait.writable(here, 0.01)
    reader = threading.Thread(target=lambda: [there.recv(65536) for _ in range(20)])
    reader.start()
    assert wait.writable(here, 5)
    here.close()
    reader.join()


def test_a_refused_connection_is_writable(system: None) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with socket.socket() as sock:
            sock.settimeout(0)
            sock.connect_ex(listener.getsockname())
            assert wait.writable(sock, 5)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or sock.connect_ex(listener.getsockname())


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.03])
def test_the_time_is_over(pair: Pair, system: None, seconds: float) -> None:
    started = time.monotonic()
    assert wait.readable(pair[0], seconds) is False
    assert time.monotonic() - started >= seconds


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
def test_a_limit_of_years_is_one(pair: Pair, system: None, seconds: float) -> None:
    pair[1].send(b"x")
    assert wait.readable(pair[0], seconds)


def test_a_client_that_leaves_ends_the_wait(pair: Pair, client: Pair, system: None) -> None:
    ours, its = client
    assert not wait.readable(pair[0], 0.06, ours)
    its.send(b"the next request")  # is nothing to wake up for
    if hasattr(select, "POLLRDHUP"):
        assert not wait.readable(pair[0], 0.06, ours)
    its.close()
    if not hasattr(select, "POLLRDHUP"):
        ours.recv(100)  # a peek sees the end only behind what was sent
    with pytest.raises(RequestCancelledError, match="the client left"):
        wait.readable(pair[0], 5, ours)


def test_a_client_that_leaves_while_we_wait(pair: Pair, client: Pair, system: None) -> None:
    ours, its = client
    leaving = threading.Timer(0.05, its.close)
    leaving.start()
    with pytest.raises(RequestCancelledError):
        wait.readable(pair[0], None, ours)
    leaving.join()


def test_looking_for_a_client_never_waits(client: Pair, system: None) -> None:
    ours, its = client
    for timeout in (0, 30):  # gunicorn's sockets block
        ours.settimeout(timeout)
        started = time.monotonic()
        assert not wait.has_left(ours)
        assert time.monotonic() - started < 10
    its.close()
    assert wait.has_left(ours)
    ours.close()
    assert wait.has_left(ours)


def test_a_client_whose_socket_is_closed_has_left(pair: Pair, client: Pair, system: None) -> None:
    client[0].close()
    with pytest.raises(RequestCancelledError):
        wait.readable(pair[0], 5, client[0])


def test_a_client_that_stays_is_no_hindrance(pair: Pair, client: Pair, system: None) -> None:
    pair[1].send(b"x")
    assert wait.readable(pair[0], 5, client[0])
    assert wait.writable(pair[0], 5, client[0])


def test_a_function_is_asked_whether_the_client_left(pair: Pair, system: None) -> None:
    answers = [False, False, True]
    with pytest.raises(RequestCancelledError):
        wait.readable(pair[0], None, lambda: answers.pop(0))
    assert answers == []


def test_what_the_function_raises_passes(pair: Pair, system: None) -> None:
    with pytest.raises(ZeroDivisionError):
        wait.readable(pair[0], None, lambda: bool(1 // 0))


@contextlib.contextmanager
def ringing(handler: Any, first: float, interval: float = 0.0) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_signals_do_not_make_a_wait_longer(pair: Pair, system: None) -> None:
    rung = []
    with ringing(lambda *_: rung.append(1), 0.02, 0.02):
        started = time.monotonic()
        assert not wait.readable(pair[0], 0.2)
        assert 0.2 <= time.monotonic() - started < 5
    assert len(rung) > 2


@pytest.mark.parametrize("kind", [KeyError, TimeoutError, BlockingIOError, KeyboardInterrupt])
def test_what_a_signals_handler_raises_passes(pair: Pair, system: None, kind: Any) -> None:
    def handler(*_: Any) -> None:
        raise kind("the handler's")

    with ringing(handler, 0.02), pytest.raises(kind, match="the handler's"):
        wait.readable(pair[0], None)


_GREEN = r"""
import socket, time, %(name)s
%(patch)s
from vllm_bridge.http1 import wait
from vllm_bridge.errors import RequestCancelledError
here, there = socket.socketpair(); ours, its = socket.socketpair()
for each in (here, there, ours, its):
    each.settimeout(0)
assert not wait.readable(here, 0.1)                       # the limit holds
ticks = []
def tick():
    for _ in range(5):
        time.sleep(0.01); ticks.append(1)
    there.send(b"x")
%(spawn)s(tick)
assert wait.readable(here, 5) and len(ticks) == 5          # the others go on meanwhile
assert here.recv(9) == b"x" and wait.writable(here, 5)
def leave():
    time.sleep(0.05); its.close()
%(spawn)s(leave)
try:
    wait.readable(here, 5, ours)
except RequestCancelledError:
    print("GOOD")
"""


@pytest.mark.parametrize("name, patch, spawn", [
    ("gevent", "from gevent import monkey; monkey.patch_all()", "gevent.spawn"),
    ("eventlet", "eventlet.monkey_patch()", "eventlet.spawn_n"),
])
def test_green_threads_wait_for_each_other(name: str, patch: str, spawn: str) -> None:
    pytest.importorskip(name) if name == "gevent" else _needs_eventlet()
    code = _GREEN % {"name": name, "patch": patch, "spawn": spawn}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60
    )
    assert (done.stdout, done.stderr) == (b"GOOD\n", b"")


def _needs_eventlet() -> None:
    import importlib.util

    if importlib.util.find_spec("eventlet") is None:  # importing it warns
        pytest.skip("could not import 'eventlet'")
