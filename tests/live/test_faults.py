"""Servers that idle, are stopped, die in the middle of a stream and come back. The last tests leave them dead."""

import pathlib
import signal
import threading
import time

import pytest
from cases import CHAT, LONG
from live_rig.servers import Server, session_members, send, wait_until_ready
from oracle import ask, wait_for_running

from vllm_bridge import APIConnectionError, APIStatusError, APITimeoutError, BridgeError, IncompleteStreamError

KEEP_ALIVE = 5.0       # vLLM closes a connection that was idle for so long (uvicorn's default)


def both(faces, role):
    return [faces("library", role), faces("gateway", role)]


@pytest.fixture(scope="module")
def rig():
    """Take up the server behind a face, or skip where it is not ours to kill; what was started here ends here."""
    taken = {}

    def take(face):
        if face.server.state is None:
            pytest.skip("this server was not started by scripts/live, so it is not killed")
        return taken.setdefault(face.server.role, Server.load(pathlib.Path(face.server.state)))

    yield take
    for server in taken.values():
        server.stop()


def text(face):
    return face.vllm.chat_completion(model=face.model, **CHAT["plain"]).choices[0].message


@pytest.mark.parametrize("idle", [KEEP_ALIVE - 0.5, KEEP_ALIVE - 0.02, KEEP_ALIVE, KEEP_ALIVE + 0.02, KEEP_ALIVE + 1.5])
def test_connections_older_than_the_keep_alive(faces, idle):
    """No call fails at the moment when the server closes idle connections, retries being off."""
    callers = [(face, face.vllm.with_options(max_retries=0)) for face in both(faces, "chat")]
    for face, vllm in callers:
        assert vllm.chat_completion(model=face.model, **CHAT["one token"]).choices
    time.sleep(idle)
    for face, vllm in callers:
        assert list(vllm.chat_completion_stream(model=face.model, **CHAT["one token"]))


class Listener(threading.Thread):
    """Reads a long stream in a thread and keeps what became of it."""

    def __init__(self, face, **options):
        super().__init__()
        vllm = face.vllm.with_options(max_retries=0, stream_idle_timeout=8, **options)
        self.stream = vllm.chat_completion_stream(model=face.model, **LONG)
        self.chunks = [next(self.stream) for _ in range(3)]
        self.error = None
        self.start()

    def run(self):
        try:
            self.chunks.extend(self.stream)
        except BridgeError as error:
            self.error = error
        finally:
            self.stream.close()

    def ended(self):
        self.join(60)
        assert not self.is_alive()
        return self.error


def refused(face):
    """The server is gone: both faces say so, quickly and as a connection error or the gateway's 502."""
    began = time.monotonic()
    with pytest.raises((APIConnectionError, APIStatusError)) as caught:
        face.vllm.with_options(max_retries=0).chat_completion(model=face.model, **CHAT["plain"])
    if face.kind == "library":
        assert isinstance(caught.value, APIConnectionError)
    else:
        assert caught.value.status_code in (502, 503)
    assert time.monotonic() - began < 30


def test_killed_in_a_stream_and_back(faces, rig):
    """Kill the whole server, then start it again: the same providers and the same gateway go on."""
    pair = both(faces, "guarded")
    server = rig(pair[0])
    before = [text(face) for face in pair]
    listeners = [Listener(face) for face in pair]
    server.kill()
    for listener in listeners:
        error = listener.ended()
        assert error is not None, "a stream that was cut looked whole"
        assert len(listener.chunks) < LONG["max_tokens"]
    assert isinstance(listeners[0].error, IncompleteStreamError)
    assert listeners[0].error.partial.choices[0].message.reasoning
    for face in pair:
        refused(face)
    server.start()
    wait_until_ready([server])
    assert [text(face) for face in pair] == before


def test_the_engine_dies_in_a_stream(faces, rig):
    """The API process is still there to say so: vLLM puts the error into the stream, and [DONE] after it."""
    pair = both(faces, "guarded")
    server = rig(pair[0])
    listeners = [Listener(face) for face in pair]
    leader = int(server.state["pid"])
    send([pid for pid in session_members(leader) if pid != leader], signal.SIGKILL)
    for listener in listeners:
        error = listener.ended()
        assert isinstance(error, (APIStatusError, IncompleteStreamError)), error
        if isinstance(error, APIStatusError):
            assert error.status_code == 500
    server.stop()
    for face in pair:
        refused(face)


def test_stopped_in_a_stream(faces, rig):
    """A server asked to stop (SIGTERM) aborts its streams or falls silent with them open: neither looks like an end."""
    pair = both(faces, "chat")
    server = rig(pair[0])
    listeners = [Listener(face) for face in pair]
    wait_for_running(pair[0].server, 2, 10.0)
    server.signal_api(signal.SIGTERM)
    for listener in listeners:
        error = listener.ended()
        assert error is not None, "a stream that was broken off looked whole"
        assert isinstance(error, (IncompleteStreamError, APITimeoutError, APIStatusError)), error
    server.stop()
    with pytest.raises(OSError):
        ask(pair[0].server, "GET", "/health")
    for face in pair:
        refused(face)
