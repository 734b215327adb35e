"""What others raise while a call is under way passes as it is, and limits hold while signals keep arriving."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from scripted import SSE_HEAD, Scripted, answer, completion, delta, event
from vllm_bridge import (
    APITimeoutError,
    Cancellation,
    NetworkConfig,
    ProviderConfig,
    RequestCancelledError,
    VLLMProvider,
)

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ROOT = Path(__file__).resolve().parents[2]


class SoftTimeLimitExceeded(TimeoutError):
    """A task queue's own limit, as of a kind with the network's as can be."""


class Bare(BaseException):
    """No Exception at all, like gevent's Timeout."""


RAISED = [
    SoftTimeLimitExceeded("task"), TimeoutError("task"), ConnectionResetError(104, "task"), BlockingIOError(11, "task"),
    OSError(5, "task"), ValueError("task"), requests.exceptions.ReadTimeout("task"), Bare(),
]
# http.client and urllib3 swallow these on their way, or leave a socket behind.
NOT_BY_REQUESTS = {
    (ConnectionResetError, "sending"), (BlockingIOError, "waiting for the head"), (BlockingIOError, "within the head"),
    (ValueError, "connecting"), (Bare, "connecting"),
}


@contextlib.contextmanager
def ringing(handler, first, interval=0.0):
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ring_at(server, step):
    """Ring once the server has come to a step of its script, and the client has seen what it sent."""
    server.until("send" if isinstance(step, bytes) else "request" if step == "hold" else step)
    time.sleep(0.05)
    signal.setitimer(signal.ITIMER_REAL, 0.001)


HOLD = ["request", "hold"]
STATES = {
    "connecting": (None, lambda vllm: vllm.chat_completion(**ASK)),
    "sending": (["head", "wait_stop"], lambda vllm: vllm.chat_completion(model="m", messages="x" * 20000000)),
    "waiting for the head": (HOLD, lambda vllm: vllm.chat_completion(**ASK)),
    "within the head": (["request", b"HTTP/1.1 200 OK\r\nA: b", "hold"], lambda vllm: vllm.chat_completion(**ASK)),
    "reading": (["request", answer(completion())[:-20], "hold"], lambda vllm: vllm.chat_completion(**ASK)),
    "reading an error": (["request", answer(b"slow down", "503 Busy")[:-3], "hold"],
                         lambda vllm: vllm.chat_completion(**ASK)),
    "between two events": (["request", SSE_HEAD, event(delta("x")), "hold"],
                           lambda vllm: list(vllm.chat_completion_stream(**ASK))),
    "between two events of responses": (["request", SSE_HEAD, event(delta("x")), "hold"],
                                        lambda vllm: list(vllm.responses_stream(model="m", input="x"))),
    "waiting to try again": (["request", answer(b"", "503 Busy"), "again"], lambda vllm: vllm.chat_completion(**ASK)),
}


@pytest.mark.parametrize("state, raised, way", [
    (state, raised, way) for state in STATES for raised in RAISED for way in ("own session", "a caller's session")
    if way == "own session" or (type(raised), state) not in NOT_BY_REQUESTS
    and not isinstance(raised, requests.RequestException)  # requests' own kind, where requests is at work
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_what_a_signals_handler_raises_reaches_the_caller(state, raised, way):
    script, call = STATES[state]
    raised = type(raised)(*raised.args)

    def handler(signum, frame):
        raise raised

    with Scripted(*([] if script is None else [script]), accept=script is not None) as server:
        server._do_wait_stop = lambda state: server.stopping.wait(10)
        network = NetworkConfig(server.url, max_retries=3, retry_backoff_initial_ms=5000)
        with requests.Session() as session, VLLMProvider(config=ProviderConfig(network)) as vllm:
            provider = vllm if way == "own session" else vllm.with_options(session=session)
            with ringing(handler, 0 if script else 0.1), pytest.raises(type(raised)) as caught:
                if script:
                    ring = threading.Thread(target=ring_at, args=(server, script[1 if script[-1] == "hold" else 0]))
                    ring.start()
                call(provider.with_options(timeout=(20, 20)))
            if script:
                ring.join()
            assert caught.value is raised
        asked = server.connections
        if script and "hold" in script:
            server.until("eof")  # the connection is closed at once: the server stops generating
        assert asked <= 1, "nothing is sent again after it"


@pytest.mark.parametrize("call", [
    lambda vllm: vllm.chat_completion(**ASK), lambda vllm: list(vllm.chat_completion_stream(**ASK)),
])
@pytest.mark.parametrize("limits", [{"timeout": (1, 0.4)}, {"deadline": 0.4}], ids=["timeout", "deadline"])
@pytest.mark.parametrize("script", [HOLD, ["request", SSE_HEAD, event(delta("x")), "hold"]], ids=["head", "events"])
def test_limits_hold_while_a_profiler_interrupts(call, limits, script):
    ticks = []
    with Scripted(script) as server, VLLMProvider(server.url, max_retries=0) as vllm:
        with ringing(lambda *_: ticks.append(1), 0.03, 0.03):
            start = time.monotonic()
            with pytest.raises(APITimeoutError):
                call(vllm.with_options(**limits))
            assert 0.35 <= time.monotonic() - start < 5
    assert len(ticks) > 3


def test_a_deadline_has_no_thread_of_its_own():
    with Scripted(HOLD) as server, VLLMProvider(server.url) as vllm:
        before = threading.active_count()
        seen = []
        with ringing(lambda *_: seen.append(threading.active_count()), 0.1):
            with pytest.raises(APITimeoutError):
                vllm.with_options(deadline=0.3).chat_completion(**ASK)
        assert seen == [before + 1], "the server's, for the connection"


def test_a_handler_may_cancel_the_call_that_it_interrupts():
    for script, call in (STATES["waiting for the head"], STATES["reading"], STATES["between two events"]):
        cancel = Cancellation()
        with Scripted(script) as server, VLLMProvider(server.url) as vllm:
            with ringing(lambda *_: cancel.cancel("by a signal"), 0.1):
                with pytest.raises(RequestCancelledError, match="by a signal"):
                    call(vllm.with_options(cancel=cancel))
            server.until("eof")


def test_cancelling_at_any_moment_locks_nothing():
    """A handler that interrupts a call wherever it is, a thousand times."""
    cancels = [Cancellation()]
    with Scripted(["request", answer(completion()), "again"]) as server, VLLMProvider(server.url) as vllm:
        outcomes = set()
        with ringing(lambda *_: cancels[-1].cancel(), 0.001, 0.0013):
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                cancels.append(Cancellation())
                try:
                    outcomes.add(vllm.with_options(cancel=cancels[-1]).chat_completion(**ASK).text)
                except RequestCancelledError:
                    outcomes.add("cancelled")
        assert outcomes == {"fine", "cancelled"}
        assert vllm.chat_completion(**ASK).text == "fine"


_GREEN = r"""
import sys, time
name, url = sys.argv[1:]
if name == "gevent":
    from gevent import monkey; monkey.patch_all(); from gevent import spawn
else:
    import eventlet; eventlet.monkey_patch(); from eventlet import spawn
from vllm_bridge import APITimeoutError, Cancellation, RequestCancelledError, VLLMProvider
vllm = VLLMProvider(url, max_retries=0)
ask = {"model": "m", "messages": []}
turns = []
def others():
    for _ in range(1000):
        time.sleep(0.01); turns.append(1)
spawn(others)
def stream(vllm):
    return list(vllm.chat_completion_stream(**ask))
def plain(vllm):
    return vllm.chat_completion(**ask)
for call, options in ((plain, {"timeout": 0.3}), (plain, {"deadline": 0.3}), (stream, {"deadline": 0.3}),
                      (stream, {"stream_idle_timeout": 0.3})):
    began, turn = time.monotonic(), len(turns)
    try:
        call(vllm.with_options(**options)); print("no error", options)
    except APITimeoutError as error:
        took = time.monotonic() - began
        print("ok" if took < 3 and len(turns) - turn > 5 else "took %s, %d turns of others" % (took, len(turns) - turn))
cancel = Cancellation()
def leave():
    time.sleep(0.2); cancel.cancel()
for call in (plain, stream):
    cancel = Cancellation()
    spawn(leave)
    try:
        call(vllm.with_options(cancel=cancel)); print("not cancelled")
    except RequestCancelledError:
        print("ok")
"""


@pytest.mark.parametrize("name", ["gevent", "eventlet"])
def test_limits_and_cancellations_hold_among_green_threads(name):
    import importlib.util

    if importlib.util.find_spec(name) is None:  # importing eventlet warns
        pytest.skip("could not import %r" % name)
    plain, stream = HOLD, ["request", SSE_HEAD, event(delta("x")), "hold"]
    with Scripted(plain, plain, stream, stream, plain, stream) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _GREEN, name, server.url], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=60, cwd=str(ROOT))
    assert (done.stdout.split(), done.stderr) == ([b"ok"] * 6, b"")


def test_a_last_call_may_have_a_deadline():
    """In ``atexit`` Python 3.12 and newer start no thread any more."""
    code = (
        "import atexit, sys\nfrom vllm_bridge import VLLMProvider\nvllm = VLLMProvider(sys.argv[1])\n"
        "atexit.register(lambda: print(vllm.with_options(deadline=20).chat_completion(model='m', messages=[]).text))")
    with Scripted(["request", answer(completion("bye")), "hold"]) as server:
        done = subprocess.run([sys.executable, "-c", code, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=60, cwd=str(ROOT))
    assert (done.stdout, done.stderr) == (b"bye\n", b"")
