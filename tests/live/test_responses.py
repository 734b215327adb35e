"""Responses: over chat completions they say what the chat says, and what vLLM's own /v1/responses says."""

import pytest
from cases import CHAT, TOOLS
from oracle import ask, chat_choices

from vllm_bridge import BadRequestError, NotFoundError

TOOL = dict(TOOLS[0]["function"], type="function")
INPUTS = {"hello": "plain", "unicode": "unicode", "count": "count"}


def text_of(response):
    return "".join(part["text"] for item in response["output"] if item["type"] == "message"
                   for part in item["content"] if part["type"] == "output_text")


def calls_of(response):
    return [(item["name"], item["arguments"]) for item in response["output"] if item["type"] == "function_call"]


@pytest.mark.parametrize("words", sorted(INPUTS))
def test_the_reply_says_what_the_chat_says(chat, words):
    raw = ask(chat.server, "POST", "/v1/chat/completions", dict(CHAT[INPUTS[words]], model=chat.server.model)).json
    native = ask(chat.server, "POST", "/v1/responses", {
        "model": chat.server.model, "input": words, "temperature": 0, "max_output_tokens": 300}).json
    reply = chat.vllm.responses(model=chat.model, input=words, temperature=0, max_output_tokens=300)
    assert text_of(reply) == text_of(native) == chat_choices(raw)[0]["content"]
    assert reply["status"] == native["status"] == "completed"
    for key in ("input_tokens", "output_tokens", "total_tokens"):
        assert reply["usage"][key] == native["usage"][key]


def test_a_cut_reply_is_incomplete(chat):
    fields = {"input": "count", "temperature": 0, "max_output_tokens": 6}
    native = ask(chat.server, "POST", "/v1/responses", dict(fields, model=chat.server.model)).json
    reply = chat.vllm.responses(model=chat.model, **fields)
    assert (reply["status"], reply["incomplete_details"], text_of(reply)) == (
        native["status"], native["incomplete_details"], text_of(native))


def test_tool_calls(chat, scripted):
    scripted(chat)
    reply = chat.vllm.responses(model=chat.model, input="weather", tools=[TOOL], temperature=0)
    assert calls_of(reply) == [("get_weather", '{"city": "Paris", "unit": "celsius"}')]


@pytest.mark.parametrize("fields", [
    {"input": "hello"}, {"input": "count"}, {"input": "count", "max_output_tokens": 6},
    {"input": "weather", "tools": [TOOL]}, {"input": "two tools", "tools": [TOOL]},
], ids=["hello", "count", "cut", "tool", "text and tool"])
def test_the_stream_says_what_the_reply_says(chat, fields):
    plain = chat.vllm.responses(model=chat.model, temperature=0, **fields)
    with chat.vllm.responses_stream(model=chat.model, temperature=0, **fields) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response." + plain["status"]
    whole = events[-1]["response"]
    squeezed = [[(name, "".join(text.split())) for name, text in calls_of(one)] for one in (whole, plain)]
    assert squeezed[0] == squeezed[1]
    assert text_of(whole).strip() == text_of(plain).strip()
    assert whole["usage"] == plain["usage"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text_of(whole)


@pytest.mark.parametrize("operation", ["responses", "responses_stream"])
def test_errors(chat, operation):
    call = getattr(chat.vllm, operation)
    with pytest.raises(NotFoundError) as caught:
        call(model="nope", input="hello")
    assert "nope" in caught.value.message
    with pytest.raises(BadRequestError):
        call(model=chat.model, input="hello", temperature=-1)
    with pytest.raises(BadRequestError):
        call(model=chat.model, input="hello", previous_response_id="resp_1")
