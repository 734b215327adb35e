"""What is made of a line, a body, a prompt."""

import json

import pytest

from vllm_bridge.batch.request import Defaults, Request
from vllm_bridge.errors import BadRequestError


def read(given, **defaults):
    request = Request(7, given if isinstance(given, (str, bytes)) else json.dumps(given).encode())
    Defaults(**defaults).read(request)
    return request.operation, request.body


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("given, defaults, operation, body", [
    ({"messages": MESSAGES}, {}, "chat_completion", {"messages": MESSAGES}),
    ({"prompt": "a"}, {}, "text_completion", {"prompt": "a"}),
    ({"input": "a"}, {}, "embedding", {"input": "a"}),
    ({"input": "a"}, {"url": "/v1/responses"}, "responses", {"input": "a"}),
    ({"query": "a", "documents": ["b"]}, {}, "rerank", {"query": "a", "documents": ["b"]}),
    ({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}, {}, "text_completion",
     {"prompt": "a"}),
    ({"custom_id": "1", "body": {"messages": MESSAGES, "model": "m"}}, {"model": "n"}, "chat_completion",
     {"messages": MESSAGES, "model": "m"}),
    ({"custom_id": "1", "messages": MESSAGES}, {}, "chat_completion", {"messages": MESSAGES}),
    ({"messages": MESSAGES, "top_k": 1}, {"model": "n", "parameters": {"top_k": 2, "seed": 3}}, "chat_completion",
     {"messages": MESSAGES, "model": "n", "top_k": 1, "seed": 3}),
    ({"messages": MESSAGES, "model": None}, {"model": "n"}, "chat_completion", {"messages": MESSAGES, "model": "n"}),
    ({"url": "/v2/rerank", "body": {"query": "a", "documents": []}}, {}, "rerank", {"query": "a", "documents": []}),
    ({"custom_id": "1", "url": "/v1/embeddings", "body": {"messages": MESSAGES}}, {}, "embedding",
     {"messages": MESSAGES}),
    ("Hi", {}, "chat_completion", {"messages": MESSAGES}),
    (b"Hi", {"text": True}, "chat_completion", {"messages": MESSAGES}),
    (b'{"a": 1}', {"text": True, "url": "/v1/completions"}, "text_completion", {"prompt": '{"a": 1}'}),
    (b"a", {"text": True, "url": "/v1/embeddings"}, "embedding", {"input": "a"}),
    (b"a", {"text": True, "url": "/v1/responses"}, "responses", {"input": "a"}),
])
def test_a_request_is_read(given, defaults, operation, body):
    assert read(given, **defaults) == (operation, body)


@pytest.mark.parametrize("given, defaults, said", [
    (b"nonsense", {}, "line 7 is no request: the body is not JSON"),
    (b"[1]", {}, "line 7 is no request: the body must be a JSON object"),
    (b"{}", {}, "line 7 holds neither messages"),
    (b'{"input": NaN}', {}, "NaN is no JSON number"),
    (b'{"input": "a\0"}', {}, "line 7 holds a NUL byte"),
    (b'{"input": "\xff"}', {}, "line 7 is no request: the body is not UTF-8"),
    (b"\xff", {"text": True}, "line 7 is no UTF-8 text"),
    (b"a", {"text": True, "url": "/v1/rerank"}, "line 7 is a text"),
    ({"url": "/v1/audio/speech", "body": {}}, {}, 'line 7 has the url "/v1/audio/speech", which is not offered'),
    ({"url": 7, "body": {}}, {}, "line 7 has the url 7"),
    ({"url": ["x"], "body": {}}, {}, "line 7 has the url"),
    ({"method": "GET", "body": {"input": "a"}}, {}, 'line 7 has the method "GET"'),
    ({"custom_id": "1", "body": "a"}, {}, "line 7 has a body that is no object"),
    (b"[" * 100000, {}, "line 7 is no request: the JSON is nested too deeply"),
])
def test_what_is_no_request_is_said_with_its_line(given, defaults, said):
    with pytest.raises(BadRequestError) as caught:
        read(given, **defaults)
    assert said in caught.value.message
    assert caught.value.url is None  # nobody was asked


def test_what_is_neither_an_object_nor_a_text_is_refused():
    with pytest.raises(BadRequestError, match="expected an object or a text, got int"):
        Defaults().read(Request(7, 5))  # type: ignore[arg-type]


def test_what_was_given_is_not_changed():
    given = {"messages": MESSAGES, "custom_id": "1"}
    request = Request(1, given)
    Defaults("m", parameters={"seed": 1}).read(request)
    assert given == {"messages": MESSAGES, "custom_id": "1"}
