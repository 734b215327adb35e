"""The server as a whole: how much it does at once, who gives way, what the system has not got, and its end."""

import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from requests_by_hand import get, post
from serving import LONG, TEXT, App, Client, serving, until
from vllm_bridge.errors import RequestCancelledError
from vllm_bridge.http1 import wait
from vllm_bridge.server import listener
from vllm_bridge.server.addresses import Listener, listen
from vllm_bridge.server.listener import Server
from vllm_bridge.server.request import Answer, Request

SUBPROCESS = """
import logging, sys
sys.path[:0] = ["tests"]
logging.basicConfig()
from serving import *
server = Server(App(lambda request: Answer(200, TEXT, b"ok")), max_connections=int(sys.argv[1]))
print(server.server_port, server.places, flush=True)
server.serve_forever()
"""


def held(go: threading.Event) -> Callable[[Request], Answer]:
    """Answer all but probes with a stream that goes on until `go`."""
    def blocks() -> Iterator[bytes]:
        yield b"one"
        go.wait(LONG)
        yield b"two"

    return lambda request: Answer(200, TEXT, b"up" if request.path == "/probe" else blocks())


# ---------------------------------------------------------------- how much at once


def test_the_limit_counts_work_and_probes_are_answered() -> None:
    go = threading.Event()
    app = App(held(go))
    with serving(app, max_connections=2) as server, ExitStack() as stack:
        busy = [stack.enter_context(Client(server)) for _ in range(2)]
        for client in busy:
            client.send(get()).until(b"one\r\n")
        with Client(server) as third:
            for _ in range(3):
                assert third.send(get("/probe")).reply()[::2] == (200, b"up")
                status, head, _ = third.send(post(b"hi", path="/work")).reply()
                assert status == 503 and "X-Asked: POST/work" in head and "Connection" not in head
            go.set()
            for client in busy:
                assert client.until(b"two\r\n0\r\n\r\n")
            until(lambda: third.send(get("/again")).until(b"\r\n\r\n").startswith(b"HTTP/1.1 200"))
    assert app.statuses().count((503, True)) >= 3


@pytest.mark.parametrize("fails", ["answer", "blocks", "client"])
def test_a_place_is_given_back_however_a_request_ends(fails: str) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"one"
        while fails == "client":
            yield b"x" * 1000
        raise RuntimeError("blocks")

    def answer(request: Request) -> Answer:
        if fails == "answer":
            raise RuntimeError("answer")
        return Answer(200, TEXT, blocks())

    with serving(answer, max_connections=1) as server:
        for _ in range(3):
            with Client(server) as client:
                client.send(get()).until(b"\r\n\r\n")
            until(lambda: not server.threads)
        assert len(server.free_places) == 1


def test_the_connection_that_is_idle_for_longest_gives_way() -> None:
    with serving(max_connections=3) as server, ExitStack() as stack:
        kept = []
        for _ in range(server.most_open):
            kept.append(stack.enter_context(Client(server)))
            assert kept[-1].send(get()).reply()[0] == 200
            until(lambda: list(server.idle.values()) == [0.0] * len(kept))  # it waits for its next request
        kept[0].send(get()).reply()  # now the second is the one
        until(lambda: len(server.idle) == len(kept))
        with Client(server) as new:
            assert new.send(get()).reply()[0] == 200
        assert kept[1].rest() == b""
        assert kept[0].send(get()).reply()[0] == 200 and kept[2].send(get()).reply()[0] == 200


def test_who_has_just_come_or_is_at_work_does_not_give_way() -> None:
    go = threading.Event()
    with serving(held(go), max_connections=32) as server, ExitStack() as stack:
        busy = [stack.enter_context(Client(server)) for _ in range(32)]
        for client in busy:
            client.send(get()).until(b"one\r\n")
        fresh = [stack.enter_context(Client(server)) for _ in range(server.most_open)]
        for client in fresh[:3]:
            assert client.send(get("/probe")).reply()[0] == 200
        go.set()
        for client in busy:
            assert client.until(b"two\r\n0\r\n\r\n")


def test_idle_connections_without_end_keep_nobody_out() -> None:
    with serving(max_connections=2) as server, ExitStack() as stack:
        for _ in range(3 * server.most_open):
            stack.enter_context(Client(server))
        with Client(server) as client:
            assert client.send(get()).reply()[0] == 200


def test_a_worker_with_all_places_taken_lets_the_others_accept(monkeypatch: Any) -> None:
    monkeypatch.setattr(listener, "_AFTER_OTHERS", LONG)
    go = threading.Event()
    first, second = App(held(go)), App(held(go))
    sock = listen("127.0.0.1", 0)
    shared = Listener([sock.sockets[0].dup()])
    with serving(first, sock=shared, max_connections=1, multiprocess=True) as one, ExitStack() as stack:
        busy = stack.enter_context(Client(one))
        busy.send(get()).until(b"one\r\n")
        with serving(second, sock=sock, max_connections=100, multiprocess=True) as two:
            clients = [stack.enter_context(Client(two)) for _ in range(20)]
            for client in clients:
                assert client.send(get("/probe")).reply()[0] == 200
            until(lambda: len(second.ends) == 20)
            assert not first.ends
            go.set()


def test_workers_that_are_all_full_still_answer_probes() -> None:
    go = threading.Event()
    with serving(held(go), max_connections=1, multiprocess=True) as server, Client(server) as busy:
        busy.send(get()).until(b"one\r\n")
        with Client(server) as client:
            assert client.send(get("/probe")).reply()[0] == 200
            assert client.send(get()).reply()[0] == 503
        go.set()


def test_five_hundred_connections_at_once() -> None:
    with serving() as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(500)]
        for client in clients:
            client.send(post(b"hi"))
        assert {client.reply()[0] for client in clients} == {200}
    until(lambda: not server.threads)


# ---------------------------------------------------------------- what the system has not got


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
@pytest.mark.parametrize("soft, hard, asked, places", [
    (64, 4096, 1000, 1000), (40, 40, 1000, 12), (100, 100, 10, 10),
])
def test_descriptors_and_places_fit_each_other(soft: int, hard: int, asked: int, places: int) -> None:
    """The soft limit is raised as far as it goes; where that is too little, fewer requests run at once."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))\n%s" % (soft, hard, SUBPROCESS)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(asked)], cwd=str(Path(__file__).parents[2]), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        port, found = map(int, process.stdout.readline().split())
        assert found == places
        with ExitStack() as stack:  # more than there are descriptors for
            for _ in range(soft):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG))
            with Client(None, ("127.0.0.1", port)) as client:
                assert client.send(get()).reply()[0] == 200
    finally:
        process.kill()
        said = process.communicate()[1]
    assert ("at once, not %d" % asked in said) is (places < asked)
    assert "cannot accept" not in said and "Traceback" not in said


def test_accepting_goes_on_after_a_failure(monkeypatch: Any, caplog: Any) -> None:
    failures = [OSError(24, "Too many open files"), ConnectionAbortedError(), OSError(24, "Too many open files")]
    accept = Server.get_request

    def get_request(self: Server) -> Any:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(Server, "get_request", get_request)
    with serving() as server, Client(server) as client:
        assert client.send(get()).reply()[0] == 200
    assert caplog.text.count("Too many open files") == 1


def test_one_thread_that_cannot_start_costs_one_connection_at_most(monkeypatch: Any, caplog: Any) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(listener.threading.Thread, "start", start)
            with Client(server) as client:
                assert client.rest() == b""
        for _ in range(2):
            with Client(server) as client:
                assert client.send(get()).reply()[0] == 200
    assert "can't start new thread" in caplog.text


def test_an_idle_connection_gives_its_thread_to_a_new_one(monkeypatch: Any, caplog: Any) -> None:
    real, failures = threading.Thread.start, [RuntimeError("can't start new thread")]

    def start(self: Any) -> None:
        if failures:
            raise failures.pop()
        real(self)

    with serving() as server, Client(server) as idle:
        idle.send(get()).reply()
        until(lambda: bool(server.idle))
        monkeypatch.setattr(listener.threading.Thread, "start", start)
        with Client(server) as client:
            assert client.send(get()).reply()[0] == 200
        assert idle.rest() == b""
    assert not caplog.text


# ---------------------------------------------------------------- the end


def test_running_answers_finish_and_idle_connections_end() -> None:
    started, go = threading.Event(), threading.Event()

    def running(late: bool) -> Iterator[bytes]:
        if not late:
            yield b"one"
        started.set()
        go.wait(LONG)
        yield b"two"

    def answer(request: Request) -> Answer:
        return Answer(200, TEXT, b"" if request.path == "/idle" else running(request.path == "/late"))

    with serving(answer, graceful_timeout=LONG) as server:
        idle, fresh, busy, late = Client(server), Client(server), Client(server), Client(server)
        with idle, fresh, busy, late:
            idle.send(get("/idle")).reply()
            busy.send(get("/busy")).until(b"one\r\n")
            late.send(get("/late"))
            assert started.wait(LONG)
            until(lambda: len(server.threads) == 4 and len(server.idle) == 2)
            server.stop()
            assert idle.rest() == b"" and fresh.rest() == b""
            with pytest.raises(OSError):
                until(lambda: Client(server).sock.close() is not None)
            go.set()
            assert busy.rest() == b"3\r\ntwo\r\n0\r\n\r\n"
            data = late.rest()
            assert b"Connection: close\r\n" in data and data.endswith(b"3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize("first", [True, False])
def test_who_is_not_done_at_the_end_of_the_time_may_say_so(first: bool) -> None:
    """It waits for a server that says nothing; the wait ends as if the client had left, and last words still arrive."""
    said: List[bool] = []
    upstream, ours = socket.socketpair()
    ours.setblocking(False)

    def answer(request: Request) -> Answer:
        def blocks() -> Iterator[bytes]:
            if first:
                yield b"one"
            said.append(request.stopping())
            try:
                wait.readable(ours, None, request.gone)
            except RequestCancelledError:
                said.append(request.stopping())
                yield b"stopped"

        return Answer(200, TEXT, blocks())

    app = App(answer)
    with upstream, ours, serving(app, graceful_timeout=0.1) as server, Client(server) as client:
        client.send(get())
        until(lambda: said == [False])
        server.shutdown()
        assert client.rest().endswith(b"7\r\nstopped\r\n0\r\n\r\n")
        assert said == [False, True] and not server.threads
    assert app.statuses() == [(200, True)]


def test_what_does_not_finish_in_time_is_cut_off(monkeypatch: Any) -> None:
    monkeypatch.setattr(listener, "_LAST_WORDS", 0.1)
    closed = threading.Event()

    def blocks() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
                time.sleep(0.01)
        finally:
            closed.set()

    app = App(lambda request: Answer(200, TEXT, blocks()))
    with serving(app, graceful_timeout=0.1) as server, Client(server) as client:
        client.send(get()).until(b"x")
        server.shutdown()
        assert closed.is_set()
        assert not client.rest().endswith(b"0\r\n\r\n")
        assert not server.threads
    assert app.statuses() == [(200, False)]


def test_a_second_stop_shortens_the_first() -> None:
    go = threading.Event()

    def answer(request: Request) -> Answer:
        go.set()
        return Answer(200, TEXT, request.body.read(100))

    with serving(answer) as server, Client(server) as client:
        client.send(get(lines="Content-Length: 5\r\n", method="POST"))
        assert go.wait(LONG)
        stopper = threading.Thread(target=server.shutdown, args=(1000,))
        stopper.start()
        until(lambda: server.stopping)
        server.shutdown(0)
        stopper.join(LONG)
        assert not stopper.is_alive()


def test_a_thread_that_does_not_end_is_named(monkeypatch: Any, caplog: Any) -> None:
    for limit in ("_LAST_WORDS", "_LAST_JOIN"):
        monkeypatch.setattr(listener, limit, 0.05)
    go, entered = threading.Event(), threading.Event()

    def answer(request: Request) -> Answer:
        entered.set()
        go.wait(LONG)
        return Answer(204)

    with serving(answer) as server, Client(server) as client:
        client.send(get())
        assert entered.wait(LONG)
        server.shutdown(0)
        assert "1 connections did not end" in caplog.text
        go.set()


def test_stopping_before_serving() -> None:
    with Server(App()) as server:
        server.shutdown()
        server.serve_forever()
    server.stop()  # and after it


def test_it_serves_on_a_socket_that_listens_already() -> None:
    sock = listen("127.0.0.1", 0)
    with serving(sock=sock) as server, Client(server) as client:
        assert server.server_address == sock.getsockname()
        assert client.send(get()).reply()[0] == 200


def test_it_serves_ipv6() -> None:
    try:
        sock = listen("::1", 0)
    except OSError:
        pytest.skip("no IPv6 here")
    with serving(sock=sock) as server, Client(server) as client:
        assert client.send(get()).reply()[0] == 200
