"""The whole gateway, the same under its own server, wsgiref.validate, gunicorn and waitress."""

import http.client
import json
import socket
import time
from typing import Any, Dict, Iterator, Optional, Tuple

import pytest

from faces import FACES, LONG, Address, ask, chat, face, until
from scripted import Scripted, answer
from vllm_bridge.echo import EchoServer

KEY = "sk-up-1"
BOUNDARY = "frontier"


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer(api_key=KEY, models=("echo", "other")) as server:
        yield server


@pytest.fixture(scope="module", params=FACES)
def gateway(request: Any, echo: EchoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    if request.param != "own":
        for name in {"gthread": ("gunicorn",), "gevent": ("gunicorn", "gevent")}.get(request.param, ("waitress",)):
            pytest.importorskip(name)
    config = tmp_path_factory.mktemp("gateway") / "config.json"
    config.write_text(json.dumps({"providers": {"vllm": {"network_config": {"retry_backoff_initial_ms": 10}}}}))
    environ = {"VLLM_BRIDGE_CONFIG": str(config), "VLLM_BRIDGE_UPSTREAM": echo.url, "VLLM_BRIDGE_UPSTREAM_KEY": KEY,
               "VLLM_BRIDGE_MAX_BODY_MB": "1"}
    with face(request.param, environ) as address:
        yield address


def form(*parts: Tuple[str, str, bytes]) -> Tuple[bytes, Dict[str, str]]:
    body = b""
    for name, filename, value in parts:
        extra = '; filename="%s"' % filename if filename else ""
        body += ('--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n' % (BOUNDARY, name, extra)).encode()
        body += value + b"\r\n"
    return body + b"--%s--\r\n" % BOUNDARY.encode(), {"Content-Type": "multipart/form-data; boundary=" + BOUNDARY}


# ---------------------------------------------------------------- operations


def test_chat(gateway: Address, echo: EchoServer) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("Hello", top_k=3, nonsense={"a": None}))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["choices"][0]["message"]["content"] == "You said: Hello"
    sent = echo.requests[-1].json
    assert (sent["model"], sent["top_k"], sent["nonsense"]) == ("echo", 3, {"a": None})


def test_a_reply_is_what_the_server_sent_to_the_byte(gateway: Address, echo: EchoServer) -> None:
    ours = ask(gateway, "POST", "/v1/chat/completions", chat("Hellö"), {"X-Request-Id": "same"})
    port = int(echo.url.rpartition(":")[2])
    theirs = ask(("127.0.0.1", port), "POST", "/v1/chat/completions", dict(chat("Hellö"), model="echo"),
                 {"X-Request-Id": "same", "Authorization": "Bearer " + KEY})

    def without_time(body: bytes) -> bytes:
        created = json.loads(body)["created"]
        return body.replace(b'"created":%d' % created, b'"created":0')

    assert without_time(ours.body) == without_time(theirs.body)


def test_chat_stream(gateway: Address, echo: EchoServer) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("Hello", stream=True))
    events = answer.events()
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "You said: Hello"
    assert not any("usage" in chunk for chunk in chunks)  # nobody asked for it
    assert echo.requests[-1].json["stream_options"] == {"include_usage": True}  # the gateway counts tokens
    assert answer.headers["cache-control"] == "no-cache"


def test_chat_stream_with_usage(gateway: Address) -> None:
    body = chat("Hello", stream=True, stream_options={"include_usage": True})
    events = ask(gateway, "POST", "/v1/chat/completions", body).events()
    assert json.loads(events[-2])["choices"] == []
    assert json.loads(events[-2])["usage"]["completion_tokens"] > 0


def test_text_completion(gateway: Address) -> None:
    body = {"model": "echo", "prompt": "Hello"}
    assert "Hello" in ask(gateway, "POST", "/v1/completions", body).json["choices"][0]["text"]
    events = ask(gateway, "POST", "/v1/completions", dict(body, stream=True)).events()
    assert events[-1] == "[DONE]"
    assert "Hello" in "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def test_embeddings_in_floats_and_base64(gateway: Address) -> None:
    floats = ask(gateway, "POST", "/v1/embeddings", {"model": "echo", "input": ["a", "b"]}).json["data"]
    assert [len(row["embedding"]) for row in floats] == [8, 8]
    coded = ask(gateway, "POST", "/v1/embeddings", {"model": "echo", "input": "a", "encoding_format": "base64"}).json
    assert isinstance(coded["data"][0]["embedding"], str)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/openai/v1/rerank", "/openai/rerank"])
def test_rerank_as_the_page_prints_it(gateway: Address, path: str) -> None:
    documents = [
        {"text": "Machine learning is a subset of AI."},
        {"text": "Python is a programming language."},
        {"text": "Deep learning uses neural networks."},
    ]
    body = {"model": "vllm/echo", "query": "What is machine learning?", "documents": documents,
            "params": {"return_documents": True}}
    results = ask(gateway, "POST", path, body).json["results"]
    assert {result["index"] for result in results} == {0, 1, 2}
    assert [result["document"] for result in results] == [documents[result["index"]] for result in results]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)


def test_responses(gateway: Address) -> None:
    answer = ask(gateway, "POST", "/v1/responses", {"model": "vllm/echo", "input": "Hello"}).json
    assert (answer["object"], answer["status"]) == ("response", "completed")
    assert answer["output"][0]["content"][0]["text"] == "You said: Hello"


def test_responses_stream(gateway: Address) -> None:
    answer = ask(gateway, "POST", "/v1/responses", {"model": "vllm/echo", "input": "Hello", "stream": True})
    blocks = answer.body.decode().split("\n\n")[:-1]
    kinds = []
    for number, block in enumerate(blocks):
        first, second = block.split("\n")
        event = json.loads(second[len("data: "):])
        assert first == "event: " + event["type"]
        assert event["sequence_number"] == number
        kinds.append(event["type"])
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"


def test_a_transcription_carries_every_field(gateway: Address, echo: EchoServer) -> None:
    body, headers = form(
        ("file", "a.wav", b"RIFF1234WAVE" + bytes(1000)), ("model", "", b"vllm/echo"), ("language", "", b"de"),
        ("timestamp_granularities[]", "", b"word"), ("timestamp_granularities[]", "", b"segment"),
        ("unheard_of", "", b"yes"),
    )
    answer = ask(gateway, "POST", "/v1/audio/transcriptions", body, headers)
    assert "a.wav" in answer.json["text"]
    sent = echo.requests[-1].form
    assert ("model", "echo") in sent and ("language", "de") in sent and ("unheard_of", "yes") in sent
    assert [value for name, value in sent if name == "timestamp_granularities[]"] == ["word", "segment"]


def test_a_transcription_streams(gateway: Address) -> None:
    body, headers = form(("model", "", b"echo"), ("stream", "", b"true"), ("file", "a.wav", b"RIFF1234WAVEdata"))
    events = ask(gateway, "POST", "/v1/audio/transcriptions", body, headers).events()
    assert events.pop() == "[DONE]"
    kinds = [json.loads(event)["type"] for event in events]
    assert set(kinds[:-1]) == {"transcript.text.delta"} and kinds[-1] == "transcript.text.done"


@pytest.mark.parametrize("path", ["/v1", "/openai/v1", "/openai"])
def test_a_text_transcript_is_text(gateway: Address, path: str) -> None:
    body, headers = form(("model", "", b"echo"), ("response_format", "", b"text"), ("file", "a.wav", b"RIFF1234WAVE"))
    raw = ask(gateway, "POST", path + "/audio/transcriptions", body, headers)
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    wrapped = ask(gateway, "POST", path + "/audio/transcriptions", body.replace(b"text\r", b"json\r"), headers)
    assert wrapped.json["text"] == raw.body.decode()


@pytest.mark.parametrize("kind", ["text", "srt", "vtt"])
@pytest.mark.parametrize("reply", [
    answer({"text": "1\n\u00e9", "usage": {"type": "duration", "seconds": 1}}), answer("1\n\u00e9"),
    answer("1\n\u00e9".encode(), content_type="text/plain; charset=utf-8"),
])
def test_transcripts_in_text_whatever_the_server_sends(kind: str, reply: bytes) -> None:
    with Scripted(["request", reply]) as server, face("own", {"VLLM_BRIDGE_UPSTREAM": server.url}) as address:
        body, headers = form(("model", "", b"m"), ("response_format", "", kind.encode()), ("file", "a.wav", b"RIFF"))
        found = ask(address, "POST", "/v1/audio/transcriptions", body, headers)
    assert (found.headers["content-type"], found.body.decode()) == ("text/plain; charset=utf-8", "1\n\u00e9")


@pytest.mark.parametrize("name", [b'a"b".wav', "\u00e9.wav".encode("latin-1"), "\u5f55\u97f3.wav".encode("gbk")])
def test_a_file_may_be_called_anything(gateway: Address, echo: EchoServer, name: bytes) -> None:
    body, headers = form(("model", "", b"echo"), ("file", "NAME", b"RIFF1234WAVE"))
    assert ask(gateway, "POST", "/v1/audio/transcriptions", body.replace(b"NAME", name), headers).status == 200
    file = echo.requests[-1].files["file"]
    assert (file.filename.replace("%22", '"'), file.content) == (name.decode("latin-1"), b"RIFF1234WAVE")


def test_models(gateway: Address) -> None:
    listed = ask(gateway, "GET", "/v1/models").json
    assert listed["object"] == "list"
    assert {model["id"]: model["max_model_len"] for model in listed["data"]} == {
        "vllm/echo": 32768, "vllm/other": 32768}
    for path in ("/v1/models/vllm/other", "/v1/models/other", "/openai/models/vllm%2Fother"):
        assert ask(gateway, "GET", path).json["id"] == "vllm/other"
    missing = ask(gateway, "GET", "/v1/models/nobody")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics"])
def test_the_gateway_tells_of_itself(gateway: Address, path: str) -> None:
    answer = ask(gateway, "GET", path)
    assert answer.status == 200 and answer.body
    head = ask(gateway, "HEAD", path)
    assert (head.status, head.body) == (200, b"")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("path, meant", [
    ("/chat/completions", "/v1/chat/completions"), ("//v1/chat/completions", "/v1/chat/completions"),
    ("/v1//chat/completions", "/v1/chat/completions"), ("/v1/v1/chat/completions", "/v1/chat/completions"),
    ("//chat//completions", "/v1/chat/completions"), ("/v1/v1/v1/rerank", "/v1/rerank"),
    ("/openai/v1/v1/responses", "/openai/v1/responses"), ("///openai/responses", "/openai/responses"),
    ("/v1/v1//models", "/v1/models"), ("/v1/v1", None), ("//", None), ("/v1x/models", None), ("/v2/v1/models", None),
])
def test_a_hint_at_the_path_that_was_meant(
    gateway: Address, path: str, meant: Optional[str], request: pytest.FixtureRequest
) -> None:
    if path.startswith("//") and request.node.callspec.params["gateway"] in ("validated", "waitress"):
        pytest.skip("waitress makes one slash of several at the beginning")
    found = ask(gateway, "POST", path, chat("x"))
    assert (found.status, found.error["code"]) == (404, "route_not_found")
    assert found.error["message"].partition("; did you mean ")[2] == ("%s?" % meant if meant else "")


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/responses", "/v1/models", "/ws", "/health"])
def test_a_websocket_is_told_that_there_is_none(gateway: Address, path: str) -> None:
    handshake = {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                 "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    found = ask(gateway, "GET", path, None, handshake)
    assert (found.status, found.error["code"]) == (426, "websocket_not_offered")
    assert ask(gateway, "GET", "/v1/models", None, {"Connection": "Upgrade", "Upgrade": "h2c"}).status == 200


@pytest.mark.parametrize("path, body, message", [
    ("/v1/chat/completions", {"model": "echo"}, "messages is required for chat completion"),
    ("/v1/chat/completions", {"model": "echo", "messages": []}, "messages is required for chat completion"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model is required"),
    ("/v1/chat/completions", {"model": "vllm/", "messages": [1]}, "model is required"),
    ("/v1/completions", {"model": "echo"}, "prompt is required for text completion"),
    ("/v1/embeddings", {"model": "echo", "input": None}, "input is required for embeddings"),
    ("/v1/responses", {"model": "echo"}, "input is required for responses"),
    ("/v1/chat/completions", b"{", "invalid request format: the body is not JSON"),
    ("/v1/chat/completions", b"[1]", "invalid request format: the body must be a JSON object"),
    ("/v1/chat/completions", b"", "invalid request format: the body is empty"),
    ("/v1/chat/completions", b'{"model": "\xff"}', "invalid request format: the body is not UTF-8"),
    ("/v1/chat/completions", b'{"a":' * 30000, "invalid request format: the "),
    ("/v1/audio/transcriptions", b"x", "Content-Type must be multipart/form-data"),
])
def test_a_wrong_body_never_reaches_the_server(
    gateway: Address, echo: EchoServer, path: str, body: Any, message: str
) -> None:
    before = len(echo.requests)
    answer = ask(gateway, "POST", path, body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.error["message"].startswith(message)
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert len(echo.requests) == before


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_json_in_each_unicode_coding(gateway: Address, echo: EchoServer, coding: str) -> None:
    """RFC 4627 §3 tells them apart by their first bytes, also without a byte order mark."""
    body = json.dumps(chat("Hell\u00f6"), ensure_ascii=False).encode(coding)
    answer = ask(gateway, "POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "You said: Hell\u00f6")
    assert echo.requests[-1].json["model"] == "echo"


def test_a_transcription_needs_a_file(gateway: Address) -> None:
    body, headers = form(("model", "", b"echo"))
    answer = ask(gateway, "POST", "/v1/audio/transcriptions", body, headers)
    assert (answer.status, answer.error["message"]) == (400, "file is required")


@pytest.mark.parametrize("method, path, operation", [
    ("POST", "/v1/audio/speech", "speech"), ("POST", "/openai/v1/images/generations", "image_generation"),
    ("GET", "/v1/files/abc/content", "file_content"), ("DELETE", "/v1/files/abc", "file_delete"),
    ("POST", "/v1/batches", "batch_create"), ("GET", "/openai/containers/a/files/b", "container_file_retrieve"),
])
def test_unsupported_operations(gateway: Address, method: str, path: str, operation: str) -> None:
    answer = ask(gateway, method, path)
    assert answer.status == 400
    assert answer.error["message"] == operation + " is not supported by vllm provider"
    assert answer.error["code"] == "unsupported_operation"
    assert answer.json["extra_fields"] == {"provider": "vllm", "request_type": operation}


def test_anthropics_messages(gateway: Address) -> None:
    body = {"model": "vllm/echo", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    answer = ask(gateway, "POST", "/v1/messages", body)
    assert (answer.status, answer.json["content"]) == (200, [{"type": "text", "text": "You said: Hi"}])
    streamed = ask(gateway, "POST", "/v1/messages", {**body, "stream": True})
    assert streamed.body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    refused = ask(gateway, "POST", "/v1/messages", {**body, "messages": []})
    assert (refused.status, refused.json["type"], refused.error["type"]) == (400, "error", "invalid_request_error")


def test_unknown_paths_and_methods(gateway: Address) -> None:
    unknown = ask(gateway, "GET", "/nowhere")
    assert (unknown.status, unknown.error["message"]) == (404, "Route not found: /nowhere")
    assert ask(gateway, "POST", "/chat/completions", {}).error["message"].endswith("/v1/chat/completions?")
    for path in ("/load_lora_adapter", "/sleep", "/invocations", "/v1/../metrics", "/openai", "/v1/models/",
                 "/openai/health"):
        assert ask(gateway, "POST", path, {}).status in (404, 405), path
    wrong = ask(gateway, "GET", "/v1/chat/completions")
    assert (wrong.status, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    assert wrong.error["code"] == "method_not_allowed"
    options = ask(gateway, "OPTIONS", "/v1/models")
    assert (options.status, options.headers["allow"], options.body) == (204, "GET, HEAD, OPTIONS", b"")


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/chat/completions"])
def test_head_has_no_body(gateway: Address, path: str) -> None:
    with socket.create_connection(gateway, timeout=LONG) as sock:  # http.client would hide one
        sock.sendall(("HEAD %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path).encode())
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 ") and received.index(b"\r\n\r\n") == len(received) - 4


def test_a_body_in_chunks_may_be_as_long_as_the_limit(gateway: Address) -> None:
    """One byte more is refused; waitress puts a body of chunks together before it asks us."""
    body = json.dumps(chat("x", filler="")).encode()
    body = body.replace(b'"filler": ""', b'"filler": "%s"' % (b"x" * (1024 * 1024 - len(body))))
    assert len(body) == 1024 * 1024
    for data, status in ((body, 200), (body + b" ", 413)):
        with socket.create_connection(gateway, timeout=LONG) as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n")
            for piece in (data[:-7], data[-7:]):
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 %d" % status


def test_a_body_over_the_limit(gateway: Address) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("x" * 1100000))
    assert answer.status == 413
    assert "1048576 bytes" in answer.error["message"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_the_servers_errors_keep_their_status_and_words(gateway: Address, status: int) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("!error %d" % status), {"X-Request-Id": "r-1"})
    assert answer.status == status
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"] == "r-1"


def test_an_error_dressed_as_success_gets_its_status(gateway: Address) -> None:
    assert ask(gateway, "POST", "/v1/chat/completions", chat("!error-in-200 404")).status == 404
    assert ask(gateway, "POST", "/v1/chat/completions", chat("!error-in-200 400", stream=True)).status == 400


def test_retry_after_is_passed_on(gateway: Address) -> None:
    body = chat("!error 429 !retry-after 90 x")
    answer = ask(gateway, "POST", "/v1/chat/completions", body)
    assert (answer.status, answer.headers["retry-after"]) == (429, "90")


# ---------------------------------------------------------------- streams that end badly, clients that leave


@pytest.mark.parametrize("how", ["!die-after 3", "!cut-after 3", "!error-after 3 500"])
def test_a_stream_that_breaks_ends_in_an_error(gateway: Address, how: str) -> None:
    events = ask(gateway, "POST", "/v1/chat/completions", chat(how + " one two three four", stream=True)).events()
    assert len(events) == 4
    assert set(json.loads(events[-1])["error"]) == {"message", "type", "param", "code"}


def test_a_responses_stream_that_breaks_ends_in_failure(gateway: Address) -> None:
    body = {"model": "echo", "input": "!die-after 3 one two three four", "stream": True}
    last = ask(gateway, "POST", "/v1/responses", body).body.decode().split("\n\n")[-2]
    assert last.startswith("event: response.failed\n") or last.startswith("event: error\n")


def test_events_leave_when_they_arrive(gateway: Address, echo: EchoServer) -> None:
    body = json.dumps(chat("!stall-after 3 %g one two three four" % LONG, stream=True)).encode()
    connection = http.client.HTTPConnection(*gateway, timeout=LONG)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    seen = b""
    while seen.count(b"\n\n") < 3:
        seen += response.read1(65536)
    response.close()
    connection.close()
    until(lambda: echo.running == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_generation_before_its_first_byte(
    gateway: Address, echo: EchoServer, stream: bool
) -> None:
    body = json.dumps(chat("!stall %g x" % LONG, stream=stream)).encode()
    with socket.create_connection(gateway, timeout=LONG) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: echo.running == 1)
    left = time.monotonic()
    until(lambda: echo.running == 0)
    assert time.monotonic() - left < LONG / 3  # far below what the server would have taken


def test_a_body_in_chunks(gateway: Address, echo: EchoServer) -> None:
    body = json.dumps(chat("Hello")).encode()
    connection = http.client.HTTPConnection(*gateway, timeout=LONG)
    connection.request("POST", "/v1/chat/completions", iter([body[:10], body[10:]]),
                       {"Content-Type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert json.loads(response.read())["choices"][0]["message"]["content"] == "You said: Hello"
    connection.close()


def test_a_page_under_a_name_of_its_own_gets_nothing(gateway: Address, echo: EchoServer) -> None:
    """DNS rebinding: for its browser the page and the gateway are of one origin, so nothing but Host tells."""
    before = len(echo.requests)
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/version"), ("GET", "/ready"),
                         ("POST", "/v1/chat/completions"), ("GET", "/nowhere"), ("HEAD", "/v1/models"),
                         ("OPTIONS", "/v1/models"), ("PUT", "/health")):
        answer = ask(gateway, method, path, chat("x") if method == "POST" else None, {"Host": "attacker.example:8080"})
        assert answer.status == 403, path
        if method != "HEAD":
            assert answer.error["code"] == "host_not_allowed" and "--allowed-host" in answer.error["message"]
    assert len(echo.requests) == before
    assert ask(gateway, "GET", "/health", None, {"Host": "attacker.example"}).status == 200
    assert ask(gateway, "GET", "/version", None, {"Host": "localhost:1"}).status == 200


# ---------------------------------------------------------------- headers


def test_request_ids(gateway: Address, echo: EchoServer) -> None:
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("x"), {"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert echo.requests[-1].headers["x-request-id"] == "mine-1"
    made = ask(gateway, "POST", "/v1/chat/completions", chat("x"), {"X-Request-Id": "not one\tword"})
    assert made.headers["x-request-id"] == echo.requests[-1].headers["x-request-id"]
    assert " " not in made.headers["x-request-id"]


def test_what_of_a_clients_headers_goes_up(gateway: Address, echo: EchoServer) -> None:
    ask(gateway, "POST", "/v1/chat/completions", chat("x"), {
        "Traceparent": "00-1-2-01", "X-Session-ID": "s", "Cookie": "secret", "x-bf-eh-x-team": "red",
        "x-bf-eh-authorization": "Bearer stolen",
    })
    up = echo.requests[-1].headers
    assert (up["traceparent"], up["x-session-id"], up["x-team"]) == ("00-1-2-01", "s", "red")
    assert "cookie" not in up
    assert up["authorization"] == "Bearer " + KEY


def test_web_pages_of_this_machine_may_call_and_others_not(gateway: Address, echo: EchoServer) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization, x-custom"}
    preflight = ask(gateway, "OPTIONS", "/v1/chat/completions", headers=asked)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-custom"
    assert preflight.headers["access-control-max-age"] == "86400"
    assert "origin" in preflight.headers["vary"].lower()
    answer = ask(gateway, "POST", "/v1/chat/completions", chat("x"), {"Origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["vary"] == "Origin"
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()

    for path in ("/v1/nothing", "/chat/completions", "/v1/models/x/y", "/anything/at/all"):
        assert ask(gateway, "OPTIONS", path, headers=asked).status == 200
    page = {"Origin": "http://tauri.localhost"}
    for method, path, body, status in (("POST", "/chat/completions", chat("x"), 404), ("PUT", "/v1/models", None, 405),
                                       ("POST", "/v1/chat/completions", chat("x" * 1100000), 413),
                                       ("POST", "/v1/chat/completions", b"{", 400), ("GET", "/ws", None, 404)):
        refused = ask(gateway, method, path, body, page)
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (status, page["Origin"])

    asked["Origin"] = "http://evil.example"
    assert ask(gateway, "OPTIONS", "/v1/chat/completions", headers=asked).status == 403
    before = len(echo.requests)
    refused = ask(gateway, "POST", "/v1/chat/completions", chat("x"), {"Origin": "http://localhost.evil.example"})
    assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")
    assert len(echo.requests) == before
