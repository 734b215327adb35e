"""Connections kept and dropped, requests and what comes back, over real sockets."""

import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from certificates import needs_openssl
from scripted import Scripted, address_of_nobody, answer, chunk
from vllm_bridge.errors import RequestCancelledError
from vllm_bridge.http1 import pool as pools
from vllm_bridge.http1.connection import Exchange, HungUp, NotConnected, Origin
from vllm_bridge.http1.head import ProtocolError
from vllm_bridge.http1.limits import TimedOut
from vllm_bridge.http1.pool import Pool, Response
from vllm_bridge.http1.tls import client_context

OK = answer(b"fine")
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


def origin_of(server: Scripted, scheme: str = "http") -> Origin:
    return Origin(scheme, "127.0.0.1", server.port)


def exchange(silence: float = 10, connect: float = 5, **more: Any) -> Exchange:
    return Exchange(connect, silence, **more)


def ask(pool: Pool, server: Scripted, body: Any = b"{}", scheme: str = "http", **limits: Any) -> Response:
    return pool.request(origin_of(server, scheme), "POST", HEAD, body, exchange(**limits))


def body_of(response: Response) -> bytes:
    try:
        return b"".join(iter(response.read1, b""))
    finally:
        response.close()


def read(pool: Pool, server: Scripted, **more: Any) -> bytes:
    return body_of(ask(pool, server, **more))


# ---------------------------------------------------------------- kept and dropped

def test_a_connection_is_kept_once_its_response_is_read(pool: Pool) -> None:
    with Scripted(["request", OK, "again"]) as server:
        first = ask(pool, server)
        assert body_of(first) == b"fine" and first.ended and first.closed
        assert body_of(ask(pool, server)) == b"fine"
        assert server.connections == 1
        first.close()  # is another's by now
        assert read(pool, server) == b"fine"
        unread = ask(pool, server)
        assert read(pool, server) == b"fine"  # over a second one, as long as the first is being read
        assert server.connections == 2
        unread.close()


@pytest.mark.parametrize("reply", [
    answer(b"fine", extra="Connection: close\r\n"), OK.replace(b"HTTP/1.1", b"HTTP/1.0"), OK + b"more", OK + OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"fine") + b"0\r\n\r\nmore",
])
def test_a_connection_that_is_not_to_be_trusted_is_closed(pool: Pool, reply: bytes) -> None:
    with Scripted(["request", reply, "hold"]) as server:
        assert read(pool, server) == read(pool, server) == b"fine"
        server.until("eof", 2)
        assert server.connections == 2


@pytest.mark.parametrize("then", [b"unasked", "half", "rst"])
def test_an_idle_connection_that_ended_or_speaks_is_not_used(pool: Pool, then: Any) -> None:
    with Scripted(["request", OK, then, "hold"], ["request", OK, "hold"]) as server:
        assert read(pool, server) == b"fine"
        if then != "rst":  # which is no step that ends
            server.until("send" if isinstance(then, bytes) else then, 2 if isinstance(then, bytes) else 1)
        time.sleep(0.05)
        assert read(pool, server) == b"fine"
        assert server.connections == 2


def test_all_idle_connections_are_looked_at_now_and_then(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """None stays in CLOSE_WAIT, though only the last used one is taken."""
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    with Scripted(["request", OK, "again"]) as server:
        for response in [ask(pool, server) for _ in range(5)]:
            body_of(response)
        ahead[0] += 3
        assert read(pool, server) == b"fine"
        assert server.connections == 5
        ahead[0] += 1.5
        assert read(pool, server) == b"fine"  # by the one that was used since
        server.until("eof", 4)
        assert server.connections == 5


def test_one_who_calls_tidy_closes_what_has_ended(pool: Pool) -> None:
    with Scripted(["request", OK, "half", "hold"]) as server:
        assert read(pool, server) == b"fine"
        server.until("half")
        pool.tidy()
        server.until("eof")


def test_no_more_are_kept_than_allowed() -> None:
    pool = Pool(kept=2)
    with Scripted(["request", OK, "again"]) as server:
        for response in [ask(pool, server) for _ in range(3)]:
            body_of(response)
        server.until("eof", 1)
        pool.close()
        server.until("eof", 3)
        assert read(pool, server) == b"fine"  # a closed pool goes on
        pool.close()


def test_threads_share_a_pool(pool: Pool) -> None:
    with Scripted(["request", OK, "again"]) as server:
        found = []

        def work() -> None:
            for _ in range(30):
                found.append(read(pool, server))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [b"fine"] * 240
        assert server.connections <= 8


def test_a_forked_child_only_closes_its_own_descriptors(pool: Pool) -> None:
    with Scripted(["request", OK, "again"], ["request", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi", "wait_go"]
                  ) as server:
        server._do_wait_go = lambda state: (go.wait(10), state["sock"].sendall(b"gh"))  # type: ignore[attr-defined]
        go = threading.Event()
        body_of(ask(pool, server))
        idle = pool.take(origin_of(server))
        assert idle is not None
        under_way = ask(pool, server)
        pool.give_back(idle)
        child = os.fork()
        if child == 0:
            try:
                with pytest.raises(HungUp, match="process"):
                    under_way.read1()
                    under_way.read1()
                under_way._exchange.cancel("in the child")
                under_way.close()
                pool.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        go.set()
        assert body_of(under_way) == b"high"
        assert read(pool, server) == b"fine"
        assert server.connections == 2


# ---------------------------------------------------------------- sent again, or not

def test_an_end_at_once_on_a_kept_connection_is_no_answer_of_the_server(pool: Pool, monkeypatch: Any) -> None:
    monkeypatch.setattr(pools, "_SOON", 5.0)  # machines are busy at times
    for end in ([], [("rst", 0.0)]):
        with Scripted(["request", OK, "wait"] + end, ["request", OK, "hold"]) as server:
            assert read(pool, server) == read(pool, server) == b"fine"
            assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize("end", [[], ["rst"]])
def test_an_end_after_work_is_not_asked_again(pool: Pool, end: Any) -> None:
    with Scripted(["request", OK, "request", ("sleep", 0.3)] + end, ["request", OK, "hold"]) as server:
        assert read(pool, server) == b"fine"
        with pytest.raises(HungUp):
            ask(pool, server)
        assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize("reply", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_end_within_a_response_is_not_asked_again(pool: Pool, reply: bytes) -> None:
    with Scripted(["request", OK, "request", reply], ["request", OK, "hold"]) as server:
        assert read(pool, server) == b"fine"
        with pytest.raises(HungUp):
            ask(pool, server)
        assert len(server.requests) == 2


def test_a_first_connection_that_ends_is_not_asked_again(pool: Pool) -> None:
    with Scripted(["wait"]) as server:
        with pytest.raises(HungUp):
            ask(pool, server)
        assert server.connections == 1


def test_an_answer_that_came_before_the_body_was_sent_is_read(pool: Pool) -> None:
    early = answer(b"too long", "413 Content Too Large")
    with Scripted(["head", early, ("sleep", 0.1)]) as server:
        response = ask(pool, server, body=bytes(30000000))
        assert response.status == 413
        response.close()


# ---------------------------------------------------------------- connecting

def test_every_address_is_tried(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(["request", OK, "hold"]) as server:
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [stream + (address_of_nobody(),), stream + (("127.0.0.1", server.port),)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        assert body_of(pool.request(Origin("http", "both.example", 80), "POST", HEAD, b"{}", exchange())) == b"fine"
        found.pop()
        with pytest.raises(NotConnected, match="refused") as caught:
            pool.request(Origin("http", "gone.example", 80), "POST", HEAD, b"{}", exchange())
        assert caught.value.kind == "refused"
        found.pop()
        with pytest.raises(NotConnected, match="no address"):
            pool.request(Origin("http", "none.example", 80), "POST", HEAD, b"{}", exchange())


def test_the_limit_holds_for_all_addresses_together(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(accept=False) as silent, Scripted(["request", OK, "hold"]) as server:
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [stream + (("127.0.0.1", silent.port),)] * 3
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        started = time.monotonic()
        with pytest.raises(TimedOut) as caught:
            pool.request(Origin("http", "silent.example", 80), "POST", HEAD, b"{}", exchange(connect=0.3))
        assert caught.value.which == "connect" and 0.3 <= time.monotonic() - started < 5
        found.append(stream + (("127.0.0.1", server.port),))
        mixed = Origin("http", "mixed.example", 80)
        assert body_of(pool.request(mixed, "POST", HEAD, b"{}", exchange(connect=0.8))) == b"fine"
        found.pop()
        with pytest.raises(TimedOut) as caught:
            over = exchange(connect=5, deadline=time.monotonic() + 0.1)
            pool.request(Origin("http", "late.example", 80), "POST", HEAD, b"{}", over)
        assert caught.value.which == "deadline"


@pytest.mark.parametrize("host", ["x" * 300 + ".example", "a..b"])
def test_a_host_that_is_none(pool: Pool, host: str) -> None:
    with pytest.raises(NotConnected) as caught:
        pool.request(Origin("http", host, 80), "POST", HEAD, b"{}", exchange())
    assert caught.value.kind == "address"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_lack_of_descriptors_is_this_machines_own(pool: Pool, host: str) -> None:
    import gc
    import resource

    gc.collect()
    socket.getaddrinfo("localhost", 80)  # what has to be imported is
    with Scripted(accept=False) as server:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
        try:
            while True:
                try:
                    taken.append(os.dup(0))
                except OSError:
                    break
            with pytest.raises(NotConnected) as caught:
                pool.request(Origin("http", host, server.port), "POST", HEAD, b"{}", exchange())
            assert caught.value.kind == "lacking"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in taken:
                os.close(number)


# ---------------------------------------------------------------- broken off

def test_who_cancels_wakes_whoever_waits(pool: Pool) -> None:
    with Scripted(["request", "hold"]) as server, Scripted(accept=False) as silent:
        for target in (server, silent):
            under_way = exchange(silence=60, connect=60)
            threading.Timer(0.1, under_way.cancel, ["enough"]).start()
            with pytest.raises((HungUp, NotConnected)):
                pool.request(origin_of(target), "POST", HEAD, b"{}", under_way)
            assert under_way.cancelled == "enough"
        server.until("eof")


def test_an_exchange_that_was_cancelled_gets_no_connection(pool: Pool) -> None:
    with Scripted(["request", OK, "again"]) as server:
        assert read(pool, server) == b"fine"
        late = exchange()
        late.cancel("before")
        with pytest.raises(HungUp, match="before"):
            pool.request(origin_of(server), "POST", HEAD, b"{}", late)
        assert len(server.requests) == 1


def test_one_who_cancels_late_has_no_hold_on_the_connection(pool: Pool) -> None:
    with Scripted(["request", OK, "again"]) as server:
        over = exchange()
        assert body_of(pool.request(origin_of(server), "POST", HEAD, b"{}", over)) == b"fine"
        over.cancel("late")
        assert read(pool, server) == b"fine"
        assert server.connections == 1


def test_a_client_that_leaves_ends_the_wait(pool: Pool) -> None:
    ours, its = socket.socketpair()
    with ours, its, Scripted(["request", "hold"]) as server:
        threading.Timer(0.1, its.close).start()
        with pytest.raises(RequestCancelledError):
            pool.request(origin_of(server), "POST", HEAD, b"{}", exchange(silence=60, client=ours))
        server.until("eof")


def test_a_silence_may_be_waited_out(pool: Pool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    with Scripted(["request", head, ("sleep", 0.3), b"fine", "hold"]) as server:
        response = ask(pool, server, silence=0.1)
        with pytest.raises(TimedOut) as caught:
            response.read1()
        assert caught.value.which == "silence"
        response._exchange.silence = 10
        assert body_of(response) == b"fine"


def test_a_deadline_holds_while_bytes_keep_coming(pool: Pool) -> None:
    flood = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ("repeat", chunk(b"x"))]
    with Scripted(["request"] + flood) as server:
        response = ask(pool, server, deadline=time.monotonic() + 0.2)
        with pytest.raises(TimedOut) as caught:
            body_of(response)
        assert caught.value.which == "deadline"
        response.close()


# ---------------------------------------------------------------- responses

def test_interim_responses_come_before_the_response(pool: Pool) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    with Scripted(["request", interim + OK, "again"]) as server:
        assert read(pool, server) == read(pool, server) == b"fine"
        assert server.connections == 1


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfine",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 4\n\nfine", b"HTTP/2 200\r\n\r\n", b"hello\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
])
def test_a_head_that_is_not_sure_is_refused(pool: Pool, reply: bytes) -> None:
    with Scripted(["request", reply, "hold"]) as server:
        with pytest.raises(ProtocolError):
            ask(pool, server)
        server.until("eof")


def test_what_came_before_a_fault_is_handed_out(pool: Pool) -> None:
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"fine") + b"oops\r\n"
    with Scripted(["request", reply, "hold"]) as server:
        response = ask(pool, server)
        assert response.read1() == b"fine"
        for _ in range(2):
            with pytest.raises(ProtocolError):
                response.read1()
        response.close()
        server.until("eof")


def test_a_body_that_ends_with_the_connection(pool: Pool) -> None:
    with Scripted(["request", b"HTTP/1.1 200 OK\r\n\r\nfi", ("sleep", 0.05), b"ne"]) as server:
        assert read(pool, server) == b"fine"


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfine",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"fine"),
])
def test_a_body_that_is_cut_off(pool: Pool, reply: bytes) -> None:
    with Scripted(["request", reply]) as server:
        response = ask(pool, server)
        with pytest.raises(HungUp, match="ended"):
            body_of(response)
        response.close()


def test_what_requests_reads_of_it(pool: Pool) -> None:
    with Scripted(["request", OK, "again"]) as server:
        assert ask(pool, server).read() == b"fine"
        assert ask(pool, server).read(100, decode_content=True) == b"fine"
        assert list(ask(pool, server).stream(100)) == [b"fine"]
        response = ask(pool, server)
        assert (response.status, response.reason, response.version) == (200, "OK", 11)
        response.release_conn()  # nobody has read it
        server.until("eof")


# ---------------------------------------------------------------- TLS

@needs_openssl
def test_tls_is_checked_by_our_own_authority(authority: Any) -> None:
    path, context = authority
    long = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300000
    script = [("tls", context), "request", OK, "request", long, "hold"]
    with Scripted(script) as server:
        trusting = Pool(authorities=path)
        assert read(trusting, server, scheme="https") == b"fine"
        assert read(trusting, server, scheme="https", body=b"y" * 2000000) == b"x" * 300000
        assert server.connections == 1
        trusting.close()
        distrusting = Pool(authorities=True)
        with pytest.raises(NotConnected, match="certificate verify failed") as caught:
            ask(distrusting, server, scheme="https")
        assert caught.value.kind == "tls"
        careless = Pool(authorities=False)
        assert read(careless, server, scheme="https") == b"fine"
        careless.close()


@needs_openssl
def test_a_name_that_the_certificate_does_not_have(authority: Any) -> None:
    path, context = authority
    with Scripted([("tls", context), "request", OK, "hold"]) as server:
        with pytest.raises(NotConnected, match="localhost"):
            Pool(authorities=path).request(Origin("https", "localhost", server.port), "POST", HEAD, b"{}", exchange())


@needs_openssl
def test_a_client_shows_its_certificate(authority: Any, tmp_path: Any) -> None:
    path, context = authority
    folder = os.path.dirname(path)
    cert = os.path.join(folder, "server.pem"), os.path.join(folder, "server.key")
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(Path(name).read_bytes() for name in cert))
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_cert_chain(*cert)
    asking.load_verify_locations(path)
    asking.verify_mode = ssl.CERT_REQUIRED
    with Scripted([("tls", asking), "request", OK, "hold"]) as server:
        for given in (cert, str(both)):
            pool = Pool(authorities=path, cert=given)
            assert read(pool, server, scheme="https") == b"fine"
            pool.close()
        with pytest.raises((NotConnected, HungUp)):
            ask(Pool(authorities=path), server, scheme="https")


def test_certificates_that_are_not_there(tmp_path: Any) -> None:
    with Scripted(["wait"]) as server:
        with pytest.raises(NotConnected) as caught:
            ask(Pool(authorities=str(tmp_path / "none.pem")), server, scheme="https")
        assert caught.value.kind == "tls"
    assert client_context(str(tmp_path)).verify_mode == ssl.CERT_REQUIRED  # a folder of certificates


@needs_openssl
def test_an_end_of_tls_is_an_end(authority: Any) -> None:
    path, context = authority
    for end in (["rst"], []):
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfine"
        with Scripted([("tls", context), "request", cut] + end) as server:
            with pytest.raises(HungUp):
                read(Pool(authorities=path), server, scheme="https")
