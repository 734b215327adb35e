"""How a reply came: its id, headers, server and time, on replies and on streams; a stream's text, and its whole."""

import copy
import json
import pickle

import pytest

import wire
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event
from vllm_bridge import IncompleteStreamError, VLLMProvider
from vllm_bridge.api.records import ChatCompletion, Completion, Record, Response, Transcription
from vllm_bridge.api.replies import Message
from vllm_bridge.echo import EchoServer

ASK = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\x00" * 200


def sent(*pieces):
    return ["request", SSE_HEAD, *pieces, event("[DONE]"), LAST_CHUNK]


def test_a_reply_knows_how_it_came():
    reply = answer(completion(), extra="X-Request-Id: r-7\r\nX-Served-By: gpu-3\r\n")
    with Scripted(["request", reply]) as server, VLLMProvider(server.url) as provider:
        found = provider.chat_completion(**ASK)
        assert (found.request_id, found.server) == ("r-7", server.url)
        assert found.headers["x-served-by"] == "gpu-3" and 0 < found.elapsed < 60
        assert json.loads(json.dumps(found)) == completion()  # no part of its JSON
        for same in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found), found.copy()):
            assert (same, same.request_id, same.server, same.elapsed) == (found, "r-7", server.url, found.elapsed)


@pytest.mark.parametrize("operation, wire_fields", [
    ("chat_completion", ASK), ("text_completion", {"prompt": "Hi"}), ("embedding", {"input": "Hi"}),
    ("embedding", {"input": "Hi", "encoding_format": "float"}), ("rerank", {"query": "a", "documents": ["b"]}),
    ("responses", {"input": "Hi"}), ("transcription", {"file": WAV}), ("tokenize", {"prompt": "Hi"}),
    ("messages", {**ASK, "max_tokens": 9}), ("score", {"text_1": "a", "text_2": "b"}),
])
def test_every_kind_of_reply_knows_it(operation, wire_fields):
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        reply = getattr(provider, operation)(**wire_fields, extra_headers={"X-Request-Id": "ours"})
        assert (reply.request_id, reply.server) == ("ours", server.url)
        assert reply.headers["content-type"] and reply.elapsed > 0


def test_a_list_of_all_servers_and_a_record_of_ones_own_came_no_way():
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        models = provider.list_models()
    for record in (models, ChatCompletion({"id": "1"})):
        assert (record.request_id, record.headers, record.server, record.elapsed) == (None, {}, None, None)


def test_fields_of_those_names_are_there_all_the_same():
    with Scripted(["request", answer({**completion(), "headers": 5, "server": "its own"})]) as server:
        with VLLMProvider(server.url) as provider:
            reply = provider.chat_completion(**ASK)
            assert (reply["headers"], reply["server"], reply.server) == (5, "its own", server.url)


def test_the_seconds_are_those_of_the_server_that_answered():
    busy = answer({"error": {"message": "busy"}}, "503 Service Unavailable", extra="Retry-After: 0\r\n")
    with Scripted(["request", busy, "request", answer(completion())]) as server, VLLMProvider(server.url) as provider:
        assert provider.chat_completion(**ASK).elapsed < 60


# ---------------------------------------------------------------- streams

@pytest.mark.parametrize("streamed, plain", [
    ("chat_stream_plain", "chat_plain"), ("chat_stream_tools", "chat_tools_auto"),
    ("chat_stream_reasoning", "chat_reasoning"),
])
def test_a_stream_comes_to_what_is_not_streamed(streamed, plain):
    recorded = wire.load(streamed)
    both = ["request", SSE_HEAD, chunk(recorded.body), LAST_CHUNK, "request", answer(wire.load(plain).body)]
    with Scripted(both) as server:
        with VLLMProvider(server.url) as provider:
            with provider.chat_completion_stream(**ASK) as stream:
                whole = stream.completion()
            reply = provider.chat_completion(**ASK)
    assert type(whole) is ChatCompletion

    def said(message):
        return message.content, message.reasoning, [call.function for call in message.tool_calls or ()]

    assert said(whole.choices[0].message) == said(reply.choices[0].message)
    assert whole.choices[0].finish_reason == reply.choices[0].finish_reason
    assert stream.text == reply.text == whole.text


def test_a_stream_knows_how_it_came():
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nX-Request-Id: r-7\r\nX-Served-By: gpu-3\r\n\r\n", 1)
    script = ["request", head, event(delta("Hi", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(script) as server, VLLMProvider(server.url) as provider:
        with provider.chat_completion_stream(**ASK) as stream:
            whole = stream.completion()
        for found in (stream, whole):
            assert (found.request_id, found.server, found.headers["x-served-by"]) == ("r-7", server.url, "gpu-3")
        assert 0 < whole.elapsed == stream.completion().elapsed < 60


def test_the_text_so_far():
    with Scripted(sent(event(delta("one ")), event(delta("two")), event(delta("", "stop")))) as server:
        with VLLMProvider(server.url) as provider, provider.chat_completion_stream(**ASK) as stream:
            next(stream)
            assert stream.text.startswith("one ")
            assert "".join(part.text for part in stream) == "two"
            assert stream.text == "one two" and list(stream) == []


def test_a_closed_stream_comes_to_what_had_arrived():
    with Scripted(["request", SSE_HEAD, event(delta("one ")), "hold"]) as server, VLLMProvider(server.url) as provider:
        with provider.chat_completion_stream(**ASK) as stream:
            next(stream)
        assert (stream.text, stream.completion().text) == ("one ", "one ")
        assert stream.completion().choices[0].finish_reason is None


def test_a_stream_that_breaks_off_comes_to_an_error():
    with Scripted(["request", SSE_HEAD, event(delta("one ")), "rst"]) as server:
        with VLLMProvider(server.url) as provider, provider.chat_completion_stream(**ASK) as stream:
            with pytest.raises(IncompleteStreamError):
                stream.completion()
            assert stream.text == "one "


@pytest.mark.parametrize("operation, fields, kind, text", [
    ("text_completion_stream", {"prompt": "Hi"}, Completion, " You said: Hi"),
    ("responses_stream", {"input": "Hi"}, Response, "You said: Hi"),
    ("messages_stream", {**ASK, "max_tokens": 9}, Message, "You said: Hi"),
    ("transcription_stream", {"file": WAV}, Transcription, "I heard audio.wav: %d bytes." % len(WAV)),
])
@pytest.mark.parametrize("first", [0, 3])
def test_the_other_streams_come_to_their_own_replies(operation, fields, kind, text, first):
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        fields = {"model": "echo", **fields}
        with getattr(provider, operation)(**fields) as stream:
            for _ in range(first):
                next(stream)
            whole = stream.completion()
        plain = getattr(provider, operation.replace("_stream", ""))(**fields)
    assert type(whole) is kind and stream.text.strip() == text.strip()
    assert {name for name in plain if plain[name] is not None} - {"usage"} <= set(whole)
    assert whole.get("output_text", whole.get("text")) == plain.get("output_text", plain.get("text"))
    if kind is Response:
        assert whole.output_text == text and whole.status == plain.status == "completed"


def test_a_closed_responses_stream_comes_to_what_had_arrived():
    with Scripted(["request", SSE_HEAD, event(delta("one ")), "hold"]) as server, VLLMProvider(server.url) as provider:
        with provider.responses_stream(model="m", input="Hi") as stream:
            for told in stream:
                if told.type == "response.output_text.delta":
                    break
        assert (stream.text, stream.completion().output_text) == ("one ", "one ")


# ---------------------------------------------------------------- in a notebook

class Printer:
    """What IPython hands to ``_repr_pretty_``."""

    def __init__(self):
        self.printed = ""

    def text(self, text):
        self.printed += text


def pretty(record):
    printer = Printer()
    record._repr_pretty_(printer, False)
    return printer.printed


def test_a_notebook_shows_a_record_shortened():
    record = Record({"data": [{"embedding": [0.5] * 4096}] * 9, "text": "é" * 5000, "usage": {"total_tokens": 3}})
    shown = pretty(record)
    assert shown.startswith("Record({") and len(shown) < 3000
    for part in ("4096 in all", "9 in all", "5000 characters", "\"total_tokens\": 3"):
        assert part in shown
    assert repr(record) == "Record(%r)" % dict(record)  # elsewhere nothing is left out


def test_what_is_nested_deeply_or_has_no_json_form_is_shown_too():
    record = Record({"odd": {1, 2}})
    inner = record
    for _ in range(500):
        inner["next"] = {}
        inner = inner["next"]
    assert "{...}" in pretty(record) and "{1, 2}" in pretty(record)
