"""/v1/responses of the gateway, as OpenAI's own client sees it and on the wire: over chat, and native."""

import argparse
import json
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import wire
from faces import LONG, Address, ask, log_lines, own, until
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, event, steps
from validity import check_event, check_response, openai_types
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import add_arguments
from vllm_bridge.gateway.settings import read

PATH = "/v1/responses"
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
WEATHER = {"type": "function", "name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
CLOCK = {"type": "function", "name": "get_clock", "parameters": {"type": "object", "properties": {}}}


@contextmanager
def served(*flags: str) -> Iterator[Address]:
    """Run the gateway as ``vllm-bridge serve`` with these flags would."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {name: value for name, value in vars(parser.parse_args(flags)).items() if value is not None}
    with own(Gateway(read(given, {}))) as address:
        yield address


@contextmanager
def client_of(address: Address) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url="http://%s:%d/v1" % address, api_key="x", max_retries=0, timeout=LONG) as found:
        yield found


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def address(echo: EchoServer, tmp_path: Path) -> Iterator[Address]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"providers": {"vllm": {"network_config": {"retry_backoff_initial_ms": 10}}}}))
    with served("--config", str(path), "--upstream", echo.url) as found:
        yield found


@pytest.fixture
def client(address: Address) -> Iterator[Any]:
    with client_of(address) as found:
        yield found


def events_of(address: Address, **body: Any) -> List[Dict[str, Any]]:
    """Return the events of a streamed reply, after a look at their framing."""
    reply = ask(address, "POST", PATH, dict({"model": "vllm/m", "input": "Hi", "stream": True}, **body))
    assert reply.status == 200 and reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = reply.body.decode().split("\n\n")
    assert blocks.pop() == "" and b"data: [DONE]" not in reply.body
    found = []
    for block in blocks:
        first, second = block.split("\n")
        assert first.startswith("event: ") and second.startswith("data: ")
        found.append(json.loads(second[len("data: "):]))
        assert first[len("event: "):] == found[-1]["type"]
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    assert [one["type"] in ENDS for one in found] == [False] * (len(found) - 1) + [True]
    return found


# ---------------------------------------------------------------- the client: text


def test_text(client: Any, echo: EchoServer) -> None:
    raw = client.responses.with_raw_response.create(
        model="vllm/echo", input="Hello", instructions="Be short.", temperature=0, extra_body={"top_k": 5})
    check_response(raw.http_response.json())
    reply = raw.parse()
    assert reply.output_text == "You said: Hello" and reply.status == "completed" and reply.error is None
    assert reply.usage.output_tokens == 3 and reply.instructions == "Be short." and reply.model == "echo"
    assert raw.headers["x-request-id"] and reply.metadata == {}
    sent = echo.requests[-1]
    assert sent.path == "/v1/chat/completions" and sent.json["top_k"] == 5 and sent.json["model"] == "echo"
    assert [message["role"] for message in sent.json["messages"]] == ["system", "user"]


def test_a_stream(client: Any) -> None:
    events = list(client.responses.create(model="vllm/echo", input="Hello", stream=True))
    for one in events:
        check_event(one.to_dict(mode="json", exclude_unset=True))
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "You said: Hello"
    assert [one.type for one in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed" and events[-1].response.usage.output_tokens == 3


def test_the_streams_helper(client: Any) -> None:
    with client.responses.stream(model="vllm/echo", input="!think Hello") as stream:
        snapshots = [one.snapshot for one in stream if one.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text and final.output_text.strip() == "You said: Hello"
    assert [item.type for item in final.output] == ["reasoning", "message"]


def test_a_limit_and_logprobs(client: Any) -> None:
    ask_for = dict(model="vllm/echo", input="Hello you", max_output_tokens=2, top_logprobs=2,
                   include=["message.output_text.logprobs"])
    reply = client.responses.create(**ask_for)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    tokens = reply.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == reply.output_text and len(tokens[0].top_logprobs) == 2
    events = list(client.responses.create(stream=True, **ask_for))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].content[0].logprobs == tokens


def test_a_json_schema(client: Any, echo: EchoServer) -> None:
    pydantic = pytest.importorskip("pydantic")
    shape = pydantic.create_model("Shape", city=(str, ...), days=(int, ...))
    reply = client.responses.parse(model="vllm/echo", input="Plan", text_format=shape)
    assert reply.output_parsed == shape(city="echo", days=0)
    schema = echo.requests[-1].json["response_format"]["json_schema"]
    assert schema["name"] == "Shape" and schema["strict"] is True and "schema" in schema
    with client.responses.stream(model="vllm/echo", input="Plan", text_format=shape) as stream:
        list(stream)
        assert stream.get_final_response().output_parsed == shape(city="echo", days=0)
    reply = client.responses.create(model="vllm/echo", input="Plan", text={"format": {"type": "json_object"}})
    assert json.loads(reply.output_text) == {}


# ---------------------------------------------------------------- the client: reasoning, tools


def test_reasoning(client: Any, echo: EchoServer) -> None:
    reply = client.responses.create(model="vllm/echo", input="!think Hello", reasoning={"effort": "low"})
    thought, message = reply.output
    assert echo.requests[-1].json["reasoning_effort"] == "low"
    assert thought.type == "reasoning" and "hear it again" in thought.summary[0].text
    assert thought.content is None
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    events = list(client.responses.create(model="vllm/echo", input="!think Hello", stream=True))
    for kind, text in (("reasoning_summary_text", thought.summary[0].text), ("reasoning_text", "")):
        assert "".join(one.delta for one in events if one.type == "response.%s.delta" % kind) == text


def turn(client: Any, streams: bool, talk: List[Any], **more: Any) -> Any:
    """Take one turn; the output goes into the talk as the client gives it, as its users do."""
    fields = dict(model="vllm/echo", input=talk, **more)
    if streams:
        with client.responses.stream(**fields) as stream:
            list(stream)
            reply = stream.get_final_response()
    else:
        reply = client.responses.create(**fields)
    talk += reply.output
    return reply


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_loop_twice(client: Any, echo: EchoServer, streams: bool) -> None:
    talk: List[Any] = [{"role": "user", "content": "!think The weather in Oslo?"}]
    for question, name in (("", "get_weather"), ("And the clock?", "get_clock")):
        if question:
            talk.append({"role": "user", "content": question})
        called = turn(client, streams, talk, tools=[WEATHER, CLOCK])
        call = called.output[-1]
        assert (call.type, call.name, call.status) == ("function_call", name, "completed")
        assert json.loads(call.arguments) == ({"city": "echo"} if name == "get_weather" else {})
        talk.append({"type": "function_call_output", "call_id": call.call_id, "output": "21C " + name})
        done = turn(client, streams, talk, tools=[WEATHER, CLOCK])
        assert done.output_text == "The tool said: 21C " + name
        seen = echo.requests[-1].json["messages"]
        assert seen[-1] == {"role": "tool", "tool_call_id": call.call_id, "content": "21C " + name}
        assert seen[-2]["tool_calls"][0]["id"] == call.call_id
        assert seen[-2]["tool_calls"][0]["function"]["name"] == name
    roles = [message["role"] for message in seen]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
    assert "hear it again" in seen[1]["reasoning"]  # goes back on the turn that it belongs to
    assert seen[3]["content"] == "The tool said: 21C get_weather"


def tool_call(number: int) -> bytes:
    message = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c%d" % number, "type": "function", "function": {"name": "f", "arguments": '{"n": %d}' % number}}]}
    return answer(chat_reply(message, "tool_calls"))


def chat_reply(message: Dict[str, Any], finish: str = "stop") -> Dict[str, Any]:
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}


def test_one_call_after_the_other_then_the_answer() -> None:
    final = answer(chat_reply({"role": "assistant", "content": "three"}))
    script = ["request", tool_call(1), "request", tool_call(2), "request", final, "hold"]
    with Scripted(script) as server, served("--upstream", server.url) as address, client_of(address) as client:
        talk: List[Any] = [{"role": "user", "content": "Count"}]
        turns = 0
        while True:
            turns += 1
            calls = [item for item in turn(client, False, talk).output if item.type == "function_call"]
            if not calls:
                break
            talk += [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls]
        assert turns == 3 and talk[-1].content[0].text == "three"
        messages = server.requests[-1].json["messages"]
        assert [message.get("tool_call_id") or message["role"] for message in messages] == [
            "user", "assistant", "c1", "assistant", "c2"]


@pytest.mark.parametrize("streams", [False, True])
def test_parallel_calls(client: Any, echo: EchoServer, streams: bool) -> None:
    talk: List[Any] = [{"role": "user", "content": "!call 2 Both"}]
    reply = turn(client, streams, talk, tools=[WEATHER, CLOCK], parallel_tool_calls=True)
    assert [(item.type, item.name) for item in reply.output] == [
        ("function_call", "get_weather"), ("function_call", "get_clock")]
    ids = [item.call_id for item in reply.output]
    assert len(set(ids)) == 2
    talk += [{"type": "function_call_output", "call_id": one, "output": one} for one in ids]
    assert turn(client, streams, talk).output_text == "The tool said: " + ids[1]
    calls, *results = echo.requests[-1].json["messages"][1:]
    assert [call["id"] for call in calls["tool_calls"]] == ids
    assert [result["tool_call_id"] for result in results] == ids


@pytest.mark.parametrize("streams", [False, True])
def test_a_custom_tool_there_and_back(client: Any, echo: EchoServer, streams: bool) -> None:
    tool = {"type": "custom", "name": "shell", "description": "Runs a command."}
    talk: List[Any] = [{"role": "user", "content": "List"}]
    reply = turn(client, streams, talk, tools=[tool], tool_choice={"type": "custom", "name": "shell"})
    call = reply.output[-1]
    assert (call.type, call.name, call.input) == ("custom_tool_call", "shell", "echo")
    assert echo.requests[-1].json["tools"][0]["function"]["parameters"]["required"] == ["input"]
    talk.append({"type": "custom_tool_call_output", "call_id": call.call_id, "output": "a.txt"})
    assert turn(client, streams, talk, tools=[tool]).output_text == "The tool said: a.txt"
    sent = echo.requests[-1].json["messages"][1]["tool_calls"][0]
    assert json.loads(sent["function"]["arguments"]) == {"input": "echo"}


SCREEN = {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="}
RAN = {"stdout": "a.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
FOUND = [{"type": "function", "name": "get_tide", "description": "d", "parameters": CLOCK["parameters"]}]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("tool, kind, output, said", [
    ({"type": "local_shell"}, "local_shell_call", {"output": "a.txt"}, "a.txt"),
    ({"type": "shell", "environment": {"type": "local"}}, "shell_call", {"output": [RAN]}, json.dumps([RAN])),
    ({"type": "apply_patch"}, "apply_patch_call", {"status": "completed", "output": "done"}, "completed: done"),
    ({"type": "computer_use_preview", "display_width": 1, "display_height": 1, "environment": "browser"},
     "computer_call", {"output": SCREEN}, None),
    ({"type": "tool_search", "execution": "client", "description": "d", "parameters": CLOCK["parameters"]},
     "tool_search", {"tools": FOUND, "execution": "client", "status": "completed"}, json.dumps(FOUND)),
])
def test_a_tool_of_the_clients_own_there_and_back(
    client: Any, echo: EchoServer, streams: bool, tool: Dict[str, Any], kind: str, output: Dict[str, Any], said: Any,
) -> None:
    talk: List[Any] = [{"role": "user", "content": "Do it"}]
    reply = turn(client, streams, talk, tools=[tool], tool_choice="required")
    call = reply.output[-1]
    assert call.type == kind.replace("tool_search", "tool_search_call") and call.status == "completed"
    assert reply.tools[0].type == tool["type"] and reply.metadata == {}
    sent = echo.requests[-1].json["tools"][0]["function"]
    assert sent["name"] == tool["type"] and sent["parameters"]["type"] == "object"
    called = {"id" if kind == "local_shell_call" else "call_id": call.call_id}
    talk.append({"type": kind + "_output", **called, **output})
    told = turn(client, streams, talk, tools=[tool]).output_text
    messages = echo.requests[-1].json["messages"]
    function = messages[1]["tool_calls"][0]["function"]
    assert function["name"] == tool["type"] and isinstance(json.loads(function["arguments"]), dict)
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"] == call.call_id
    if said is None:
        assert messages[2]["content"] == [{"type": "image_url", "image_url": {"url": SCREEN["image_url"]}}]
    else:
        assert messages[2]["content"] == said and told == "The tool said: " + said


@pytest.mark.parametrize("streams", [False, True])
def test_a_hosted_tool_is_left_out_and_that_is_said(client: Any, echo: EchoServer, streams: bool) -> None:
    reply = turn(client, streams, [{"role": "user", "content": "Hi"}], tools=[{"type": "web_search"}, CLOCK])
    assert "web_search" in reply.metadata["vllm_bridge_warning"]
    assert [tool["function"]["name"] for tool in echo.requests[-1].json["tools"]] == ["get_clock"]
    assert [tool.type for tool in reply.tools] == ["function"]


def test_a_refusal() -> None:
    whole = answer(chat_reply({"role": "assistant", "content": None, "refusal": "I will not."}))
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [({"refusal": "I will"}, None), ({"refusal": " not."}, None), ({}, "stop")]
    chunks = [event(dict(head, choices=[{"index": 0, "delta": delta, "finish_reason": finish}]))
              for delta, finish in deltas]
    script = ["request", whole, "request", SSE_HEAD, *chunks, event("[DONE]"), LAST_CHUNK]
    with Scripted(script) as server, served("--upstream", server.url) as address, client_of(address) as client:
        for streams in (False, True):
            part = turn(client, streams, [{"role": "user", "content": "Hi"}]).output[0].content[0]
            assert (part.type, part.refusal) == ("refusal", "I will not.")


# ---------------------------------------------------------------- the client: errors


@pytest.mark.parametrize("status, name", [
    (400, "BadRequestError"), (401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError"),
    (409, "ConflictError"), (422, "UnprocessableEntityError"), (429, "RateLimitError"), (500, "InternalServerError"),
    (503, "InternalServerError"),
])
@pytest.mark.parametrize("directive", ["!error", "!error-in-200"])
def test_an_error_before_the_first_event_has_its_status(
    client: Any, status: int, name: str, directive: str
) -> None:
    openai = pytest.importorskip("openai")
    if directive == "!error-in-200" and status == 401:
        pytest.skip("vLLM's 401 says Unauthorized without a code")
    for streams in (False, True):
        with pytest.raises(getattr(openai, name)) as caught:
            client.responses.create(model="vllm/echo", input="%s %d x" % (directive, status), stream=streams)
        assert caught.value.status_code == status and caught.value.body["message"]


@pytest.mark.parametrize("fields", [
    {"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"background": True}, {"prompt": {"id": "p"}},
    {"input": [{"type": "function_call_output", "output": "x"}]}, {"tools": [{"type": "function"}]},
])
@pytest.mark.parametrize("streams", [False, True])
def test_what_cannot_be_asked_is_a_bad_request(
    client: Any, echo: EchoServer, fields: Dict[str, Any], streams: bool
) -> None:
    openai = pytest.importorskip("openai")
    before = len(echo.requests)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**dict({"model": "vllm/echo", "input": "Hi"}, **fields), stream=streams)
    assert caught.value.param.startswith(next(iter(fields)))
    assert len(echo.requests) == before


def test_a_stream_that_fails_ends_for_the_client_in_a_failed_response(client: Any) -> None:
    *_, last = client.responses.create(model="vllm/echo", input="!die-after 3 one two three four", stream=True)
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error" and "broke off" in last.response.error.message
    assert last.response.output_text.startswith("You said:")


# ---------------------------------------------------------------- on the wire


@pytest.mark.parametrize("directive, told", [
    ("!die-after 3", "broke off"), ("!cut-after 3", "without a finish reason"), ("!error-after 3 500", "EngineCore"),
    ("!abort", "abort"),
])
def test_an_upstream_that_fails_gives_one_terminal_event(address: Address, directive: str, told: str) -> None:
    events = events_of(address, model="echo", input=directive + " one two three four")
    for one in events:
        check_event(one)
    assert events[-1]["type"] == "response.failed" and told in events[-1]["response"]["error"]["message"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"].startswith("You said:")


@pytest.mark.parametrize("body", [
    {"input": "Hello"}, {"input": "!think Hello"}, {"input": "!call 2 Hello", "tools": [WEATHER, CLOCK]},
    {"input": "!empty x"}, {"input": "!broken-call x", "tools": [CLOCK]}, {"input": "one two", "max_output_tokens": 2},
    {"input": "!think two", "tools": [{"type": "custom", "name": "shell"}], "tool_choice": "required"},
])
def test_streamed_and_whole_say_the_same(address: Address, body: Dict[str, Any]) -> None:
    events = events_of(address, model="echo", **body)
    for one in events:
        check_event(one)
    streamed = events[-1]["response"]
    whole = ask(address, "POST", PATH, dict(body, model="echo")).json
    check_response(whole)
    for one in (streamed, whole):
        one.pop("chat_choices")

    def named(response: Dict[str, Any]) -> str:
        """Return the JSON of a Response without the id that all its ids are made of."""
        text = json.dumps([response["output"], response["status"], response["incomplete_details"], response["tools"]])
        key = response["id"][len("resp_chatcmpl-"):]
        assert text.count(key) >= len(response["output"])
        return text.replace(key, "x")

    assert named(streamed) == named(whole)
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_client_that_leaves_ends_the_generation(echo: EchoServer) -> None:
    with log_lines() as lines, served("--upstream", echo.url, "--log-format", "json") as address:
        body = json.dumps({"model": "echo", "input": "!slow 0.05 !count 100000", "stream": True}).encode()
        head = "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PATH, len(body))
        with socket.create_connection(address, timeout=LONG) as sock:
            sock.sendall(head.encode() + body)
            seen = b""
            while b"output_text.delta" not in seen:
                seen += sock.recv(65536)
            assert echo.running == 1
        until(lambda: echo.running == 0)
        until(lambda: lines)
    assert lines[0]["status"] == 499


# ---------------------------------------------------------------- native


def native(transcript: wire.Transcript, word: str = "true") -> Any:
    return served_behind(steps(transcript), word)


@contextmanager
def served_behind(script: List[Any], word: str) -> Iterator[Tuple[Scripted, Address]]:
    flags = ["--native-responses"] + ([] if word == "true" else [word])
    with Scripted(script) as server, served("--upstream", server.url, *flags) as address:
        yield server, address


@pytest.mark.parametrize("word", ["true", "auto"])
@pytest.mark.parametrize("name", ["responses_plain", "responses_tools_two", "think_responses_truncated",
                                  "responses_logprobs", "responses_context_too_long_stream"])
def test_a_native_reply_is_vllms_own_byte_for_byte(name: str, word: str) -> None:
    transcript = wire.load(name)
    with native(transcript, word) as (server, address):
        body = {key: value for key, value in transcript.request["body"].items() if key != "stream"}
        reply = ask(address, "POST", PATH, dict(body, model="vllm/" + body["model"]))
        assert server.requests[0].json == body and server.requests[0].line.split()[1] == PATH
    assert reply.status == transcript.status
    if reply.status == 200:
        assert reply.body == transcript.body
    else:
        told = transcript.json["error"]
        assert {key: reply.error[key] for key in ("message", "type", "param", "code")} == told


@pytest.mark.parametrize("name", ["think_responses_stream", "responses_tools_required_stream"])
def test_a_native_stream_is_vllms_own(name: str) -> None:
    transcript = wire.load(name)
    with native(transcript) as (server, address):
        assert events_of(address, **transcript.request["body"]) == transcript.payloads
        assert server.requests[0].json == transcript.request["body"]


@pytest.mark.parametrize("name", ["s_err_responses_logprobs", "kill_engine_responses_stream",
                                  "kill_api_responses_stream", "kill_worker_keepalive_responses_stream"])
def test_a_native_stream_that_breaks_ends_in_one_failure(name: str) -> None:
    transcript = wire.load(name)
    with native(transcript) as (_, address):
        events = events_of(address)
    assert events[:-1] == transcript.payloads
    last = events[-1]
    if openai_types is not None:
        openai_types.ResponseFailedEvent.model_validate(last)
    assert last["type"] == "response.failed" and last["response"]["id"] == events[0]["response"]["id"]
    assert last["response"]["status"] == "failed" and last["response"]["error"]["code"] == "server_error"
    assert "127.0.0.1" not in json.dumps(last)
    said = "".join(one.get("delta", "") for one in events)
    assert "".join(part["text"] for item in last["response"]["output"] for part in item["content"]) == said


def test_the_client_reads_native_streams() -> None:
    transcript = wire.load("think_responses_stream")
    with native(transcript) as (_, address), client_of(address) as client:
        with client.responses.stream(model="chat", input="think") as stream:
            list(stream)
            assert stream.get_final_response().output_text == "\n\nHello"
    broken = wire.load("kill_engine_responses_stream")
    with native(broken) as (_, address), client_of(address) as client:
        *_, last = client.responses.create(model="chat", input="count", stream=True)
        assert last.type == "response.failed" and last.response.output_text.startswith("1 2 3")


def test_auto_goes_over_chat_where_the_route_is_missing() -> None:
    missing = answer(wire.load("err_pooling_model_v1_responses").body, "404 Not Found")
    reply = answer(chat_reply({"role": "assistant", "content": "hello"}))
    script = ["request", missing, "request", reply, "request", reply, "hold"]
    with served_behind(script, "auto") as (server, address):
        for _ in range(2):
            told = ask(address, "POST", PATH, {"model": "vllm/m", "input": "Hi"})
            check_response(told.json)
            assert told.json["output"][0]["content"][0]["text"] == "hello"
        assert [request.line.split()[1] for request in server.requests] == [PATH] + ["/v1/chat/completions"] * 2
