"""A server with an API key, a reasoning parser and comments in its streams."""

import pytest
from cases import CHAT, REASONING, user
from conftest import start_gateway
from oracle import Target, additions, ask, chat_choices, differences, fold_chat
from test_chat import same_texts

from vllm_bridge import AuthenticationError, VLLMProvider

PATH = "/v1/chat/completions"


@pytest.mark.parametrize("name", sorted(REASONING))
def test_the_reply_is_the_servers(guarded, name):
    raw = ask(guarded.server, "POST", PATH, dict(REASONING[name], model=guarded.server.model))
    assert raw.status == 200
    reply = guarded.vllm.chat_completion(model=guarded.model, **REASONING[name])
    assert list(differences(reply, raw.json)) == []
    assert additions(reply, raw.json) <= {"reasoning_content"}
    message = reply.choices[0].message
    assert message.reasoning_content == message.reasoning


@pytest.mark.parametrize("name", sorted(REASONING))
def test_the_stream_says_what_the_reply_says(guarded, name):
    reply = ask(guarded.server, "POST", PATH, dict(REASONING[name], model=guarded.server.model)).json
    chunks = list(guarded.vllm.chat_completion_stream(model=guarded.model, **REASONING[name]))
    same_texts(fold_chat(chunks), chat_choices(reply))
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"])


def test_reasoning_under_both_names(guarded, scripted):
    scripted(guarded)
    reply = guarded.vllm.chat_completion(model=guarded.model, **REASONING["think"])
    assert reply.choices[0].message.reasoning_content == "\nThe user says think. I will answer Hello.\n"
    pieces = [chunk.choices[0].delta for chunk in
              guarded.vllm.chat_completion_stream(model=guarded.model, **REASONING["think"])]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(piece.get(name) or "" for piece in pieces) == reply.choices[0].message.reasoning


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_replayed_reasoning_is_accepted(guarded, name):
    history = [{"role": "user", "content": "think"}, {"role": "assistant", "content": "Hello", name: "I think."},
               {"role": "user", "content": "hello"}]
    reply = guarded.vllm.chat_completion(model=guarded.model, messages=history, temperature=0, max_tokens=5)
    assert reply.usage.completion_tokens > 0


def test_cached_tokens_are_counted(guarded):
    body = user("hello " * 200, max_tokens=2)
    guarded.vllm.chat_completion(model=guarded.model, **body)
    plain = guarded.vllm.chat_completion(model=guarded.model, **body)
    assert plain.usage.prompt_tokens_details["cached_tokens"] > 0
    chunks = list(guarded.vllm.chat_completion_stream(model=guarded.model, **body))
    streamed = chunks[-1].usage.prompt_tokens_details          # without the fields that are null
    assert streamed == {name: value for name, value in plain.usage.prompt_tokens_details.items() if value is not None}


@pytest.mark.parametrize("key", [None, "wrong"])
def test_without_the_key(guarded_library, key):
    if guarded_library.server.key is None:
        pytest.skip("this server has no key")
    raw = ask(Target("guarded", guarded_library.server.url, guarded_library.model, key), "POST", PATH, CHAT["plain"])
    assert (raw.status, raw.json) == (401, {"error": "Unauthorized"})
    with VLLMProvider(guarded_library.server.url, api_key=key) as vllm:
        for call in (lambda: vllm.chat_completion(model=guarded_library.model, **CHAT["plain"]),
                     lambda: vllm.chat_completion_stream(model=guarded_library.model, **CHAT["plain"]),
                     lambda: vllm.list_models()):
            with pytest.raises(AuthenticationError) as caught:
                call()
            assert "Unauthorized" in caught.value.message
            assert "wrong" not in str(caught.value)


def test_the_gateway_with_a_wrong_upstream_key(guarded_gateway):
    """Its client sees the status of the server, and that the key refused was not its own."""
    if guarded_gateway.server.key is None:
        pytest.skip("this server has no key")
    server = guarded_gateway.server
    process, front = start_gateway(Target("guarded", server.url, server.model, "wrong"))
    try:
        raw = ask(front, "POST", PATH, dict(CHAT["plain"], model=front.model))
        assert raw.status == 401
        assert raw.json["error"]["code"] == "upstream_authentication_error"
        assert "gateway's own key" in raw.json["error"]["message"]
    finally:
        process.terminate()
        process.wait(timeout=30)
