"""The adapter over urllib3's pools: idle connections, and the exchange that can be broken off."""

import socket
import threading
import time

import pytest
import requests

from scripted import Scripted, answer
from vllm_bridge.client.adapter import Exchange, PoolAdapter, current, shut

OK = ["request", answer(b"{}"), "again"]


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", PoolAdapter(idle_limit=4.0))
        yield session


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_connection_is_used_again_until_it_was_idle_for_too_long(session, monkeypatch):
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    with Scripted(OK) as server:
        session.get(server.url)
        session.get(server.url)
        assert server.connections == 1
        ahead[0] += 4.1
        session.get(server.url)
        assert server.connections == 2


def test_an_exchange_learns_how_far_its_request_came(session):
    with Scripted(OK) as server:
        first, second = Exchange(5), Exchange(5)
        current.exchange = first
        session.get(server.url)
        current.exchange = second
        session.get(server.url)
        current.exchange = None
    assert first.started and first.connected and not first.reused
    assert second.started and second.connected and second.reused
    assert second.sent_at > first.sent_at > 0


def test_a_fresh_exchange_takes_no_idle_connection(session):
    with Scripted(OK) as server:
        session.get(server.url)
        current.exchange = Exchange()
        current.exchange.fresh = True
        try:
            session.get(server.url)
        finally:
            current.exchange = None
        assert server.connections == 2


def test_a_finished_exchange_has_no_hold_on_the_connection(session):
    with Scripted(OK) as server:
        exchange = current.exchange = Exchange()
        session.get(server.url)
        current.exchange = None
        exchange.cancel("too late")
        session.get(server.url)
        assert server.connections == 1


def test_cancelling_wakes_a_thread_that_waits_for_the_reply(session):
    with Scripted(["request", "hold"]) as server:
        exchange = Exchange()
        caught = []

        def work():
            current.exchange = exchange
            try:
                session.get(server.url)
            except requests.RequestException as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        server.until("request")
        exchange.cancel("enough")
        exchange.cancel("again")
        thread.join(10)
        assert caught and exchange.cancelled == "enough"
        server.until("eof")


def test_an_exchange_cancelled_before_it_has_a_connection_stops_when_it_gets_one(session):
    with Scripted(OK) as server:
        current.exchange = Exchange()
        current.exchange.cancel("enough")
        try:
            with pytest.raises(requests.ConnectionError):
                session.get(server.url)
        finally:
            current.exchange = None
        assert server.requests == []


def test_attaching_sets_the_patience_and_detaching_forgets_the_socket(pair):
    ours, theirs = pair
    exchange = Exchange(7.0)
    exchange.attach(object(), ours)
    assert ours.gettimeout() == 7.0
    exchange.set_timeout(0.5)
    assert ours.gettimeout() == 0.5
    exchange.detach()
    exchange.set_timeout(9.0)
    exchange.cancel("late")
    assert ours.gettimeout() == 0.5
    theirs.send(b"still open")
    assert ours.recv(100) == b"still open"


def test_a_connection_without_a_socket_yet_is_asked_for_it_when_cancelled(pair):
    ours, theirs = pair

    class Connection:
        sock = ours

    exchange = Exchange()
    exchange.attach(Connection())
    exchange.cancel("enough")
    assert theirs.recv(1) == b""


def test_setting_a_limit_on_a_socket_closed_by_another_thread_is_no_error(pair):
    ours, theirs = pair
    exchange = Exchange()
    exchange.attach(object(), ours)
    ours.close()
    exchange.set_timeout(1.0)
    exchange.cancel("also no error")


def test_what_only_looks_like_a_socket_is_shut_down_its_own_way():
    class Wrapped:
        how = None

        def shutdown(self, how):
            self.how = how

    sock = Wrapped()
    shut(sock)
    assert sock.how == socket.SHUT_RDWR


def test_connections_are_closed_even_if_a_reply_is_kept(session):
    with Scripted(OK) as server:
        kept = session.get(server.url, stream=True)
        kept.content
        session.get_adapter(server.url).close()
        server.until("eof")


def test_connections_to_a_proxy_are_closed_too(session):
    with Scripted(OK) as proxy:
        session.get("http://gpu.example/", proxies={"http": proxy.url})
        session.get("http://gpu.example/", proxies={"http": proxy.url})
        assert proxy.connections == 1
        session.get_adapter("http://gpu.example/").close()
        proxy.until("eof")
