"""Streams through the gateway: comments, what goes wrong before and after the first event, clients that leave."""

import json
import socket
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from faces import LONG, Address, ask, chat, log_lines, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, delta, event, named
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

CHAT = "/v1/chat/completions"
COMMENT = b": still here\n\n"
FORM = (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n')
HEARD = {"object": "transcription.chunk", "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}
MADE = {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "status": "in_progress"}}
DONE = {"type": "response.completed", "sequence_number": 1, "response": {"id": "r", "status": "completed"}}

# route → the body of a request, the events of the server's answer
ROUTES: Dict[str, Tuple[str, bytes, List[bytes]]] = {
    "chat": (CHAT, json.dumps(chat("x", stream=True)).encode(), [event(delta("a")), event(delta("b", "stop"))]),
    "text": ("/v1/completions", b'{"model":"m","prompt":"x","stream":true}',
             [event({"choices": [{"index": 0, "text": text, "finish_reason": end}]}) for text, end in
              (("a", None), ("b", "stop"))]),
    "responses": ("/v1/responses", b'{"model":"m","input":"x","stream":true}',
                  [event(delta("a")), event(delta("b", "stop"))]),
    "native": ("/v1/responses", b'{"model":"m","input":"x","stream":true}', [event(MADE), event(DONE)]),
    "transcription": ("/v1/audio/transcriptions", FORM, [event(HEARD), event(HEARD)]),
}


class Gated(Scripted):
    """A scripted server with a step ``gate``, which waits for the test."""

    def __init__(self, *scripts: List[Any]) -> None:
        super().__init__(*scripts)
        self.gates = threading.Semaphore(0)

    def _do_gate(self, state: Dict[str, Any]) -> None:
        assert self.gates.acquire(timeout=LONG)

    def __exit__(self, *exc_info: object) -> None:
        for _ in range(100):
            self.gates.release()
        super().__exit__(*exc_info)


@contextmanager
def gateway(*servers: Any, route: str = "chat", **more: Any) -> Iterator[Address]:
    config = {"keys": [{"url": server.url, "weight": weight} for server, weight in zip(servers, (100, 0.01))],
              "network_config": {"retry_backoff_initial_ms": 1}, "native_responses": route == "native"}
    settings = Settings(ProviderConfig.from_dict(config, environ={}), log_format="json", **more)
    with own(Gateway(settings)) as address:
        yield address


class Client:
    """A request, and its answer as far as it has come."""

    def __init__(self, address: Address, path: str, body: bytes) -> None:
        kind = "multipart/form-data; boundary=b" if body.startswith(b"--b") else "application/json"
        self.got = b""
        self.sock = socket.create_connection(address, timeout=LONG)
        self.sock.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d"
                          b"\r\n\r\n%s" % (path.encode(), kind.encode(), len(body), body))

    def until(self, text: bytes, count: int = 1) -> None:
        while self.got.count(text) < count:
            block = self.sock.recv(65536)
            assert block, self.got
            self.got += block

    def rest(self) -> bytes:
        self.got += b"".join(iter(lambda: self.sock.recv(65536), b""))
        return self.got

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()


def assert_whole(got: bytes) -> None:
    last = got.split(b"data: ")[-1]
    assert last.startswith(b"[DONE]\n\n") or b'"type":"response.completed"' in last, got
    assert got.endswith(b"\r\n0\r\n\r\n")


# ---------------------------------------------------------------- comments


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_comments_pass_and_the_head_leaves_with_the_first(route: str) -> None:
    path, body, (first, second) = ROUTES[route]
    script = ["request", SSE_HEAD, chunk(COMMENT), "gate", first, "gate", chunk(COMMENT), "gate", second,
              event("[DONE]"), LAST_CHUNK]
    with log_lines() as lines, Gated(script) as server:
        with gateway(server, route=route) as address, Client(address, path, body) as client:
            client.until(COMMENT)
            assert client.got.startswith(b"HTTP/1.1 200 ") and b"data:" not in client.got
            server.gates.release()
            client.until(b"data: ")
            server.gates.release()
            client.until(COMMENT, 2)
            server.gates.release()
            assert_whole(client.rest())
    assert lines[0]["status"] == 200 and lines[0]["first_token_ms"] > 0


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_comments_of_our_own_where_the_server_is_silent(route: str) -> None:
    path, body, (first, second) = ROUTES[route]
    script = ["request", SSE_HEAD, "gate", first, "gate", second, event("[DONE]"), LAST_CHUNK]
    with Gated(script) as server, gateway(server, route=route, sse_keep_alive_interval=0.05) as address:
        with Client(address, path, body) as client:
            client.until(b": keep-alive\n\n")
            assert b"data:" not in client.got
            server.gates.release()
            client.until(b"data: ")
            client.got = b""
            client.until(b": keep-alive\n\n")
            server.gates.release()
            assert_whole(client.rest())


def test_no_comments_of_our_own_unless_they_are_asked_for_or_within_the_time() -> None:
    path, body, events = ROUTES["chat"]
    for seconds in (0, LONG):
        with Scripted(["request", SSE_HEAD, ("sleep", 0.2), *events, event("[DONE]"), LAST_CHUNK]) as server:
            with gateway(server, sse_keep_alive_interval=seconds) as address, Client(address, path, body) as client:
                assert b"\n: " not in client.rest()


# ---------------------------------------------------------------- after the head, before the first event


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_another_server_is_tried_after_a_comment(route: str) -> None:
    path, body, events = ROUTES[route]
    with Gated([*named("echo", "m"), "request", "gate", answer(b"", "503 Busy")]) as busy:
        good = [*named("echo", "m"), "request", SSE_HEAD, *events, event("[DONE]"), LAST_CHUNK]
        with Scripted(good) as other, log_lines() as lines:
            with gateway(busy, other, sse_keep_alive_interval=0.05) as address:
                with Client(address, path, body) as client:
                    client.until(b": keep-alive\n\n")
                    busy.gates.release()
                    assert_whole(client.rest())
            assert (len(busy.posts), len(other.posts)) == (1, 1)
    assert (lines[0]["status"], lines[0]["server"]) == (200, other.url)


@pytest.mark.parametrize("route", ["chat", "responses"])
def test_another_model_is_tried_after_a_comment(route: str) -> None:
    path, body, events = ROUTES[route]
    body = body[:-1] + b',"fallbacks":["second","third"]}'
    missing = answer({"error": {"message": "no", "code": 404}}, "404 Not Found")
    script = ["request", "gate", missing, "request", missing, "request", SSE_HEAD, *events, event("[DONE]"), LAST_CHUNK]
    with Gated(script) as server, log_lines() as lines:
        with gateway(server, sse_keep_alive_interval=0.05) as address, Client(address, path, body) as client:
            client.until(b": keep-alive\n\n")
            server.gates.release()
            assert_whole(client.rest())
        assert [request.json["model"] for request in server.requests][1:] == ["second", "third"]
    assert (lines[0]["status"], lines[0]["model"]) == (200, "third")


@pytest.mark.parametrize("route", ["chat", "text", "responses", "native", "transcription"])
def test_the_error_after_a_comment_is_an_event_and_its_status_is_logged(route: str) -> None:
    path, body, _ = ROUTES[route]
    missing = answer({"error": {"message": "no such thing", "code": 404}}, "404 Not Found")
    with Gated(["request", "gate", missing]) as server, log_lines() as lines:
        with gateway(server, route=route, sse_keep_alive_interval=0.05) as address:
            with Client(address, path, body) as client:
                client.until(b": keep-alive\n\n")
                server.gates.release()
                found = client.rest()
                assert found.startswith(b"HTTP/1.1 200 ") and found.endswith(b"\r\n0\r\n\r\n")
                last = found.split(b"\n\n")[-2]
                assert b"no such thing" in last and b'"error"' in last
                assert (b"event: error" in last) == (route in ("responses", "native"))
            text = ask(address, "GET", "/metrics").body.decode()
            assert 'status="404"} 1\n' in text and 'status="200"' not in text
    assert lines[0]["status"] == 404


# ---------------------------------------------------------------- in the middle


@pytest.mark.parametrize("route", ["chat", "text", "responses", "native", "transcription"])
def test_a_reset_between_two_events_is_an_error_event(route: str, caplog: pytest.LogCaptureFixture) -> None:
    path, body, (first, _) = ROUTES[route]
    with Scripted(["request", SSE_HEAD, first, "rst"]) as server, log_lines() as lines:
        with gateway(server, route=route) as address, Client(address, path, body) as client:
            found = client.rest()
            assert b'"error"' in found.split(b"\n\n")[-2] and found.endswith(b"\r\n0\r\n\r\n")
    assert lines[0]["status"] == 502
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("usage, counted", [(None, 3), ({"prompt_tokens": 5, "completion_tokens": 7}, 7)])
@pytest.mark.parametrize("route", ["chat", "responses"])
def test_a_stream_that_its_client_leaves_counts_the_tokens_it_had(route: str, usage: Any, counted: int) -> None:
    path, body, _ = ROUTES[route]
    more = {} if usage is None else {"usage": usage}
    events = [event(dict(delta(text), **more)) for text in "abc"]
    with Scripted(["request", SSE_HEAD, *events, "hold"]) as server, log_lines() as lines:
        with gateway(server, route=route) as address:
            with Client(address, path, body) as client:
                client.until(b'"c"')
            server.until("eof")
            until(lambda: lines)
    assert (lines[0]["status"], lines[0]["tokens_out"]) == (499, counted)
    assert lines[0]["tokens_in"] == (None if usage is None else 5)


def test_a_client_that_leaves_between_two_events_ends_the_generation_at_once() -> None:
    with EchoServer() as echo, gateway(echo) as address:
        body = json.dumps(chat("!stall-after 2 %g a b c" % LONG, stream=True)).encode()
        with Client(address, CHAT, body) as client:
            client.until(b"data: ")
        until(lambda: echo.running == 0, LONG / 3)
