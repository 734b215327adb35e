"""Streams lent to the pump, at real sockets: what it passes on, and when it gives them back."""

import http.client
import json
import select
import socket
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional

import pytest

from faces import LONG, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, chunk, delta, event
from vllm_bridge.http1.chunked import ChunkedDecoder
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway
from vllm_bridge.server import pump as pump_module
from vllm_bridge.server.channel import Channel
from vllm_bridge.server.pump import Pump
from vllm_bridge.gateway.settings import Settings
from vllm_bridge.http1.timed_socket import timed

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


class Source:
    """A stream whose events are lines: ``look`` is one that needs a look, and so is the end."""

    def __init__(self) -> None:
        self.sock, self.server = socket.socketpair()
        self.held = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    def arrived(self) -> Optional[bytes]:
        if self.held:
            return None
        try:
            block = self.sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""
        if b"look" in block or not block:
            self.held = block or b"end"
            return None
        return block


class Lent:
    """A stream between a server and a client, carried by a thread of its own."""

    def __init__(self, pump: Pump) -> None:
        self.source = Source()
        left, self.client = socket.socketpair()
        self.client.settimeout(LONG)
        self.channel = Channel(timed(left), LONG)
        self.error: Optional[BaseException] = None
        self.pump = pump
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.pump.carry(self.source, self.channel)  # type: ignore[arg-type]
        except OSError as error:
            self.error = error

    def parked(self) -> "Lent":
        until(lambda: self.source.fileno() in self.pump._lent)
        return self

    def receive(self, size: int) -> bytes:
        self.client.settimeout(LONG)
        data = b""
        while len(data) < size:
            data += self.client.recv(65536)
        return data

    def close(self) -> None:
        for sock in (self.source.sock, self.source.server, self.channel.sock, self.client):
            sock.close()
        self.thread.join(LONG)
        assert not self.thread.is_alive()


@pytest.fixture
def lend() -> Iterator[Callable[[], Lent]]:
    pump = Pump()
    made: List[Lent] = []

    def make() -> Lent:
        made.append(Lent(pump))
        return made[-1]

    yield make
    pump.close()
    for lent in made:
        lent.close()
    assert not any(thread.name == "vllm-bridge-pump" for thread in threading.enumerate())


def test_what_comes_is_passed_on_as_chunks_until_something_needs_a_look(lend: Any) -> None:
    lent = lend().parked()
    lent.source.server.send(b"one")
    assert lent.receive(8) == b"3\r\none\r\n"
    lent.source.server.send(b"a longer one")
    assert lent.receive(17) == b"c\r\na longer one\r\n"
    assert lent.thread.is_alive()
    lent.source.server.send(b"look at this")
    lent.thread.join(LONG)
    assert (lent.source.held, lent.error, lent.pump._lent) == (b"look at this", None, {})


def test_many_streams_do_not_wait_for_each_other(lend: Any) -> None:
    all_of_them = [lend().parked() for _ in range(20)]
    for round_number in range(3):
        for number, lent in reversed(list(enumerate(all_of_them))):
            lent.source.server.send(b"%02d" % number)
        for number, lent in enumerate(all_of_them):
            assert lent.receive(7) == b"2\r\n%02d\r\n" % number
    for lent in all_of_them:
        lent.source.server.close()
    until(lambda: not any(lent.thread.is_alive() for lent in all_of_them))


def test_what_is_there_before_is_not_waited_for(lend: Any) -> None:
    pump = Pump()
    lent = Lent.__new__(Lent)
    lent.source, lent.pump, lent.error = Source(), pump, None
    left, lent.client = socket.socketpair()
    lent.channel = Channel(timed(left), LONG)
    lent.source.server.send(b"one")
    lent.thread = threading.Thread(target=lent._run)
    lent.thread.start()
    assert lent.receive(8) == b"3\r\none\r\n"
    lent.source.server.send(b"look")
    lent.thread.join(LONG)
    pump.close()
    lent.close()


def test_a_silent_stream_goes_back_to_the_thread_that_knows_its_limits(
    lend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "_TICK", 0.02)
    monkeypatch.setattr(pump_module, "_SILENCE", 0.1)
    lent = lend()
    lent.thread.join(LONG)
    assert not lent.thread.is_alive() and lent.pump._lent == {}


def test_a_client_that_takes_nothing_gets_the_rest_from_its_own_thread(lend: Any) -> None:
    lent = lend().parked()
    lent.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    lent.source.server.settimeout(LONG)
    sent = 0
    while lent.source.fileno() in lent.pump._lent:
        lent.source.server.send(b"x" * 60000)
        sent += 1
        time.sleep(0.01)
    assert lent.thread.is_alive()  # it waits for the client
    lent.client.settimeout(0.1)
    data, waited = b"", 0
    while waited < 100:
        try:
            data += lent.client.recv(1 << 20)
        except socket.timeout:
            if not lent.thread.is_alive():
                break
            waited += 1
    assert not lent.thread.is_alive() and lent.error is None
    assert set(data) <= set(b"0123456789abcdef\r\nx") and data.startswith(b"ea60\r\nxxx") and data.endswith(b"x\r\n")


def test_a_client_that_has_gone_is_met_by_the_thread(lend: Any) -> None:
    lent = lend().parked()
    lent.client.close()
    lent.source.server.send(b"one")
    lent.thread.join(LONG)
    assert isinstance(lent.error, OSError) and lent.channel.lost


def test_a_stream_that_breaks_goes_back(lend: Any) -> None:
    lent = lend().parked()
    lent.source.arrived = lambda: 1 / 0  # type: ignore[assignment,return-value]
    lent.source.server.send(b"one")
    lent.thread.join(LONG)
    assert lent.error is None and not lent.thread.is_alive()


def test_what_cannot_be_asked_is_not_carried() -> None:
    class Other:
        def fileno(self) -> int:
            return -1

    pump = Pump()
    pump.carry(Other(), None)  # type: ignore[arg-type]
    assert pump._thread is None
    pump.close()


def test_a_system_without_another_thread_leaves_the_stream_with_its_own(
    lend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    pump, source = Pump(), Source()
    left, right = socket.socketpair()
    with timed(left) as sock, right, source.sock, source.server:
        with monkeypatch.context() as patched:
            patched.setattr(threading, "Thread", NoThread)
            pump.carry(source, Channel(sock, LONG))  # type: ignore[arg-type]
        assert pump._thread is None and pump._lent == {}
    pump.close()


def test_a_descriptor_that_cannot_be_watched_stays_with_its_thread(tmp_path: Any) -> None:
    class File(Source):
        def fileno(self) -> int:
            return file.fileno()  # epoll takes no files

    pump = Pump()
    left, right = socket.socketpair()
    source = File()
    with open(str(tmp_path / "file"), "wb") as file, timed(left) as sock, right, source.sock, source.server:
        pump.carry(source, Channel(sock, LONG))  # type: ignore[arg-type]
        assert pump._lent == {}
    pump.close()


def test_closing_gives_everything_back(lend: Any) -> None:
    lent = lend().parked()
    lent.pump.close()
    lent.thread.join(LONG)
    assert not lent.thread.is_alive()
    lent.pump.carry(lent.source, lent.channel)  # returns at once


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_again(
    lend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "_TICK", 0.02)
    monkeypatch.setattr(pump_module, "_IDLE", 0.05)
    for _ in range(2):
        lent = lend().parked()
        lent.source.server.send(b"look")
        until(lambda: not any(thread.name == "vllm-bridge-pump" for thread in threading.enumerate()))


# ---------------------------------------------------------------- within the gateway


TEXTS = ["text %d" % number for number in range(12)]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
END = event(delta("", "stop")) + event("[DONE]") + LAST_CHUNK


def spaced(*events: bytes) -> List[Any]:
    """Return steps that send events one by one, far enough apart that each arrives alone."""
    return [step for each in events for step in (each, ("sleep", 0.03))]


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> List[bytes]:
    """What the pump has sent itself."""
    seen: List[bytes] = []
    send_now = Channel.send_now

    def note(self: Channel, data: bytes) -> bytes:
        seen.append(data)
        return send_now(self, data)

    monkeypatch.setattr(Channel, "send_now", note)
    return seen


@contextmanager
def through(server: Scripted, **network: Any) -> Iterator[Any]:
    provider = {"keys": [{"url": server.url}], "network_config": dict({"max_retries": 0}, **network)}
    with own(Gateway(Settings(ProviderConfig.from_dict(provider, environ={})))) as address:
        connection = http.client.HTTPConnection(*address, timeout=LONG)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), {"Content-Type": "application/json"})
            yield connection
        finally:
            connection.close()


def frames(*events: bytes) -> bytes:
    decoder = ChunkedDecoder()
    return b"".join(map(decoder.feed, events))


def test_a_stream_comes_out_as_it_went_in(passed_on: List[bytes]) -> None:
    events = [event(delta(text)) for text in TEXTS]
    with Scripted(["request", SSE_HEAD, *spaced(*events, END), "hold"]) as server, through(server) as connection:
        body = connection.getresponse().read()
    assert body == frames(*events, END[:-5])
    assert 1 <= len(passed_on) < len(TEXTS) and set(passed_on) <= set(events)


def test_what_needs_a_look_gets_it_in_between(passed_on: List[bytes]) -> None:
    plain = [event(delta(text)) for text in TEXTS]
    halves = plain[6][:40], plain[6][40:]
    reasoning = {**delta(""), "choices": [{"index": 0, "delta": {"reasoning": "r"}, "finish_reason": None}]}
    steps = spaced(*plain[:6], *halves, *plain[7:10], event(reasoning), chunk(b": comment\n\n"), *plain[10:], END)
    with Scripted(["request", SSE_HEAD, *steps, "hold"]) as server, through(server) as connection:
        body = connection.getresponse().read()
    texts = [json.loads(each[6:])["choices"][0]["delta"] for each in body.split(b"\n\n")[:-2]]
    assert [each.get("content") for each in texts] == TEXTS[:10] + [None] + TEXTS[10:] + [""]
    assert texts[10] == {"reasoning": "r", "reasoning_content": "r"}
    assert len(passed_on) >= 3


def test_a_silence_is_as_long_as_it_may_be_and_no_longer(
    passed_on: List[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "_TICK", 0.05)
    monkeypatch.setattr(pump_module, "_SILENCE", 0.3)
    events = [event(delta(text)) for text in TEXTS]
    with Scripted(["request", SSE_HEAD, *spaced(*events), "hold"]) as server:
        with through(server, stream_idle_timeout_in_seconds=0.6) as connection:
            before = time.monotonic()
            last = connection.getresponse().read().split(b"\n\n")[-2]
            seconds = time.monotonic() - before
    assert "no event came for 0.6 s" in json.loads(last[6:])["error"]["message"]
    assert 0.6 + 0.03 * (len(TEXTS) - 1) <= seconds < LONG
    assert passed_on


@pytest.mark.parametrize("cut", ["close", "rst"])
def test_a_server_that_stops_in_the_middle_is_told_of(passed_on: List[bytes], cut: str) -> None:
    steps = spaced(*[event(delta(text)) for text in TEXTS])
    with Scripted(["request", SSE_HEAD, *steps, *(["rst"] if cut == "rst" else [])]) as server:
        with through(server) as connection:
            body = connection.getresponse().read()
    assert json.loads(body.split(b"\n\n")[-2][6:])["error"]["type"] == "provider_connection_failed"
    assert body.count(b'"content":"text') == len(TEXTS) and passed_on


def test_a_client_that_leaves_ends_the_generation(passed_on: List[bytes]) -> None:
    steps = spaced(*[event(delta(text)) for text in TEXTS])
    with Scripted(["request", SSE_HEAD, *steps, "hold"]) as server, through(server) as connection:
        response = connection.getresponse()
        until(lambda: passed_on)
        connection.sock.close() if connection.sock is not None else None
        response.close()
        until(lambda: server.ends)
    assert set(server.ends) <= {"eof", "reset"}
