"""Text completions: the reply is the server's, and the stream says what the reply says."""

import pytest
from cases import TEXT
from oracle import additions, ask, differences


def fold(chunks):
    """Put the chunks together, for each choice."""
    whole = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text, reason, stop = whole.get(choice["index"], ("", None, None))
            whole[choice["index"]] = (text + choice["text"], choice["finish_reason"] or reason,
                                      choice.get("stop_reason") or stop)
    return whole


@pytest.mark.parametrize("name", sorted(TEXT))
def test_the_reply_is_the_servers(chat, name):
    raw = ask(chat.server, "POST", "/v1/completions", dict(TEXT[name], model=chat.server.model))
    assert raw.status == 200
    reply = chat.vllm.text_completion(model=chat.model, **TEXT[name])
    assert list(differences(reply, raw.json)) == []
    assert additions(reply, raw.json) == set()


@pytest.mark.parametrize("name", sorted(TEXT))
def test_the_stream_says_what_the_reply_says(chat, name):
    reply = ask(chat.server, "POST", "/v1/completions", dict(TEXT[name], model=chat.server.model)).json
    with chat.vllm.text_completion_stream(model=chat.model, **TEXT[name]) as stream:
        chunks = list(stream)
    assert fold(chunks) == fold([reply])
    assert all(chunk.choices for chunk in chunks)
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1].usage[key] == reply["usage"][key]


@pytest.mark.parametrize("name", ["plain", "two prompts"])
def test_the_frames_are_the_servers(chat, name):
    body = dict(TEXT[name], stream=True)
    raw = ask(chat.server, "POST", "/v1/completions", dict(body, model=chat.server.model))
    got = ask(chat.front, "POST", "/v1/completions", dict(body, model=chat.model))
    assert got.data[-1] == raw.data[-1] == "[DONE]"
    assert fold(got.events) == fold(raw.events)
    assert not any(event.get("usage") for event in got.events)
