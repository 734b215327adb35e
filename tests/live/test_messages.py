"""Anthropic's Messages: replies, events and counts are the server's; the anthropic package finds what it expects."""

import pytest
from oracle import ask, differences, plain

from vllm_bridge import APIStatusError
from vllm_bridge.api.messages import folded

PATH = "/v1/messages"
TOOLS = [
    {"name": "get_weather", "description": "Weather", "input_schema": {
        "type": "object", "required": ["city"],
        "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}},
    {"name": "get_time", "input_schema": {"type": "object", "properties": {"zone": {"type": "string"}}}},
    {"name": "ping", "input_schema": {"type": "object", "properties": {}}},
]


def user(text, **fields):
    return dict({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 300}, **fields)


BODIES = {
    "plain": user("hello"),
    "unicode": user("unicode"),
    "system": user("hello", system=[
        {"type": "text", "text": "You are helpful.", "cache_control": {"type": "ephemeral"}}]),
    "stop": user("count", stop_sequences=[" 10"]),
    "length": user("count", max_tokens=7),
    "weather": user("weather", tools=TOOLS),
    "two tools": user("two tools", tools=TOOLS),
    "forced": user("weather", tools=TOOLS[:1], tool_choice={"type": "tool", "name": "get_weather"}),
    "after a tool": dict(user("x"), tools=TOOLS, messages=[
        {"role": "user", "content": "weather"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "call-1", "name": "get_weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-1", "content": "21C"}]}]),
}
WRONG = {
    "unknown model": user("hello", model="nope"), "no length": {"messages": [{"role": "user", "content": "hello"}]},
    "too long": user("hello " * 1200), "top_k": user("hello", top_k=-5),
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_reply_is_the_servers(chat, name):
    raw = ask(chat.server, "POST", PATH, dict(BODIES[name], model=chat.server.model))
    assert raw.status == 200
    assert list(differences(chat.vllm.messages(model=chat.model, **BODIES[name]), raw.json)) == []


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_events_are_the_servers(chat, name):
    raw = folded(ask(chat.server, "POST", PATH, dict(BODIES[name], model=chat.server.model, stream=True)).events)
    with chat.vllm.messages_stream(model=chat.model, **BODIES[name]) as stream:
        assert list(differences(folded(stream), raw)) == []


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_error_is_the_servers(chat, name):
    raw = ask(chat.server, "POST", PATH, dict({"model": chat.server.model}, **WRONG[name]))
    for call in (chat.vllm.messages, chat.vllm.messages_stream):
        with pytest.raises(APIStatusError) as caught:
            call(**dict({"model": chat.model}, **WRONG[name]))
        assert caught.value.status_code == raw.status
        assert plain(caught.value.message) == plain(raw.json["error"]["message"])


def test_tokens_are_counted_as_the_server_counts_them(chat):
    body = {name: BODIES["two tools"][name] for name in ("messages", "tools")}
    raw = ask(chat.server, "POST", PATH + "/count_tokens", dict(body, model=chat.server.model)).json
    assert chat.vllm.count_tokens(model=chat.model, **body) == raw and raw["input_tokens"] > 0


def test_what_only_anthropic_has_is_left_out(chat):
    """The server itself refuses both."""
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hello"}}
    search = {"type": "web_search_20250305", "name": "web_search"}
    body = dict(user([document]), tools=[search])
    assert ask(chat.server, "POST", PATH, dict(body, model=chat.server.model)).status == 400
    assert chat.vllm.messages(model=chat.model, **body).stop_reason == "end_turn"


# ---------------------------------------------------------------- the anthropic package, through the gateway


def fields(body):
    """Give a request as the package takes it, which no longer knows a temperature."""
    return {**{name: body[name] for name in body if name != "temperature"}, "extra_body": {"temperature": 0}}


@pytest.fixture
def client(chat_gateway):
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=chat_gateway.front.url, api_key="none", max_retries=0) as found:
        yield found


def test_anthropics_package(client, chat_gateway, scripted):
    scripted(chat_gateway)
    model = chat_gateway.model
    reply = client.messages.create(model=model, **fields(BODIES["plain"]))
    assert reply.content[0].text == "Hello! How can I help you today?" and reply.stop_reason == "end_turn"
    with client.messages.stream(model=model, **fields(BODIES["two tools"])) as stream:
        assert "".join(stream.text_stream).strip()
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert message.content[1].input == {"city": "Paris", "unit": "celsius"}
    counted = client.messages.count_tokens(model=model, messages=BODIES["plain"]["messages"])
    assert counted.input_tokens == reply.usage.input_tokens
    assert [one.id for one in client.models.list()] == [model]
    assert client.models.retrieve(model).display_name == model


def test_anthropics_errors(client, chat_gateway):
    import anthropic

    for kind, call in (
        (anthropic.NotFoundError, lambda: client.messages.create(**fields(dict(BODIES["plain"], model="nope")))),
        (anthropic.BadRequestError, lambda: client.messages.create(
            model=chat_gateway.model, **fields(WRONG["too long"]))),
        (anthropic.NotFoundError, lambda: client.models.retrieve("nope")),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.body["type"] == "error" and caught.value.request_id
