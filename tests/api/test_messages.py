"""Anthropic's Messages: what is left out of a request, what streams make, bytes that pass."""

import json

import pytest
import wire

from vllm_bridge.api.decoding import TokenUsage
from vllm_bridge.api.messages import MessageForwarding, MessageReader, folded, prepare
from vllm_bridge.errors import BridgeError
from vllm_bridge.sse import iter_events

STREAMS = [name for name in wire.names("messages_") + wire.names("think_messages_")
           if wire.load(name).streams and name != "messages_bad_regex_stream"]
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("body", [
    BODY, {}, {"messages": None, "tools": None}, {"messages": "x", "tools": "y", "system": 5},
    {"messages": ["x", None]},
    {**BODY, "tools": [{"name": "a", "input_schema": {}}, {"name": "b"}, "c"]}, {**BODY, "tools": []},
    {**BODY, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"no": "type"}, 5]}]},
    wire.load("messages_tool_result").request["body"], wire.load("messages_system").request["body"],
])
def test_what_vllm_can_read_or_refuse_stays_the_same_object(body):
    assert prepare(body) is body


def test_documents_become_text_where_they_are_text(caplog):
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    page = {"type": "document", "source": {"type": "content", "content": texts}}
    found = {"type": "search_result", "source": "http://x", "title": "t",
             "content": [{"type": "text", "text": "c"}]}
    use = {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}
    body = {**BODY, "messages": [BODY["messages"][0], {"role": "user", "content": [page, use, found]}]}
    ready = prepare(body)
    assert ready["messages"][0] is body["messages"][0]
    assert ready["messages"][1]["content"] == [{"type": "text", "text": "a\nb"}, {"type": "text", "text": "c"}]
    assert body["messages"][1]["content"] == [page, use, found]  # the caller's own stays
    assert [record.args for record in caplog.records] == [("a block of type server_tool_use",)]


@pytest.mark.parametrize("name", STREAMS)
def test_the_events_of_a_stream_make_the_message(name):
    reader = MessageReader()
    for event in iter_events([wire.load(name).body]):
        reader.feed(event)
    assert reader.finished
    message = reader.partial()
    payloads = wire.load(name).payloads
    assert message.stop_reason == payloads[-2]["delta"]["stop_reason"]
    assert message.usage.output_tokens == payloads[-2]["usage"]["output_tokens"]
    plain = {"messages_stream": "messages_plain", "think_messages_stream": "think_messages_plain"}.get(name)
    if plain:
        told = wire.load(plain).json
        assert [{key: block[key] for key in block if key != "signature"} for block in message.content] == [
            {key: block[key] for key in block if key != "signature"} for block in told["content"]]
    if name == "messages_tools_stream":
        assert [(block.type, block.name, block.input) for block in message.content] == [
            ("text", None, None), ("tool_use", "get_weather", {"city": "Paris", "unit": "celsius"}),
            ("tool_use", "get_time", {"zone": "Asia/Tokyo"})]


def test_a_stream_that_is_cut_makes_what_there_is():
    payloads = wire.load("messages_tools_stream").payloads
    for at in range(len(payloads)):
        assert isinstance(folded(payloads[:at])["content"], list)


@pytest.mark.parametrize("name", STREAMS)
def test_bytes_that_are_handed_on_are_the_servers_however_they_are_cut(name):
    body = wire.load(name).body
    for cut in (1, 7, 100, 5000, len(body)):
        tokens = TokenUsage()
        reader = MessageForwarding(tokens)
        out = b"".join(reader.feed(body[at:at + cut]) for at in range(0, len(body), cut))
        assert out == body and reader.ended and reader.failure is None
        assert reader.events == body.count(b"event: ") - (1 if cut else 0)
        assert tokens.completion_tokens == wire.load(name).payloads[-2]["usage"]["output_tokens"]


def test_other_ways_to_write_the_same_stream():
    body = wire.load("messages_stream").body
    for other in (body.replace(b"\n", b"\r\n"), body.replace(b": ", b":"), body + b"data: [DONE]\n\n"):
        reader = MessageForwarding(TokenUsage())
        out = reader.feed(other)
        assert reader.ended
        assert [json.loads(event.data) for event in iter_events([out])] == wire.load("messages_stream").payloads
    reader = MessageForwarding(TokenUsage())
    reader.feed(body[:body.index(b"event: message_stop")])
    assert reader.finished and not reader.ended and reader.finish() == body[body.index(b"event: message_stop"):]
    for early in (b"data: [DONE]\n\n", body[:body.index(b"event: message_delta")]):
        reader = MessageForwarding(TokenUsage())
        reader.feed(early)
        assert not reader.finished and not reader.ended


def test_an_error_is_put_where_the_stream_ends():
    reader = MessageForwarding(TokenUsage())
    body = wire.load("messages_stream").frames
    out = reader.feed(b"".join(body[:3]) + wire.load("messages_bad_regex_stream").body)
    assert out == b"".join(body[:3])
    assert isinstance(reader.failure, BridgeError) and "validation errors" in reader.failure.message
