"""Errors: status, message, type, param and code are vLLM's own, plain and streamed."""

import pytest
from cases import CHAT, TOOLS, user
from oracle import Target, ask, plain

from vllm_bridge import APIConnectionError, APIStatusError, BadRequestError, NotFoundError, UnsupportedOperationError

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
WRONG = {
    "unknown model": (CHAT_PATH, dict(CHAT["plain"], model="nope")),
    "unknown model for text": (TEXT_PATH, {"prompt": "hello", "model": "nope"}),
    "temperature": (CHAT_PATH, user("hello", temperature=-1)),
    "no messages": (CHAT_PATH, {"max_tokens": 3}),
    "messages of the wrong type": (CHAT_PATH, {"messages": "hello"}),
    "no tokens": (CHAT_PATH, user("hello", max_tokens=0)),
    "more tokens than there are": (CHAT_PATH, user("hello", max_tokens=100000)),
    "too long a prompt": (CHAT_PATH, user("hello " * 3000)),
    "too long a text": (TEXT_PATH, {"prompt": "hello " * 3000}),
    "five stop strings": (CHAT_PATH, user("hello", stop=["1", "2", "3", "4", "5"])),
    "empty stop string": (CHAT_PATH, user("hello", stop=[""])),
    "no such token": (TEXT_PATH, {"prompt": [999999], "max_tokens": 2}),
    "no prompt": (TEXT_PATH, {"max_tokens": 2}),
    "bad regex": (CHAT_PATH, user("hello", structured_outputs={"regex": "("})),
    "empty choice": (CHAT_PATH, user("hello", structured_outputs={"choice": []})),
    "too many logprobs": (CHAT_PATH, user("hello", logprobs=True, top_logprobs=50)),
    "unknown function": (CHAT_PATH, user("hello", tools=TOOLS, tool_choice={
        "type": "function", "function": {"name": "nope"}})),
}


def error_of(raw):
    """The error of a plain reply, or the first event of a stream that vLLM opened before it noticed."""
    payload = raw.events[0] if raw.data else raw.json
    return payload["error"]


# The gateway says these itself, in its own words.
MISSING = ("no messages", "no prompt")


def call(face, path, body, streamed):
    operation = {CHAT_PATH: "chat_completion", TEXT_PATH: "text_completion"}[path] + ("_stream" if streamed else "")
    fields = dict({"model": face.model}, **body)
    with pytest.raises(APIStatusError) as caught:
        list(getattr(face.vllm, operation)(**fields))
    return caught.value


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_error_is_the_servers(chat, name, streamed):
    path, body = WRONG[name]
    raw = ask(chat.server, "POST", path, dict({"model": chat.server.model, "stream": streamed}, **body))
    theirs = error_of(raw)
    ours = call(chat, path, body, streamed)
    assert ours.status_code == theirs["code"]
    if chat.kind == "gateway" and name in MISSING:
        return
    assert (plain(ours.message), ours.type, ours.param, ours.code) == (
        plain(theirs["message"]), theirs["type"], theirs["param"], theirs["code"])


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_gateway_says_so_in_plain_http(chat_gateway, name):
    """An error that vLLM reports inside a 200 gets its status from the gateway."""
    path, body = WRONG[name]
    server = chat_gateway.server
    theirs = error_of(ask(server, "POST", path, dict({"model": server.model, "stream": True}, **body)))
    got = ask(chat_gateway.front, "POST", path, dict({"model": chat_gateway.model, "stream": True}, **body))
    assert got.status == theirs["code"]
    assert name in MISSING or plain(got.json["error"]["message"]) == plain(theirs["message"])


@pytest.mark.parametrize("operation,fields,path", [
    ("embedding", {"input": "hello"}, "/v1/embeddings"),
    ("rerank", {"query": "a", "documents": ["b"]}, "/v1/rerank"),
    ("transcription", {"file": b"RIFF"}, "/v1/audio/transcriptions"),
])
def test_what_a_chat_model_does_not_offer(chat, operation, fields, path):
    """vLLM answers a bare 404; ours names the operation and the models that are there."""
    assert ask(chat.server, "POST", path, {"model": chat.server.model}).json == {"detail": "Not Found"}
    with pytest.raises(NotFoundError) as caught:
        getattr(chat.vllm, operation)(model=chat.model, **fields)
    assert caught.value.status_code == 404
    assert operation in caught.value.message
    assert chat.server.model in caught.value.message


def test_what_no_vllm_offers(chat):
    with pytest.raises(UnsupportedOperationError):
        chat.vllm.speech(model=chat.model, input="hello")


def test_nobody_there():
    from vllm_bridge import VLLMProvider
    from live_rig.servers import free_port
    url = "http://127.0.0.1:%d" % free_port()
    with VLLMProvider(url, max_retries=0) as vllm:
        with pytest.raises(APIConnectionError):
            vllm.chat_completion(model="chat", **CHAT["plain"])
        with pytest.raises(APIConnectionError):
            vllm.chat_completion_stream(model="chat", **CHAT["plain"])


def test_an_error_leaves_the_connection_usable(chat):
    for _ in range(3):
        with pytest.raises(BadRequestError):
            chat.vllm.chat_completion(model=chat.model, **user("hello", temperature=-1))
        assert chat.vllm.chat_completion(model=chat.model, **CHAT["plain"]).choices


def test_the_oracle_itself():
    """A target without a key sends none."""
    assert Target("chat", "http://127.0.0.1:1", "m").headers() == {}
