"""Tokens, generative scores, several chats at once, any request: what the server says."""

import pytest
from cases import TOOLS
from oracle import ask, differences

from vllm_bridge import APIStatusError

TOKENIZE = {
    "prompt": {"prompt": "hello Paris"}, "strings": {"prompt": "hello Paris", "return_token_strs": True},
    "chat": {"messages": [{"role": "user", "content": "hello"}]},
    "tools": {"messages": [{"role": "user", "content": "hello"}], "tools": TOOLS, "add_generation_prompt": False},
}


@pytest.mark.parametrize("name", sorted(TOKENIZE))
def test_tokens_are_the_servers(chat, name):
    raw = ask(chat.server, "POST", "/tokenize", dict(TOKENIZE[name], model=chat.server.model)).json
    assert chat.vllm.tokenize(model=chat.model, **TOKENIZE[name]) == raw
    back = ask(chat.server, "POST", "/detokenize", {"model": chat.server.model, "tokens": raw["tokens"]}).json
    assert chat.vllm.detokenize(model=chat.model, tokens=raw["tokens"]) == back


def test_no_model_is_named(chat):
    assert chat.vllm.tokenize(prompt="hello") == ask(chat.server, "POST", "/tokenize", {"prompt": "hello"}).json
    assert chat.vllm.detokenize(tokens=[]).prompt == ""


def test_the_tokenizer_is_described(chat):
    assert chat.vllm.tokenizer_info(model=chat.model) == ask(chat.server, "GET", "/tokenizer_info").json


@pytest.mark.parametrize("fields", [{"model": "nope", "prompt": "x"}, {}], ids=["model", "prompt"])
def test_the_error_is_the_servers(chat, fields):
    raw = ask(chat.server, "POST", "/tokenize", dict({"model": chat.server.model}, **fields))
    with pytest.raises(APIStatusError) as caught:
        chat.vllm.tokenize(**dict({"model": chat.model}, **fields))
    assert (caught.value.status_code, caught.value.message) == (raw.status, raw.json["error"]["message"])


def test_generative_scores_are_the_servers(chat):
    body = {"query": "Is the sky blue?", "items": ["yes", "no"], "label_token_ids": [370, 356]}
    raw = ask(chat.server, "POST", "/generative_scoring", dict(body, model=chat.server.model)).json
    assert list(differences(chat.vllm.generative_scoring(model=chat.model, **body), raw)) == []


def test_a_decision_is_refused_in_the_servers_words(chat):
    """This tiny model has no tokens for the labels."""
    body = {"state": "x", "questions": {"spam": {"type": "noul", "instructions": "Is this spam?"}}}
    raw = ask(chat.server, "POST", "/v1/systemone", dict(body, model=chat.server.model))
    with pytest.raises(APIStatusError) as caught:
        chat.vllm.with_options(max_retries=0).decision(model=chat.model, **body)
    assert (caught.value.status_code, caught.value.message) == (raw.status, raw.json["error"]["message"])


def test_several_chats_at_once(chat):
    body = {"messages": [[{"role": "user", "content": text}] for text in ("hello", "json")], "temperature": 0,
            "max_tokens": 40}
    raw = ask(chat.server, "POST", "/v1/chat/completions/batch", dict(body, model=chat.server.model)).json
    reply = chat.vllm.chat_completion_batch(model=chat.model, **body)
    assert list(differences(reply, raw)) == [] and len(reply.choices) == 2


def test_any_request(chat):
    raw = ask(chat.server, "POST", "/tokenize", {"model": chat.server.model, "prompt": "hello"}).json
    assert chat.vllm.request("POST", "/tokenize", json={"model": chat.model, "prompt": "hello"}) == raw
    body = {"model": chat.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "temperature": 0}
    with chat.vllm.stream_request("POST", "/v1/chat/completions", json=body) as stream:
        assert [chunk.object for chunk in stream][0] == "chat.completion.chunk"
    load = chat.vllm.request("GET", "/load")
    assert load == ({"servers": {"0": {"server_load": 0}}} if chat.kind == "gateway" else {"server_load": 0})


def test_the_remote_tokenizer_of_lm_eval(chat_gateway):
    api = pytest.importorskip("lm_eval.utils")
    tokenizer = api.RemoteTokenizer(chat_gateway.front.url + "/v1/completions")
    raw = ask(chat_gateway.server, "POST", "/tokenize", {"prompt": "hello Paris", "add_special_tokens": False}).json
    assert tokenizer.encode("hello Paris") == raw["tokens"]
    assert tokenizer.decode(raw["tokens"])
