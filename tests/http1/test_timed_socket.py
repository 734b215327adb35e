"""Sockets with a limit for each direction, kept by the kernel and by Python."""

import socket
import sys
import threading
import time

import pytest

from vllm_bridge.http1.timed_socket import TIMED_OUT, KernelTimedSocket, TimedSocket, timed

KINDS = [TimedSocket, pytest.param(
    KernelTimedSocket, marks=pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps no limits")
)]


@pytest.fixture(params=KINDS)
def pair(request):
    left, right = socket.socketpair()
    sock = request.param(left.family, left.type, left.proto, fileno=left.detach())
    with sock, right:
        yield sock, right


def test_a_socket_takes_the_place_of_another():
    left, right = socket.socketpair()
    number = left.fileno()
    with right, timed(left) as sock:
        assert (sock.fileno(), left.fileno()) == (number, -1)
        right.send(b"hello")
        assert sock.recv(10) == b"hello"


def test_receiving_ends_at_its_limit(pair):
    sock, _ = pair
    sock.limit_receiving(0.05)
    before = time.monotonic()
    with pytest.raises(TIMED_OUT):
        sock.recv(10)
    assert 0.04 <= time.monotonic() - before < 10


def test_sending_ends_at_its_limit(pair):
    sock, right = pair
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sock.limit_sending(0.05)
    with pytest.raises(TIMED_OUT):
        for _ in range(10000):
            sock.send(b"x" * 65536)


def test_the_limit_of_one_direction_is_not_that_of_the_other(pair):
    sock, right = pair
    sock.limit_receiving(0.01)
    sock.limit_sending(5.0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got = []

    def read():
        time.sleep(0.1)  # longer than the limit for receiving
        while sum(map(len, got)) < 500000:
            got.append(right.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    sock.sendall(b"x" * 500000)
    reader.join()
    sock.limit_receiving(0.01)
    with pytest.raises(TIMED_OUT):
        sock.recv(1)


def test_without_a_limit_a_read_waits(pair):
    sock, right = pair
    sock.limit_receiving(0.01)
    sock.limit_receiving(None)
    timer = threading.Timer(0.1, right.send, [b"late"])
    timer.start()
    assert sock.recv(10) == b"late"
    timer.join()


def test_a_limit_of_zero_is_over_at_once(pair):
    sock, _ = pair
    sock.limit_receiving(0.0)
    before = time.monotonic()
    with pytest.raises(TIMED_OUT):
        sock.recv(1)
    assert time.monotonic() - before < 5


def test_settimeout_sets_both(pair):
    sock, _ = pair
    sock.settimeout(7.5)
    assert sock.gettimeout() == 7.5
    sock.settimeout(None)
    assert sock.gettimeout() is None
    sock.settimeout(1e8)
    sock.settimeout(0.02)
    with pytest.raises(TIMED_OUT):
        sock.recv(1)


def test_shutting_it_down_wakes_a_reader(pair):
    sock, _ = pair
    sock.limit_receiving(30)
    timer = threading.Timer(0.05, sock.shutdown, [socket.SHUT_RDWR])
    timer.start()
    assert sock.recv(10) == b""
    timer.join()
