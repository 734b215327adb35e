"""Chat completions: the reply is the server's, and the stream says what the reply says."""

import time

import pytest
from cases import CHAT, LONG
from oracle import additions, ask, chat_choices, differences, fold_chat

OURS = {"reasoning_content"}           # the alias that is mirrored onto vLLM's own name


def same_texts(left, right):
    """Compare folded choices; a tool call streamed in pieces may be spaced differently, so compare its letters."""
    assert left.keys() == right.keys()
    for index in left:
        mine, theirs = dict(left[index]), dict(right[index])
        calls = [{place: [name, "".join(text.split())] for place, (name, text) in whole.pop("calls").items()}
                 for whole in (mine, theirs)]
        if calls[0]:
            # vLLM 0.32.0 streams the line ends between reasoning and call and leaves them out of the reply.
            mine["content"], theirs["content"] = mine["content"].strip(), theirs["content"].strip()
        assert mine == theirs
        assert calls[0] == calls[1]


@pytest.mark.parametrize("name", sorted(CHAT))
def test_the_reply_is_the_servers(chat, name):
    raw = ask(chat.server, "POST", "/v1/chat/completions", dict(CHAT[name], model=chat.server.model))
    assert raw.status == 200
    reply = chat.vllm.chat_completion(model=chat.model, **CHAT[name])
    assert list(differences(reply, raw.json)) == []
    assert additions(reply, raw.json) <= OURS


@pytest.mark.parametrize("name", sorted(CHAT))
def test_the_stream_says_what_the_reply_says(chat, name):
    reply = ask(chat.server, "POST", "/v1/chat/completions", dict(CHAT[name], model=chat.server.model)).json
    with chat.vllm.chat_completion_stream(model=chat.model, **CHAT[name]) as stream:
        chunks = list(stream)
    same_texts(fold_chat(chunks), chat_choices(reply))
    assert all(chunk.choices for chunk in chunks)
    usage = chunks[-1].usage
    assert [usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")] == [
        reply["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


@pytest.mark.parametrize("name", ["plain", "unicode", "weather", "logprobs", "two choices", "token ids"])
def test_the_frames_are_the_servers(chat, name):
    """Through plain HTTP, with and without usage: what a client of the gateway sees beside what vLLM sends."""
    for options in ({}, {"stream_options": {"include_usage": True}}):
        body = dict(CHAT[name], stream=True, **options)
        raw = ask(chat.server, "POST", "/v1/chat/completions", dict(body, model=chat.server.model))
        got = ask(chat.front, "POST", "/v1/chat/completions", dict(body, model=chat.model))
        assert got.status == raw.status == 200
        assert got.headers["content-type"].split(";")[0] == "text/event-stream"
        assert got.data[-1] == raw.data[-1] == "[DONE]"
        assert fold_chat(got.events) == fold_chat(raw.events)
        assert [event.get("usage") for event in got.events if event.get("usage")] == [
            event.get("usage") for event in raw.events if event.get("usage")]
        assert {key for event in got.events for key in event} == {key for event in raw.events for key in event}


def test_the_fixed_texts(chat, scripted):
    scripted(chat)
    reply = chat.vllm.chat_completion(model=chat.model, **CHAT["plain"])
    assert reply.choices[0].message.content == "Hello! How can I help you today?"
    call = chat.vllm.chat_completion(model=chat.model, **CHAT["weather"]).choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris", "unit": "celsius"}')


def test_tokens_come_as_they_are_made(chat):
    began, times = time.monotonic(), []
    with chat.vllm.chat_completion_stream(model=chat.model, **CHAT["many tokens"]) as stream:
        for _ in stream:
            times.append(time.monotonic() - began)
    assert len(times) > 50
    # All at once at the end would put the first chunk beside the last.
    assert times[0] < 0.5 * times[-1]


def test_unknown_parameters_reach_the_server(chat):
    """vLLM refuses a wrong value of a field that only it knows: so the field arrived."""
    from vllm_bridge import BadRequestError
    for spelled in ({"min_tokens": -3}, {"extra_body": {"min_tokens": -3}}):
        with pytest.raises(BadRequestError) as caught:
            chat.vllm.chat_completion(model=chat.model, **dict(CHAT["plain"], **spelled))
        assert "min_tokens" in caught.value.message


def test_the_models_are_the_servers(chat):
    raw = ask(chat.server, "GET", "/v1/models").json["data"]
    listed = chat.vllm.list_models().data
    prefix = "vllm/" if chat.kind == "gateway" else ""
    assert [model.id for model in listed] == [prefix + model["id"] for model in raw]
    assert listed[0]["max_model_len"] == raw[0]["max_model_len"]


def test_many_calls_at_once(chat):
    """Threads share one provider; each gets the answer to its own question."""
    import threading
    asked = {name: CHAT[name] for name in ("plain", "unicode", "count", "length", "stop", "empty")}
    wanted = {name: chat.vllm.chat_completion(model=chat.model, **body).choices[0].message.content
              for name, body in asked.items()}
    got = {}

    def work(name, turn):
        if turn % 2:
            reply = chat.vllm.chat_completion(model=chat.model, **asked[name])
            got[name, turn] = reply.choices[0].message.content
        else:
            chunks = list(chat.vllm.chat_completion_stream(model=chat.model, **asked[name]))
            got[name, turn] = fold_chat(chunks)[0]["content"]

    threads = [threading.Thread(target=work, args=(name, turn)) for name in asked for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {(name, turn): wanted[name] or "" for name in asked for turn in range(4)}


def test_a_long_stream_is_whole(chat):
    chunks = list(chat.vllm.chat_completion_stream(model=chat.model, **LONG))
    assert chunks[-1].usage.completion_tokens == LONG["max_tokens"]
    assert chunks[-1].choices[0].finish_reason == "length"
