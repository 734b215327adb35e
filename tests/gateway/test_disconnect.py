"""Clients that go away, at real sockets."""

import socket
import threading
import time
from typing import Any, Iterator, List

import pytest

from faces import LONG, until
from vllm_bridge.gateway import disconnect
from vllm_bridge.gateway.disconnect import Watcher


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    monkeypatch.setattr(disconnect, "_TICK", 0.05)
    found = Watcher()
    yield found
    found.close()
    assert not any(thread.name == "vllm-bridge-disconnects" for thread in threading.enumerate())


@pytest.fixture(params=["poll", "peek"])
def way(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "peek":  # as on a system without POLLRDHUP
        monkeypatch.delattr("select.POLLRDHUP", raising=False)
    return str(request.param)


class Pair:
    def __init__(self) -> None:
        self.server, self.client = socket.socketpair()

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.server.close()
        self.client.close()


def test_a_client_that_leaves_is_noticed_once(watcher: Watcher, way: str) -> None:
    gone: List[str] = []
    with Pair() as pair, Pair() as other:
        environ = {"vllm_bridge.socket": pair.server}
        staying = {"gunicorn.socket": other.server}
        assert watcher.watch(environ, lambda: gone.append("left")) == id(environ)
        watcher.watch(staying, lambda: gone.append("stayed"))
        pair.client.close()
        started = time.monotonic()
        until(lambda: gone)
        assert time.monotonic() - started < LONG / 3
        time.sleep(3 * disconnect._TICK)
        assert gone == ["left"]
        watcher.discard(id(environ))
        watcher.discard(id(staying))


def test_a_client_that_sends_the_next_request_is_there(watcher: Watcher, way: str) -> None:
    gone: List[str] = []
    with Pair() as pair:
        pair.client.sendall(b"GET / HTTP/1.1\r\n")
        token = watcher.watch({"vllm_bridge.socket": pair.server}, lambda: gone.append("left"))
        time.sleep(3 * disconnect._TICK)
        assert gone == [] and pair.server.recv(3) == b"GET"
        watcher.discard(token)


def test_a_request_that_ended_is_not_looked_at(watcher: Watcher) -> None:
    gone: List[str] = []
    with Pair() as pair:
        watcher.discard(watcher.watch({"vllm_bridge.socket": pair.server}, lambda: gone.append("left")))
        pair.client.close()
        time.sleep(3 * disconnect._TICK)
        assert gone == []


def test_a_closed_socket_harms_nobody(watcher: Watcher, way: str) -> None:
    gone: List[str] = []
    with Pair() as pair, Pair() as other:
        keep = [{"vllm_bridge.socket": other.server}, {"vllm_bridge.socket": pair.server}]
        watcher.watch(keep[0], lambda: None)
        other.server.close()
        watcher.watch(keep[1], lambda: gone.append("left"))
        pair.client.close()
        until(lambda: gone)


def test_waitress_tells_by_a_function(watcher: Watcher) -> None:
    gone: List[str] = []
    left = threading.Event()
    environ = {"waitress.client_disconnected": left.is_set}
    watcher.watch(environ, lambda: gone.append("left"))
    left.set()
    until(lambda: gone)


def test_without_a_socket_nothing_is_watched(watcher: Watcher) -> None:
    assert watcher.watch({}, lambda: None) == 0
    watcher.discard(0)
    assert watcher._thread is None


def test_the_thread_ends_when_idle_and_comes_back(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnect, "_TICK", 0.01)
    gone: List[str] = []
    for _ in range(2):
        with Pair() as pair:
            environ = {"vllm_bridge.socket": pair.server}
            watcher.watch(environ, lambda: gone.append("left"))
            assert watcher._thread is not None
            pair.client.close()
            until(lambda: gone)
            gone.clear()
            until(lambda: watcher._thread is None)


def test_a_closed_watcher_watches_no_more(watcher: Watcher) -> None:
    watcher.close()
    with Pair() as pair:
        watcher.watch({"vllm_bridge.socket": pair.server}, lambda: None)
        assert watcher._thread is None


def test_what_a_peek_cannot_tell() -> None:
    class Tls:
        """A socket that is readable and refuses to peek."""

        def __init__(self, error: Exception) -> None:
            self.pair = Pair()
            self.pair.client.sendall(b"x")
            self.error = error

        def fileno(self) -> int:
            return self.pair.server.fileno()

        def recv(self, size: int, flags: int) -> bytes:
            raise self.error

    for error, expected in ((ValueError("flags"), False), (ConnectionResetError(), True), (BlockingIOError(), False)):
        tls = Tls(error)
        with tls.pair:
            assert disconnect._ended(tls) is expected
