"""What a client can send to the whole gateway, and what becomes of it: a clear refusal, or a closed connection.

After each of them a request on a new connection is answered, the stand-in generates nothing any more, and the log has
no error in it: what a client sends is never a defect of ours. What goes wrong before the application is called is in
tests/http1 and tests/server; their table of hostile requests is sent here once more.
"""

import copy
import gzip
import json
import logging
import os
import re
import socket
import struct
from contextlib import ExitStack
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest

from faces import LONG, Address, ask, chat, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, event
from requests_by_hand import HOSTILE
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:guided_:DeprecationWarning")

CHAT = "/v1/chat/completions"
FORM = "/v1/audio/transcriptions"
MOST = 2 * 1024 * 1024  # bytes of a body that the gateway of these tests takes


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture(scope="module")
def running(echo: EchoServer) -> Iterator[Address]:
    with own(Gateway(settings_for(echo)), body_timeout=1.0, header_timeout=1.0) as address:
        yield address


def settings_for(echo: EchoServer, **more: Any) -> Settings:
    config = ProviderConfig.from_dict({"keys": [{"url": echo.url, "value": "sk-upstream"}]}, environ={})
    return Settings(config, max_body_mb=MOST / 1024 / 1024, **more)


@pytest.fixture
def gateway(running: Address, echo: EchoServer, caplog: pytest.LogCaptureFixture) -> Iterator[Address]:
    """The gateway; at the end it still serves, and nothing is left of the test."""
    echo.requests.clear()
    yield running
    answer = ask(running, "POST", CHAT, chat("next"))
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "You said: next")
    until(lambda: not echo.running)
    failures = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not failures


# ---------------------------------------------------------------- raw exchanges


class Reply(NamedTuple):
    status: int
    headers: List[Tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return dict(self.headers)[name]


def talk(address: Address, *parts: bytes) -> bytes:
    """Send bytes and return all that comes back until the gateway closes the connection."""
    received = b""
    with socket.create_connection(address, timeout=LONG) as sock:
        try:
            for part in parts:
                sock.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused meanwhile: the reason may still be there to read
        while True:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data


def replies(data: bytes) -> List[Reply]:
    """Take replies apart as strictly as a proxy would: by their lengths, and nothing between them."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        assert end and re.fullmatch(r"HTTP/1\.1 [1-5][0-9][0-9] [A-Za-z ]+", lines[0]), lines[0]
        headers = []
        for line in lines[1:]:
            match = re.fullmatch(r"([A-Za-z-]+): ([ -~]*)", line)
            assert match, line
            headers.append((match.group(1).lower(), match.group(2)))
        fields = dict(headers)
        body = b""
        if fields.get("transfer-encoding") == "chunked":
            while True:
                size, _, data = data.partition(b"\r\n")
                piece, data = data[:int(size, 16)], data[int(size, 16) + 2:]
                if not piece:
                    break
                body += piece
        else:
            length = int(fields.get("content-length", 0))
            body, data = data[:length], data[length:]
            assert len(body) == length
        found.append(Reply(int(lines[0].split()[1]), headers, body))
    return found


def request(
    body: bytes = b"", *lines: str, path: str = CHAT, method: str = "POST", kind: str = "application/json"
) -> bytes:
    head = ["%s %s HTTP/1.1" % (method, path), "Host: a", "Connection: close", "Content-Length: %d" % len(body)]
    head += ["Content-Type: " + kind] if kind else []
    return ("\r\n".join(head + list(lines)) + "\r\n\r\n").encode("latin-1") + body


def assert_refused(reply: Reply, *statuses: int) -> Dict[str, Any]:
    """The reply is a refusal that a client of OpenAI's API understands, and tells nothing of the inside."""
    assert reply.status in (statuses or range(400, 500)), reply.body
    assert reply.header("content-type") == "application/json"
    error: Dict[str, Any] = json.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    text = reply.body.decode()
    for inside in ("Traceback", "127.0.0.1", "sk-upstream", ".py", "object at 0x"):
        assert inside not in text
    return error


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# ---------------------------------------------------------------- HTTP


@pytest.mark.parametrize("data, status", [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_what_is_no_http_reaches_no_application(gateway: Address, echo: EchoServer, data: bytes, status: int) -> None:
    hidden = request(compact(chat("smuggled")))
    data = data.replace(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", hidden)
    found = replies(talk(gateway, data.replace(b"POST / ", b"POST %s " % CHAT.encode())))
    assert_refused(found[-1], status)
    assert len(found) == 1 and not echo.requests


ODD = [
    ("HTTP/1.0", [b"POST %s HTTP/1.0\r\nContent-Length: BODY\r\n\r\n"]),
    ("an absolute target", [b"POST http://localhost%s HTTP/1.1\r\nHost: a\r\nContent-Length: BODY\r\n\r\n"]),
    ("a query", [b"POST %s?model=other HTTP/1.1\r\nHost: a\r\nContent-Length: BODY\r\n\r\n"]),
    ("a slash at the end", [b"POST %s/ HTTP/1.1\r\nHost: a\r\nContent-Length: BODY\r\n\r\n"]),
    ("no content type, byte by byte", [bytes([byte]) for byte in
                                       b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: BODY\r\n\r\n"]),
    ("Expect", [b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: BODY\r\nExpect: 100-continue\r\n\r\n"]),
    ("another Host", [b"POST %s HTTP/1.1\r\nHost: gateway.localhost:1\r\nContent-Length: BODY\r\n\r\n"]),
]


@pytest.mark.parametrize("parts", [case[1] for case in ODD], ids=[case[0] for case in ODD])
def test_an_odd_but_legal_request_is_served(gateway: Address, echo: EchoServer, parts: List[bytes]) -> None:
    body = compact(chat("odd"))
    head = b"".join(parts).replace(b"%s", CHAT.encode()).replace(b"BODY", b"%d" % len(body))
    head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    sent = [head + body] if len(parts) == 1 else [bytes([byte]) for byte in head + body]
    (found,) = replies(talk(gateway, *sent))
    assert found.status == 200 and b"You said: odd" in found.body
    assert echo.requests[-1].path == CHAT and echo.requests[-1].json["model"] == "echo"
    assert echo.requests[-1].headers["host"].startswith("127.0.0.1:")


def test_a_body_in_chunks(gateway: Address) -> None:
    head = request(kind="application/json").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = compact(chat("chunks"))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: x\r\n\r\n"
    (found,) = replies(talk(gateway, head + chunks))
    assert found.status == 200 and b"You said: chunks" in found.body


def test_pipelined_requests_are_answered_in_their_order(gateway: Address) -> None:
    bodies = [compact(chat("number %d" % number)) for number in range(50)]
    data = b"".join(request(body) for body in bodies[:-1]).replace(b"Connection: close\r\n", b"") + request(bodies[-1])
    found = replies(talk(gateway, data))
    assert [reply.status for reply in found] == [200] * 50
    for number, reply in enumerate(found):
        content = json.loads(reply.body)["choices"][0]["message"]["content"]
        assert content == "You said: number %d" % number


def test_an_error_in_the_middle_of_a_pipeline(gateway: Address) -> None:
    keep = b"Connection: close\r\n"
    data = request(b"{").replace(keep, b"") + request(b"", path="/nowhere").replace(keep, b"") + request(
        compact(chat("last")))
    assert [reply.status for reply in replies(talk(gateway, data))] == [400, 404, 200]


STOPPED = {
    "nothing": b"", "a letter": b"P", "half a line": b"POST ", "no body": request(b"x" * 10)[:-10],
    "half a body": request(b"x" * 10)[:-5], "a byte missing": request(b"{}")[:-1],
    "half a chunk": request().replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"5\r\n{",
    "half a form": request(b"--b\r\n" * 100, path=FORM, kind="multipart/form-data; boundary=b")[:-50],
}


@pytest.mark.parametrize("sent", list(STOPPED.values()), ids=list(STOPPED))
@pytest.mark.parametrize("leave", ["half-close", "close", "reset"])
def test_a_request_that_stops(gateway: Address, echo: EchoServer, sent: bytes, leave: str) -> None:
    with socket.create_connection(gateway, timeout=LONG) as sock:
        sock.sendall(sent)
        if leave == "half-close":
            sock.shutdown(socket.SHUT_WR)
            assert_told(sock, sent, 400)
        elif leave == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert not echo.requests


def test_requests_that_stop_are_given_up(gateway: Address, echo: EchoServer) -> None:
    with ExitStack() as stack:  # all at once: they wait for the same limits
        socks = [stack.enter_context(socket.create_connection(gateway, timeout=LONG)) for _ in STOPPED]
        for sock, sent in zip(socks, STOPPED.values()):
            sock.sendall(sent)
        for sock, sent in zip(socks, STOPPED.values()):
            assert_told(sock, sent, 408)
    assert not echo.requests


def assert_told(sock: socket.socket, sent: bytes, status: int) -> None:
    """What was begun is refused, and the connection ends; where nothing was begun it just ends."""
    found = replies(b"".join(iter(lambda: sock.recv(65536), b"")))
    assert len(found) == (1 if sent else 0)
    for reply in found:
        assert_refused(reply, status)


def test_a_client_that_closes_its_half_is_taken_for_gone(gateway: Address) -> None:
    # As vLLM 0.32.0 does; an answer that is ready at once may still arrive.
    with socket.create_connection(gateway, timeout=LONG) as sock:
        sock.sendall(request(compact(chat("!stall 20 half"))))
        sock.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert [reply.status for reply in replies(data)] in ([], [499])


@pytest.mark.parametrize("body", [chat("!stall 20 gone"), chat("!slow 0.05 " + "gone " * 200, stream=True)],
                         ids=["whole", "stream"])
def test_a_client_that_resets_ends_the_generation(gateway: Address, echo: EchoServer, body: Dict[str, Any]) -> None:
    with socket.create_connection(gateway, timeout=LONG) as sock:
        sock.sendall(request(compact(body)))
        until(lambda: echo.running)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: not echo.running)


# ---------------------------------------------------------------- paths


TARGETS = [
    "/", "//", "/v1", "/v1/", "//v1/models", "/v1//models", "/v1/../metrics", "/v1/models/../../metrics", "/./metrics",
    "/health/../metrics", "/health/x", "/health%2f..%2fmetrics", "/health;/metrics", "/metrics%00", "/metrics%20",
    "/METRICS", "/metrics.json", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fmetrics",
    "/v1/models/a%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201", "/\xff", "/%ff%fe", "/%", "/%zz", "/%u0041", "/..;/metrics",
    "/v1/models/" + "a" * 4000, "/invocations", "/v1/load_lora_adapter", "/docs", "/openapi.json",
    "/v1/chat/completions%2f..", "/openai/openai/v1/models", "/anthropic/v1/../../metrics", "http://a/../metrics",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_path_that_is_none_of_ours(gateway: Address, echo: EchoServer, target: str) -> None:
    for method in ("GET", "POST"):
        data = talk(gateway, request(b"{}", path=target, method=method))
        (found,) = replies(data)
        if found.status == 400 and b"invalid_http" in found.body:
            continue  # a byte that no target may hold
        assert_refused(found, 404, 405)
        assert b"evil" not in data.lower().partition(b"\r\n\r\n")[0]
    assert all(request.path == "/v1/models" for request in echo.requests)


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "PATCH", "get", "POST2", "PROPFIND", "M-SEARCH"])
def test_a_method_that_a_path_does_not_take(gateway: Address, method: str) -> None:
    (found,) = replies(talk(gateway, request(path=CHAT, method=method)))
    assert_refused(found, 405)
    assert found.header("allow") == "OPTIONS, POST"


# ---------------------------------------------------------------- bodies that are no JSON object


def nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    return b'{"model":"echo","messages":%s}' % (opening * levels + "1" + closing * levels).encode()


NO_JSON = [
    ("empty", b""), ("white space", b" \r\n"), ("a brace", b"{"), ("text", b"hello"), ("a list", b"[]"),
    ("a string", b'"{}"'), ("a number", b"1"), ("null", b"null"), ("two objects", b"{}{}"),
    ("a comma too many", b'{"model":"echo",}'), ("single quotes", b"{'model':'echo'}"),
    ("a form", b"model=echo&messages=x"), ("a control character", b'{"model":"a\nb"}'), ("a NUL", b"{}\0"),
    ("invalid UTF-8", b'{"model":"\xff"}'), ("half a character", b'{"model":"\xe2\x82"}'),
    ("an encoded surrogate", b'{"model":"\xed\xa0\x80"}'), ("overlong UTF-8", b'{"model":"\xc0\xaf"}'),
    ("UTF-16 cut", "{}".encode("utf-16")[:-1]), ("gzip", gzip.compress(b"{}")),
    ("half an escape", b'{"model":"\\u12"}'), ("NaN", b'{"model":"echo","messages":[],"temperature":NaN}'),
    ("Infinity", b'{"model":"echo","messages":[{}],"top_p":-Infinity}'),
    ("a number beyond all", b'{"model":"echo","messages":[{}],"top_p":1e999}'),
    ("an integer of 5,000 digits", b'{"model":"echo","messages":[{}],"seed":' + b"9" * 5000 + b"}"),
    ("10,000 lists", nested(10000)), ("10,000 objects", nested(10000, '{"a":', "}")),
    ("100,000 brackets open", b"[" * 100000), ("950 lists", nested(950)), ("400 objects", nested(400, '{"a":', "}")),
    ("a BOM and nothing", b"\xef\xbb\xbf"),
]


@pytest.mark.parametrize("body", [case[1] for case in NO_JSON], ids=[case[0] for case in NO_JSON])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/rerank"])
def test_a_body_that_is_no_request(gateway: Address, path: str, body: bytes) -> None:
    (found,) = replies(talk(gateway, request(body, path=path)))
    assert_refused(found, 400)


def test_a_body_over_the_limit(gateway: Address, echo: EchoServer) -> None:
    body = compact(chat("x" * MOST))
    head = request(kind="application/json").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[at:at + 65536]), body[at:at + 65536])
                      for at in range(0, len(body), 65536))
    for data in (request(body), head + chunks + b"0\r\n\r\n"):
        (found,) = replies(talk(gateway, data))
        assert assert_refused(found, 413)["code"] == "request_too_large"
    assert not echo.requests


def test_a_body_that_would_take_too_long_to_read(echo: EchoServer) -> None:
    echo.requests.clear()
    with own(Gateway(settings_for(echo, max_parsed_mb=0.1))) as address:
        for unit in (b"[],", b"{},", b"[{}],", b'"[{",', b"1,"):
            body = b'{"model":"echo","messages":[%s0]}' % (unit * (MOST // 10))
            (found,) = replies(talk(address, request(body)))
            error = assert_refused(found, 413)
            assert error["code"] == "request_too_large" and "--max-parsed-mb" in error["message"]
        assert not echo.requests
        # Texts are quick to read, and what only passes is not read.
        (found,) = replies(talk(address, request(compact(chat("x" * 500000)))))
        assert found.status == 200
        tokens = b'{"model":"vllm/echo","input":[%s0]}' % (b"1," * 100000)
        (found,) = replies(talk(address, request(tokens, path="/v1/embeddings")))
        assert found.status == 200 and echo.requests[-1].body == tokens.replace(b"vllm/", b"")
        for odd in (b',"fallbacks":["a"]}', b',"model":"echo"}', b',"encoding_format":null,"stream":null}', b"] }"):
            body = tokens[:-1] + odd
            (found,) = replies(talk(address, request(body, path="/v1/embeddings")))
            assert_refused(found, 413)


@pytest.mark.parametrize("body, content", [
    (b'{"model":"no","model":"vllm/echo","messages":[],"messages":[{"role":"user","content":"last"}]}', "last"),
    (b'\xef\xbb\xbf{"model":"echo","messages":[{"role":"user","content":"BOM"}]}', "BOM"),
    (json.dumps(chat("wide")).encode("utf-16"), "wide"),
    (b'{"model":"echo","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}', "\U0001F600"),
    (b'{"model":"echo","messages":[{"role":"user","content":"a\\u0000b"}]}', "a\0b"),
    (b'{"model":"echo","user":"\\ud800","messages":[{"role":"user","content":"lone"}]}', "lone"),
    (b'{"model":"echo","seed":1E2,"messages":[{"role":"user","content":"exponent"}]}', "exponent"),
])
def test_json_that_is_odd_and_no_more(gateway: Address, echo: EchoServer, body: bytes, content: str) -> None:
    (found,) = replies(talk(gateway, request(body)))
    assert found.status == 200, found.body
    assert json.loads(found.body)["choices"][0]["message"]["content"] == "You said: " + content
    assert echo.requests[-1].json["messages"][0]["content"] == content


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "x", ";", "\xff",
                                  "application/json; x", "multipart/form-data; boundary=b"])
def test_the_content_type_of_json_is_not_asked_for(gateway: Address, echo: EchoServer, kind: str) -> None:
    # curl -d says it is a form. Web pages, whose forms could say the same, are told apart by their Origin.
    (found,) = replies(talk(gateway, request(compact(chat("typed")), kind=kind)))
    assert found.status == 200
    assert echo.requests[-1].headers["content-type"] == "application/json"
    (found,) = replies(talk(gateway, request(compact(chat("typed")), "Origin: http://evil.example", kind=kind)))
    assert_refused(found, 403)


# ---------------------------------------------------------------- wrong types in every field


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SAMPLING: Dict[str, Any] = {
    "model": "echo", "temperature": 0.5, "max_tokens": 3, "n": 1, "stop": ["x"], "seed": 1, "user": "u",
    "stream_options": {"include_usage": True}, "logit_bias": {"1": 1}, "fallbacks": ["vllm/other"],
    "extra_body": {"top_k": 1}, "structured_outputs": {"json": {}},
}
BODIES: Dict[str, Dict[str, Any]] = {
    CHAT: dict(
        SAMPLING, messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]},
                            {"role": "assistant", "content": "b", "reasoning": "c", "tool_calls": [
                                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                            {"role": "tool", "tool_call_id": "1", "content": "d"}],
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}}, logprobs=True, top_logprobs=1,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}, max_completion_tokens=3,
        chat_template_kwargs={"enable_thinking": False}, guided_json={}, parallel_tool_calls=True),
    "/v1/completions": dict(SAMPLING, prompt=["a", [1, 2]], echo=False, logprobs=1, suffix=None, best_of=1),
    "/v1/embeddings": {"model": "echo", "input": ["a"], "dimensions": 2, "encoding_format": "float", "user": "u"},
    "/v1/rerank": {"model": "echo", "query": "q", "documents": ["a", {"text": "b", "id": "1", "meta": {}}], "top_n": 1,
                   "max_tokens_per_doc": 9, "params": {"return_documents": True}, "return_documents": True},
    "/v1/responses": {
        "model": "echo",
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                  {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
                  {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "1", "output": "o"}],
        "instructions": "i", "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
        "tool_choice": "auto", "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}},
        "metadata": {"a": "b"}, "include": [], "max_output_tokens": 3, "previous_response_id": None,
        "background": False},
}
JUNK: List[Any] = [
    None, True, -1, 10 ** 30, 1.5, "", "9", "\ud800\r\n", [], [None], [[]], {}, {"": {}}, {"type": []}, ["x" * 3000],
    [[1.5]], {"type": "x", "content": {}},
]


def spoilt(good: Any) -> Iterator[Any]:
    """The body with each of its parts replaced by each kind of junk."""

    def paths(value: Any, above: Tuple[Any, ...]) -> Iterator[Tuple[Any, ...]]:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in pairs:
            yield above + (key,)
            yield from paths(inner, above + (key,))

    for path in list(paths(good, ())):
        for junk in JUNK:
            body = copy.deepcopy(good)
            inner = body
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = junk
            yield body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_wrong_type_in_any_field(gateway: Address, path: str, stream: bool) -> None:
    # A stream costs more; the checks before it are the same, so a part of them will do. Without VLLM_BRIDGE_LONG it is
    # a part in both: each field meets some junk, each junk some field (17 kinds, so no step leaves one out).
    step = (5 if stream else 1) if os.environ.get("VLLM_BRIDGE_LONG") else (7 if stream else 3)
    requests = list(spoilt(dict(BODIES[path], stream=stream)))[::step]
    assert len(JUNK) == 17
    for at in range(0, len(requests), 100):
        batch = requests[at:at + 100]
        data = b"".join(request(compact(body), path=path).replace(b"Connection: close\r\n", b"") for body in batch)
        found = replies(talk(gateway, data + request(b"", path="/")))
        assert len(found) == len(batch) + 1
        for body, reply in zip(batch, found):
            if reply.status != 200:
                assert_refused(reply)
            elif reply.header("content-type").startswith("text/event-stream"):
                assert reply.body.endswith(b"\n\n")
            else:
                assert isinstance(json.loads(reply.body), dict), body


# ---------------------------------------------------------------- forms


def form(*parts: bytes, boundary: bytes = b"b", end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, part) for part in parts) + end


def part(name: str, value: bytes = b"x", more: str = "") -> bytes:
    head = 'Content-Disposition: form-data; name="%s"%s\r\n\r\n' % (name, more)
    return head.encode("utf-8", "surrogateescape") + value


MODEL = part("model", b"echo")
FILE = part("file", b"RIFF", '; filename="a.wav"')
BAD_FORMS = [
    ("no part", form()), ("nothing", b""), ("no file", form(MODEL)), ("no model", form(FILE)),
    ("a path for a file", form(MODEL, part("file", b"/etc/passwd"))),
    ("two files", form(MODEL, FILE, FILE)), ("another file", form(MODEL, FILE, part("mask", b"x", '; filename="m"'))),
    ("two models", form(MODEL, MODEL, FILE)),
    ("a model that is a file", form(part("model", b"echo", '; filename="m"'), FILE)),
    ("no end", form(MODEL, FILE, end=b"")), ("half an end", form(MODEL, FILE, end=b"--b-")),
    ("JSON", compact({"model": "echo", "file": "/etc/passwd"})),
    ("no name", form(b"Content-Disposition: form-data\r\n\r\nx")),
    ("no headers", form(b"\r\nx")), ("bare LF", form(MODEL, FILE).replace(b"\r\n", b"\n")),
    ("1,001 fields", form(*[part("a%d" % number) for number in range(1001)])),
    ("a giant field", form(part("model", b"x" * (1024 * 1024 + 1)), FILE)),
    ("giant headers", form(part("model", b"echo", "; x=" + "y" * 20000), FILE)),
    ("a field that is no UTF-8", form(part("model", b"\xff"), FILE)),
    ("a name that is no UTF-8", form(part("mod\udcff"), FILE)),
    ("a folded header", form(MODEL, FILE.replace(b"; filename", b";\r\n filename"))),
    ("two dispositions", form(MODEL, b"Content-Disposition: form-data; name=a\r\n" + FILE)),
    ("base64", form(MODEL, b"Content-Transfer-Encoding: base64\r\n" + FILE)),
    ("a NUL in a name", form(MODEL, FILE.replace(b"a.wav", b"a\0.wav"))),
]


@pytest.mark.parametrize("body", [case[1] for case in BAD_FORMS], ids=[case[0] for case in BAD_FORMS])
def test_a_form_that_is_none(gateway: Address, echo: EchoServer, body: bytes) -> None:
    (found,) = replies(talk(gateway, request(body, path=FORM, kind="multipart/form-data; boundary=b")))
    assert_refused(found, 400)
    assert not echo.requests


@pytest.mark.parametrize("kind", [
    "", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=c",
    "multipart/mixed; boundary=b", "multipart/form-data; boundary=b; boundary=c", 'multipart/form-data; boundary="b',
    "multipart/form-data; boundary=" + "b" * 71, "multipart/form-data; boundary=\xff", "audio/wav",
])
def test_a_form_of_another_type(gateway: Address, kind: str) -> None:
    (found,) = replies(talk(gateway, request(form(MODEL, FILE), path=FORM, kind=kind)))
    assert_refused(found, 400)


@pytest.mark.parametrize("block", [b"x" * 65536, b"--b\r\n" * 13000, b"\r\n" * 32768, b"--b" * 20000])
@pytest.mark.parametrize("start", [b"", form(MODEL, end=b""), form(MODEL, end=b"--b\r\n") + FILE],
                         ids=["preamble", "field", "file"])
def test_a_form_without_end(gateway: Address, echo: EchoServer, start: bytes, block: bytes) -> None:
    head = request(path=FORM, kind="multipart/form-data; boundary=b").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (len(block), block)
    (found,) = replies(talk(gateway, head, b"%x\r\n%s\r\n" % (len(start), start) if start else b"",
                            *[chunk] * (2 * MOST // len(block))))
    assert_refused(found, 400, 413)
    assert not echo.requests


# ---------------------------------------------------------------- what is handed on stays where it belongs


EVIL = ["a\r\nX-Evil: 1\r\n\r\n", "a\nX-Evil: 1", "a\rb", "a\0b", "a\u2028b", "\ud800", 'a" x="y', "a, b", "\u00e9",
        " a ", "../../etc/passwd", "{{7*7}}", "%s%n", "a" * 100000, "\x1b[2J", "`id`", "<script>", "vllm/vllm/x"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses"])
def test_a_model_name_is_a_name(
    gateway: Address, echo: EchoServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in EVIL:
        body = compact(dict(BODIES[path], model=name, fallbacks=[]))
        with caplog.at_level(logging.INFO):
            (found,) = replies(talk(gateway, request(body, path=path)))
        assert_refused(found, 404)
        arrived = echo.requests[-1]
        assert arrived.json["model"] == (name[5:] if name.startswith("vllm/") else name)
        assert "x-evil" not in arrived.headers
    for record in caplog.records:
        assert len(record.getMessage().splitlines()) == 1


def test_a_model_name_in_a_path(gateway: Address) -> None:
    for name in ("a%0d%0aX-Evil:%201", "%00", "%ff", "a/b/../c", "%22", "vllm%2fvllm%2fecho"):
        (found,) = replies(talk(gateway, request(path="/v1/models/" + name, method="GET")))
        assert_refused(found, 404)


@pytest.mark.parametrize("name", ["a", "content-length", "transfer-encoding", "host", "authorization", "connection",
                                  "cookie", "expect", "te", "upgrade", "x-api-key", "accept-encoding", "x-request-id"])
@pytest.mark.parametrize("value", ["1", "a\tb", "\xff\x80", "chunked", "", "a, b", "a;b=\"c", "x" * 8000])
def test_a_header_to_pass_on(gateway: Address, echo: EchoServer, name: str, value: str) -> None:
    (found,) = replies(talk(gateway, request(compact(chat("on")), "X-BF-EH-%s: %s" % (name, value))))
    assert found.status == 200
    headers = echo.requests[-1].headers
    if name == "a":
        assert headers["a"] == value.strip()
    else:
        assert headers.get(name) != value
    assert headers["authorization"] == "Bearer sk-upstream" and "transfer-encoding" not in headers


@pytest.mark.parametrize("given", ["a b", "\xff", "a" * 201, "", "a\tb", "\x80"])
def test_a_request_id_that_is_none_is_replaced(gateway: Address, echo: EchoServer, given: str) -> None:
    (found,) = replies(talk(gateway, request(compact(chat("id")), "X-Request-Id: " + given)))
    assert found.status == 200
    assert re.fullmatch("[0-9a-f]{32}", found.header("x-request-id"))
    assert echo.requests[-1].headers["x-request-id"] == found.header("x-request-id")


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "X-Session-ID", "X-Vllm-Priority", "X-BF-API-Key",
                                  "X-BF-API-Key-ID", "Origin", "Access-Control-Request-Headers", "Cookie", "Referer"])
@pytest.mark.parametrize("value", ["\xff\xfe", "a\tb", "", "http://evil.example, b", "null", "\"><script>", "x" * 8000])
def test_a_header_with_an_odd_value(gateway: Address, name: str, value: str) -> None:
    for method, path, body in (("POST", CHAT, compact(chat("odd"))), ("OPTIONS", CHAT, b""), ("GET", "/health", b"")):
        (found,) = replies(talk(gateway, request(
            body, "%s: %s" % (name, value), "Access-Control-Request-Method: POST", path=path, method=method)))
        assert found.status < 500
        assert "evil" not in str(found.headers)


FILE_NAMES = ['a"; name="model', "a\\", "../../etc/passwd", "C:\\a.wav", "\u00e9\u4e2d.wav", "a" * 4000,
              "%0d%0aX-Evil: 1", "", "a;b", "a\tb.wav", ".", "a%22b", "\u202egpj.wav"]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_name_stays_in_its_quotes(gateway: Address, echo: EchoServer, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    body = form(MODEL, part("file", b"RIFF", '; filename="%s"\r\nContent-Type: audio/wav' % quoted))
    (found,) = replies(talk(gateway, request(body, path=FORM, kind="multipart/form-data; boundary=b")))
    assert found.status in (200, 400)
    for arrived in echo.requests:
        assert [name for name, _ in arrived.form] == ["model"] and list(arrived.files) == ["file"]
        assert dict(arrived.form)["model"] == "echo" and arrived.files["file"].content == b"RIFF"


@pytest.mark.parametrize("name", ['a"; filename="x', "a\\", "a%0d%0ab", "\u00e9", "a;b", "file*", "a" * 4000, "self",
                                  "timeout"])
def test_a_field_name_stays_in_its_quotes(gateway: Address, echo: EchoServer, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    body = form(MODEL, part(quoted, b"a\r\n--c\r\nX-Evil: 1"), FILE)
    (found,) = replies(talk(gateway, request(body, path=FORM, kind="multipart/form-data; boundary=b")))
    assert found.status in (200, 400)
    for arrived in echo.requests:
        assert len(arrived.form) == 2 and list(arrived.files) == ["file"]
        assert [value for name, value in arrived.form] == ["echo", "a\r\n--c\r\nX-Evil: 1"]


@pytest.mark.parametrize("kind", ["audio/wav", "text/plain; charset=x", "\u00e9", "a b", "multipart/mixed; boundary=b",
                                  "application/json"])
def test_the_type_of_a_file(gateway: Address, echo: EchoServer, kind: str) -> None:
    body = form(MODEL, part("file", b"RIFF", '; filename="a.wav"\r\nContent-Type: ' + kind))
    (found,) = replies(talk(gateway, request(body, path=FORM, kind="multipart/form-data; boundary=b")))
    assert found.status in (200, 400)


# ---------------------------------------------------------------- many at once


def test_slow_senders_hold_nobody_up(gateway: Address, echo: EchoServer) -> None:
    socks = [socket.create_connection(gateway, timeout=LONG) for _ in range(100)]
    try:
        for number, sock in enumerate(socks):
            sock.sendall(request(b"x" * 100)[:20 if number % 2 else -50])
        for number in range(10):
            assert ask(gateway, "POST", CHAT, chat("meanwhile")).status == 200
        for sock in socks:
            found = replies(b"".join(iter(lambda: sock.recv(65536), b"")))
            assert [reply.status for reply in found] == [408]
    finally:
        for sock in socks:
            sock.close()


def test_a_client_that_stops_reading_holds_its_own_stream_up(gateway: Address, echo: EchoServer) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(LONG)
        sock.connect(gateway)
        sock.sendall(request(compact(chat("!count 200000", stream=True))))
        until(lambda: echo.running)
        for _ in range(10):
            assert ask(gateway, "POST", CHAT, chat("meanwhile")).status == 200
        assert echo.running == 1  # 40 MB of events do not fit into any buffer on the way
    until(lambda: not echo.running)


# ---------------------------------------------------------------- what a server says stays where it belongs, too


def test_a_header_that_cannot_be_passed_on_ends_the_call(caplog: pytest.LogCaptureFixture) -> None:
    network = {"max_retries": 0}
    for field in ("X-A: \x7f\r\n", "X-A: \x01\r\n", "X-A: b\r\n folded\r\n"):
        with Scripted(["request", answer(completion("here"), extra="X-B: b\r\n" + field)]) as server:
            config = ProviderConfig.from_dict({"keys": [{"url": server.url}], "network_config": network}, environ={})
            with own(Gateway(Settings(config))) as address:
                (found,) = replies(talk(address, request(compact(chat("x")))))
        assert found.status == 502 and b"cannot be read" in found.body
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_type_cannot_end_its_event() -> None:
    made = {"type": "response.created\n\ndata: [DONE]\n\n", "sequence_number": 0, "response": {}}
    last = {"type": "response.completed", "sequence_number": 1, "response": {"status": "completed"}}
    with Scripted(["request", SSE_HEAD, event(made), event(last), LAST_CHUNK]) as server:
        config = ProviderConfig.from_dict({"keys": [{"url": server.url}], "native_responses": True}, environ={})
        with own(Gateway(Settings(config))) as address:
            body = compact({"model": "m", "input": "x", "stream": True})
            (found,) = replies(talk(address, request(body, path="/v1/responses")))
    blocks = found.body.decode().split("\n\n")
    assert [json.loads(block.partition("\ndata: ")[2]) for block in blocks[:-1]] == [made, last]
