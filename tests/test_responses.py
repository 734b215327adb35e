"""The Responses API of the library over sockets: converted, native, and the one where the other is missing."""

import json
import logging
import signal
import threading
import time

import pytest

import wire
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event, steps
from validity import check_event, check_response, openai_types
from vllm_bridge import (
    APITimeoutError,
    BadRequestError,
    Cancellation,
    IncompleteStreamError,
    Key,
    NetworkConfig,
    NotFoundError,
    ProviderConfig,
    RequestCancelledError,
    Trace,
    VLLMProvider,
)
from vllm_bridge.api.chat import ChatAccumulator
from vllm_bridge.echo import EchoServer
from vllm_bridge.api.responses import from_chat

LONG = 30.0
NO_ROUTE = answer(wire.load("err_pooling_model_v1_responses").body, "404 Not Found")
NO_SUCH_RESPONSE = answer(wire.load("responses_previous_id").body, "404 Not Found", extra="Connection: close\r\n")
PLAIN = wire.load("responses_plain")
STREAM = wire.load("think_responses_stream")
CHAT_STREAM = ["request", SSE_HEAD, event(delta("hel")), event(delta("lo", "stop")), event("[DONE]"), LAST_CHUNK]
OPEN_STREAM = ["request", SSE_HEAD, event(delta("hel")), "hold"]
OPERATIONS = ["responses", "responses_stream"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)


def provider(url, native=False, **options):
    return VLLMProvider(config=ProviderConfig(NetworkConfig(url, max_retries=0), native_responses=native, **options))


def paths(server):
    return [request.line.split()[1] for request in server.requests]


# ---------------------------------------------------------------- over chat

def recorded_chats(*prefixes):
    names = [name for prefix in prefixes for name in wire.names(prefix)]
    return [name for name in names if wire.load(name).streams and wire.load(name).end == "chunked terminator"]


@pytest.mark.parametrize("name", recorded_chats("chat_stream", "think_stream"))
def test_a_recorded_chat_stream_arrives_as_valid_events_and_the_reply_of_the_whole(name):
    transcript = wire.load(name)
    folded = ChatAccumulator()
    for payload in transcript.payloads:
        folded.feed(payload)
    expected = from_chat(folded.completion())
    n = transcript.request["body"].get("n", 1)
    with Scripted(steps(transcript)) as server, provider(server.url) as vllm:
        with vllm.responses_stream(model="chat", input="Hi", n=n) as stream:
            events = list(stream)
        assert paths(server) == ["/v1/chat/completions"]
    for one in events:
        check_event(one)
    assert [one.sequence_number for one in events] == list(range(len(events)))
    final = events[-1].response
    for field in ("id", "output", "status", "incomplete_details", "chat_choices"):
        assert final[field] == expected[field], field
    assert final["usage"] is None or final["usage"] == expected["usage"]


@pytest.mark.parametrize("name", ["kill_engine_chat_stream", "kill_api_chat_stream", "kill_sigterm_api_chat_stream"])
def test_a_server_that_dies_ends_the_stream_with_one_failure(name):
    transcript = wire.load(name)
    with Scripted(steps(transcript)) as server, provider(server.url) as vllm:
        events = list(vllm.responses_stream(model="chat", input="count"))
    for one in events:
        check_event(one)
    ends = [one.type for one in events if one.type in (
        "response.completed", "response.incomplete", "response.failed", "error")]
    assert ends == ["response.failed"] and events[-1].type == "response.failed"
    said = "".join(choice["delta"].get("content") or "" for sent in transcript.payloads
                   for choice in sent.get("choices") or ())
    assert said and events[-1].response.output_text == said
    assert events[-1].response.error.code == "server_error"


@pytest.mark.parametrize("field, value", [
    ("previous_response_id", "resp_1"), ("conversation", "conv_1"), ("background", True), ("prompt", {"id": "p"}),
])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_needs_a_store_is_refused_before_anything_is_sent(operation, field, value):
    with EchoServer() as echo, provider(echo.url) as vllm:
        with pytest.raises(BadRequestError) as caught:
            getattr(vllm, operation)(model="echo", input="Hi", **{field: value})
        assert caught.value.param == field and field in caught.value.message
        assert not echo.requests


def test_what_is_left_out_is_said_in_the_log_and_in_the_reply(caplog):
    tools = [{"type": "web_search"}, {"type": "file_search"}]
    with EchoServer() as echo, provider(echo.url) as vllm, caplog.at_level(logging.WARNING, "vllm_bridge"):
        reply = vllm.responses(model="echo", input="Hi", tools=tools)
        check_response(reply)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 2 and "'web_search'" in told[0] and "'file_search'" in told[1]
        for name in ("web_search", "file_search"):
            assert name in reply["metadata"]["vllm_bridge_warning"]
        assert reply.extra_fields == {"dropped_unsupported_tools": ["web_search", "file_search"]}
        assert "extra_fields" not in vllm.responses(model="echo", input="Hi")
        assert "tools" not in echo.requests[-1].json
        caplog.clear()
        events = list(vllm.responses_stream(model="echo", input="Hi", tools=tools[:1]))
        assert len(caplog.records) == 1
        for one in (events[0], events[-1]):
            assert "web_search" in one.response["metadata"]["vllm_bridge_warning"]
            assert one.response["extra_fields"] == {"dropped_unsupported_tools": ["web_search"]}


def test_no_request_fills_the_log(caplog):
    tools = [{"type": "%d\n%s" % (number, "x" * 10000)} for number in range(100)]
    body = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    with EchoServer() as echo, provider(echo.url) as vllm, caplog.at_level(logging.WARNING, "vllm_bridge"):
        vllm.responses(model="echo", input="Hi", tools=tools)
        assert len(caplog.records) == 10
        vllm.messages(tools=tools, **body)
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 20 and all(text.isprintable() and len(text) < 500 for text in told)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("read", [0, 1, 3])
def test_leaving_a_stream_ends_the_generation(native, read):
    first = [chunk(b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()))
             for one in STREAM.payloads[:5]]
    script = ["request", SSE_HEAD, *first, "hold"] if native else OPEN_STREAM
    with Scripted(script) as server, provider(server.url, native) as vllm:
        with vllm.responses_stream(model="m", input="Hi") as stream:
            for _ in range(read):
                next(stream)
        server.until("eof", seconds=LONG)
        assert list(stream) == []


def test_the_settings_of_a_call_hold_for_responses_too():
    trace, other_trace = Trace(), Trace()
    with EchoServer() as echo, provider(echo.url) as vllm:
        other = vllm.with_options(headers={"X-Team": "red"}, trace=trace)
        other.responses(model="echo", input="Hi")
        list(other.with_options(trace=other_trace).responses_stream(model="echo", input="Hi"))
        assert [request.headers["x-team"] for request in echo.requests] == ["red", "red"]
        vllm.responses(model="echo", input="Hi")
        assert "x-team" not in echo.requests[-1].headers
        for one in (trace, other_trace):
            assert one.attempts == 1 and one.server == echo.url and one.request_id
        with pytest.raises(APITimeoutError):
            vllm.with_options(timeout=0.2).responses(model="echo", input="!stall 30 Hi")
        with pytest.raises(APITimeoutError):
            vllm.with_options(timeout=0.2).responses_stream(model="echo", input="!stall 30 Hi")
        *_, last = vllm.with_options(stream_idle_timeout=0.3).responses_stream(
            model="echo", input="!stall-after 2 30 one two")
        assert last.type == "response.failed" and "no event came" in last.response.error.message


@pytest.mark.parametrize("native", [False, True])
def test_a_cancelled_stream_is_no_failed_response(native):
    cancel, began = Cancellation(), threading.Event()
    created = [chunk(b"data: %s\n\n" % json.dumps(STREAM.payloads[0]).encode())]
    script = ["request", SSE_HEAD, *created, "hold"] if native else OPEN_STREAM

    def leave():
        began.wait(LONG)
        cancel.cancel("enough")

    thread = threading.Thread(target=leave)
    thread.start()
    seen = []
    try:
        with Scripted(script) as server, provider(server.url, native) as vllm:
            with pytest.raises(RequestCancelledError, match="enough"):
                for one in vllm.with_options(cancel=cancel).responses_stream(model="m", input="Hi"):
                    seen.append(one.type)
                    if native or one.type.endswith("delta"):
                        began.set()
            server.until("eof", seconds=LONG)
    finally:
        began.set()
        thread.join(LONG)
    assert "response.failed" not in seen and seen[0] == "response.created"


@pytest.mark.parametrize("native", [False, True])
def test_the_raw_request_and_reply_come_along(native):
    own = answer(PLAIN.body if native else completion("hello"))
    options = {"send_back_raw_request": True, "send_back_raw_response": True}
    with Scripted(["request", own, "again"]) as server, provider(server.url, native, **options) as vllm:
        reply = vllm.responses(model="m", input="Hi", temperature=0)
        assert reply["extra_fields"]["raw_request"] == server.requests[0].json
        assert ("messages" in server.requests[0].json) is not native
        assert own.endswith(reply["extra_fields"]["raw_response"].encode())
        told = json.loads(vllm.forward("responses", {"model": "m", "input": "Hi"}).body)
        assert told["extra_fields"]["raw_request"] == server.requests[1].json


# ---------------------------------------------------------------- as clients without a store read it

SEALED = {"store": False, "include": ["reasoning.encrypted_content"]}


def sealed_by(vllm, operation):
    """Return a reasoning item as a client without a store hands it back."""
    fields = dict(SEALED, model="echo", input="!think Hi")
    if operation == "responses":
        output = vllm.responses(**fields).output
    else:
        *events, last = vllm.responses_stream(**fields)
        done = [one.item for one in events if one.type == "response.output_item.done"]
        output = last.response.output
        assert done == output
    assert output[0].type == "reasoning" and "hear it again" in output[0].summary[0].text
    return {"type": "reasoning", "id": output[0].id, "summary": [], "encrypted_content": output[0]["encrypted_content"]}


@pytest.mark.parametrize("keys, others, known", [
    ([], [], True), (["a"], ["a"], True), (["a", "b"], ["b", "a"], True), (["a"], ["b"], False), (["a"], [], False),
])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_sealed_reasoning_is_read_by_whoever_has_the_keys(operation, keys, others, known):
    with EchoServer() as echo:
        made, read = (provider(echo.url, keys=[Key(value) for value in values]) for values in (keys, others))
        with made, read:
            item = sealed_by(made, operation)
            getattr(read.with_options(timeout=20), operation)(
                model="echo", input=[item, {"role": "assistant", "content": "a"}, {"role": "user", "content": "Hi"}])
        first = echo.requests[-1].json["messages"][0]
    assert ("hear it again" in first.get("reasoning", "")) is known


@pytest.mark.parametrize("operation", ["responses", "responses_stream", "forward"])
def test_a_servers_own_route_sees_no_seal_of_ours(operation):
    with EchoServer() as echo, provider(echo.url) as vllm:
        item = sealed_by(vllm, "responses")
    foreign = dict(item, encrypted_content="gAAAAABl")
    body = {"model": "m", "input": [item, foreign, {"role": "user", "content": "Hi"}]}
    whole = steps(STREAM) if operation == "responses_stream" else steps(PLAIN)
    with Scripted(whole) as server, provider(server.url, True) as vllm:
        if operation == "forward":
            vllm.forward("responses", body, json.dumps(body).encode())
        else:
            call(vllm, operation, **body)
        opened, left, _ = server.requests[0].json["input"]
    assert "encrypted_content" not in opened and "hear it again" in opened["content"][0]["text"]
    assert left == foreign


TOO_LONG = wire.load("err_context_too_long")


@pytest.mark.parametrize("operation", ["responses", "responses_stream", "forward"])
def test_a_request_that_is_too_long_has_the_apis_code(operation):
    with Scripted(["request", answer(TOO_LONG.body, "400 Bad Request")]) as server, provider(server.url) as vllm:
        with pytest.raises(BadRequestError) as caught:
            call(vllm, operation, model="m", input="Hi")
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.message == TOO_LONG.json["error"]["message"]


def test_a_stream_that_becomes_too_long_fails_with_the_apis_code():
    late = event(json.loads(TOO_LONG.body))
    with Scripted(["request", SSE_HEAD, event(delta("hel")), late, LAST_CHUNK]) as server, provider(server.url) as vllm:
        *_, last = vllm.responses_stream(model="m", input="Hi")
    assert last.type == "response.failed" and last.response.error.code == "context_length_exceeded"
    assert last.response.error.message == TOO_LONG.json["error"]["message"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_completed_at_is_the_time_of_the_end(operation):
    with EchoServer() as echo, provider(echo.url) as vllm:
        before = int(time.time())
        if operation == "responses":
            told = vllm.responses(model="echo", input="Hi")
        else:
            *events, last = vllm.responses_stream(model="echo", input="Hi")
            told = last.response
            assert events[0].response["completed_at"] is None
        assert told["created_at"] <= told["completed_at"] and before <= told["completed_at"] <= int(time.time())


class SoftLimit(Exception):
    """Like celery's SoftTimeLimitExceeded."""


def test_an_exception_of_a_signal_handler_ends_a_stream_as_itself():
    def handler(signum, frame):
        raise SoftLimit("the task's own limit")

    before = signal.signal(signal.SIGALRM, handler)
    seen = []
    try:
        with Scripted(OPEN_STREAM) as server, provider(server.url) as vllm:
            stream = vllm.responses_stream(model="m", input="Hi")
            with pytest.raises(SoftLimit):
                for one in stream:
                    seen.append(one.type)
                    if one.type.endswith("delta"):
                        signal.setitimer(signal.ITIMER_REAL, 0.05)
            server.until("eof", seconds=LONG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen[-1] == "response.output_text.delta"


# ---------------------------------------------------------------- native

NATIVE = [name for name in wire.names() if "responses" in name and wire.load(name).request["path"] == "/v1/responses"]
NATIVE_STREAMS = [name for name in NATIVE if wire.load(name).streams]


@pytest.mark.skipif(openai_types is None, reason="openai is not installed")
@pytest.mark.parametrize("name", [name for name in NATIVE_STREAMS if wire.load(name).end == "chunked terminator"])
def test_native_events_are_vllms_own_and_fit_openais_types(name):
    import pydantic

    adapter = pydantic.TypeAdapter(openai_types.ResponseStreamEvent)
    transcript = wire.load(name)
    with Scripted(steps(transcript)) as server, provider(server.url, True) as vllm:
        events = list(vllm.responses_stream(input="Hi"))
    assert events == transcript.payloads
    for one in events:
        adapter.validate_python(one)


@pytest.mark.parametrize("name", [name for name in NATIVE_STREAMS if wire.load(name).end.startswith("EOF BEFORE")])
def test_a_native_stream_that_is_closed_keeps_what_arrived(name):
    transcript = wire.load(name)
    items = []
    with Scripted(steps(transcript)) as server, provider(server.url, True) as vllm:
        with pytest.raises(IncompleteStreamError) as caught:
            for one in vllm.responses_stream(input="Hi"):
                items.append(one)
    assert items == transcript.payloads
    partial = caught.value.partial
    assert partial.id == items[0].response.id and partial.status == "in_progress"
    said = "".join(sent.get("delta", "") for sent in transcript.payloads)
    assert partial.output_text == said
    assert bool(said) is (name != "s_err_responses_logprobs")


def test_a_native_error_in_the_stream_is_raised_with_its_status():
    told = {"type": "error", "error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    failed = b"event: error\ndata: %s\n\n" % json.dumps(told).encode()
    created = b"event: response.created\ndata: %s\n\n" % json.dumps(STREAM.payloads[0]).encode()
    with Scripted(["request", SSE_HEAD, chunk(created), chunk(failed), LAST_CHUNK]) as server:
        with provider(server.url, True) as vllm:
            stream = vllm.responses_stream(input="Hi")
            assert next(stream).type == "response.created"
            with pytest.raises(BadRequestError, match="too long"):
                list(stream)


@pytest.mark.parametrize("name", [name for name in NATIVE if wire.load(name).status == 200
                                  and not wire.load(name).streams])
def test_a_native_reply_is_forwarded_byte_for_byte(name):
    transcript = wire.load(name)
    with Scripted(steps(transcript)) as server, provider(server.url, True) as vllm:
        reply = vllm.forward("responses", transcript.request["body"])
        assert server.requests[0].json == transcript.request["body"]
    assert reply.body == transcript.body and reply.content_type == "application/json"


def test_forward_converts_where_it_is_not_native():
    with EchoServer() as echo, provider(echo.url) as vllm:
        body = {"model": "echo", "input": "Hi", "instructions": "Be short"}
        told = json.loads(vllm.forward("responses", body).body)
        check_response(told)
        whole = vllm.responses(**body)
        for field in set(whole) - {"id", "created_at", "output"}:
            assert told[field] == whole[field], field
        assert told["output"][0]["content"] == whole["output"][0]["content"]
        assert body == {"model": "echo", "input": "Hi", "instructions": "Be short"}


# ---------------------------------------------------------------- one where the other is missing

def call(vllm, operation, **fields):
    """Return the text of the answer, by either operation."""
    if operation == "forward":
        output = json.loads(vllm.forward("responses", fields).body)["output"]
        return output[-1]["content"][0]["text"]
    if operation == "responses":
        return vllm.responses(**fields).output_text
    *_, last = vllm.responses_stream(**fields)
    return last.response.output_text


@pytest.mark.parametrize("then", ["responses", "responses_stream", "forward"])
@pytest.mark.parametrize("first", ["responses", "responses_stream", "forward"])
def test_auto_falls_back_on_a_bare_404_and_remembers(first, then):
    def over_chat(operation):
        return CHAT_STREAM if operation == "responses_stream" else ["request", answer(completion("hello"))]

    script = ["request", NO_ROUTE] + over_chat(first) + over_chat(then)
    with Scripted(script) as server, provider(server.url, "auto") as vllm:
        assert call(vllm, first, model="m", input="Hi") == "hello"
        assert call(vllm.with_options(timeout=20), then, model="m", input="Hi") == "hello"
        assert paths(server) == ["/v1/responses"] + ["/v1/chat/completions"] * 2
        with pytest.raises(BadRequestError) as caught:
            vllm.responses(model="m", input="Hi", previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id" and len(server.requests) == 3


@pytest.mark.parametrize("operation", ["responses", "responses_stream", "forward"])
def test_auto_stays_native_where_the_route_is_there(operation):
    native = steps(STREAM) if operation == "responses_stream" else steps(PLAIN)
    with Scripted(["request", NO_SUCH_RESPONSE], native) as server, provider(server.url, "auto") as vllm:
        with pytest.raises(NotFoundError, match="'resp_nope' not found"):
            call(vllm, operation, input="hello", previous_response_id="resp_nope")
        expected = "\n\nHello" if operation == "responses_stream" else "Hello! How can I help you today?"
        assert [call(vllm, operation, input="hello") for _ in range(2)] == [expected] * 2
        assert paths(server) == ["/v1/responses"] * 3


@pytest.mark.parametrize("operation", OPERATIONS)
def test_native_and_nothing_else(operation):
    models = answer({"object": "list", "data": [{"id": "embed"}]})
    with Scripted(["request", NO_ROUTE, "request", models, "hold"]) as server, provider(server.url, True) as vllm:
        with pytest.raises(NotFoundError, match="does not offer responses .*its models are: embed"):
            getattr(vllm, operation)(model="m", input="Hi")
        assert paths(server) == ["/v1/responses", "/v1/models"]


@pytest.mark.parametrize("native", [True, "auto"])
def test_state_and_vllms_own_parameters_go_up_natively(native):
    sent = {"model": "m", "input": "Hi", "previous_response_id": "resp_1", "store": True, "top_k": 3,
            "tools": [{"type": "web_search"}]}
    with Scripted(steps(PLAIN)) as server, provider(server.url, native) as vllm:
        assert vllm.responses(**sent, background=None) == PLAIN.json
        assert server.requests[0].json == sent


def test_the_raw_request_and_reply_of_a_forwarded_chat_come_along():
    options = {"send_back_raw_request": True, "send_back_raw_response": True}
    own = answer(completion("hello"))
    with Scripted(["request", own, "hold"]) as server, provider(server.url, **options) as vllm:
        told = json.loads(vllm.forward("chat_completion", {"messages": [{"role": "user", "content": "Hi"}]}).body)
        assert told["choices"] == completion("hello")["choices"]
        assert told["extra_fields"]["raw_request"] == server.requests[0].json
        assert own.endswith(told["extra_fields"]["raw_response"].encode())
