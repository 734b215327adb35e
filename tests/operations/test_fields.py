"""Settings written among the fields of a request, and names that are nearly a field's."""

import json
import types
import warnings

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, event
from vllm_bridge import APITimeoutError, BadRequestError, VLLMProvider
from vllm_bridge.operations.fields import misspelt

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def sent_by(**wire):
    """Return what a chat with these keywords sends: the request line, its headers, its body."""
    with Scripted(["request", answer(completion())]) as server, VLLMProvider(server.url, api_key="sk-1") as vllm:
        vllm.chat_completion(**ASK, **wire)
        request = server.requests[0]
        return request.line.split()[1], dict(request.headers), request.json


def test_settings_are_no_part_of_the_body():
    headers = {"X-Secret": "s3cret", "authorization": "Bearer other"}
    target, headers, body = sent_by(timeout=7, extra_headers=headers, extra_query={"api-version": 2})
    assert body == ASK
    assert target == "/v1/chat/completions?api-version=2"
    assert headers["x-secret"] == "s3cret" and headers["authorization"] == "Bearer other"


def test_settings_that_are_none_change_nothing_but_the_timeout():
    target, headers, body = sent_by(extra_headers=None, extra_query=None, timeout=None)
    assert body == ASK and target == "/v1/chat/completions" and headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("query, written", [  # as openai 2.x writes them
    ({"a": 1, "b": True, "c": None, "d": [1, 2], "e": {"f": "g h"}, "h": "é&"},
     "?a=1&b=true&d%5B%5D=1&d%5B%5D=2&e%5Bf%5D=g+h&h=%C3%A9%26"),
    ({}, ""), ({"c": None}, ""),
])
def test_a_query_is_written_as_the_openai_package_writes_it(query, written):
    assert sent_by(extra_query=query)[0] == "/v1/chat/completions" + written


def test_a_query_of_the_provider_and_one_of_the_call():
    with Scripted(["request", answer(completion())]) as server, VLLMProvider(server.url) as provider:
        provider.with_options(query={"a": 1}).chat_completion(**ASK, extra_query={"b": 2})
        assert server.requests[0].line.split()[1] == "/v1/chat/completions?a=1&b=2"


@pytest.mark.parametrize("timeout", [0.2, (5, 0.2), types.SimpleNamespace(connect=5, read=0.2, write=1, pool=1)])
def test_a_timeout_is_that_of_the_call(timeout):
    with Scripted(["request", "hold"]) as server, VLLMProvider(server.url, max_retries=0) as provider:
        with pytest.raises(APITimeoutError, match="0.2"):
            provider.chat_completion(**ASK, timeout=timeout)


def test_a_stream_has_settings_too():
    with Scripted(["request", SSE_HEAD, event("[DONE]"), LAST_CHUNK]) as server, VLLMProvider(server.url) as provider:
        list(provider.chat_completion_stream(**ASK, extra_headers={"X-A": "1"}))
        assert dict(server.requests[0].headers)["x-a"] == "1"
        assert "extra_headers" not in server.requests[0].json


def test_in_extra_body_every_name_is_a_fields():
    assert sent_by(extra_body={"timeout": 3, "headers": {}, "temprature": 1})[2] == {
        **ASK, "timeout": 3, "headers": {}, "temprature": 1}


@pytest.mark.parametrize("name, instead", [
    ("headers", "extra_headers="), ("api_key", "VLLMProvider(..., api_key=...)"), ("max_retries", "with_options"),
    ("deadline", "with_options(deadline=...)"), ("cancel", "with_options"), ("base_url", "VLLMProvider"),
])
def test_a_setting_with_another_place_is_refused_by_name(name, instead):
    with VLLMProvider("http://127.0.0.1:1") as provider:
        provider_options = provider._options
        with pytest.raises(BadRequestError) as caught:
            provider.chat_completion(**ASK, **{name: "s3cret"})
        assert provider._options is provider_options
    assert caught.value.param == name and name in caught.value.message and instead in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("name, value", [("timeout", "soon"), ("timeout", -1), ("extra_headers", ["a"]),
                                         ("extra_headers", {"a\n": "b"}), ("extra_query", "a=1")])
def test_a_setting_that_cannot_be_is_refused(name, value):
    with VLLMProvider("http://127.0.0.1:1") as provider:
        with pytest.raises(BadRequestError, match="chat_completion: " + name):
            provider.chat_completion(**ASK, **{name: value})


def test_models_are_listed_with_settings_and_nothing_else():
    models = {"object": "list", "data": [{"id": "m"}]}
    with Scripted(["request", answer(models)]) as server, VLLMProvider(server.url) as provider:
        assert provider.list_models(timeout=5, extra_headers={"X-A": "1"}).data[0].id == "m"
        assert dict(server.requests[0].headers)["x-a"] == "1"
        with pytest.raises(BadRequestError, match="limit"):
            provider.list_models(limit=3)


def test_a_setting_with_another_place_that_is_none_is_not_there(recwarn):
    assert sent_by(session=None, deadline=None)[2] == ASK and not recwarn


# ---------------------------------------------------------------- near misses

@pytest.mark.parametrize("operation, name, meant", [
    ("chat_completion", "temprature", "temperature"), ("chat_completion", "max_token", "max_tokens"),
    ("chat_completion", "modle", "model"), ("chat_completion", "mesages", "messages"),
    ("chat_completion", "topp", "top_p"), ("chat_completion", "maxTokens", "max_tokens"),
    ("chat_completion", "max_new_tokens", "max_tokens"), ("chat_completion", "extra_header", "extra_headers"),
    ("embedding", "dimension", "dimensions"), ("rerank", "return_document", "return_documents"),
])
def test_a_near_miss_gives_one_warning_and_is_sent(operation, name, meant):
    replies = {"embedding": {"data": [{"embedding": [1.0]}]}, "rerank": {"results": [], "model": "m"}}
    reply = answer(replies.get(operation) or completion())
    with Scripted(["request", reply, "request", reply]) as server, VLLMProvider(server.url) as provider:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                getattr(provider, operation)(model="m", query="q", documents=["d"], input="x", messages=[],
                                             encoding_format="float", **{name: 1})
        assert [request.json[name] for request in server.requests] == [1, 1]
    assert len(caught) == 1
    assert "did you mean %r" % meant in str(caught[0].message) and caught[0].filename == __file__


@pytest.mark.parametrize("name", [
    "colour", "messages[]", "min_k", "top_a", "guided_json", "stream", "enable_thinking", "dry_base",
])
def test_what_is_like_no_field_gives_none(name):
    assert misspelt(name, ["temperature", "top_k", "top_p", "min_p", "stream_options", "messages"]) is None


def test_what_the_gateway_hands_on_is_its_clients_own():
    body = {**ASK, "timeout": 5, "headers": {"a": "b"}, "temprature": 1}
    with Scripted(["request", answer(completion())]) as server, VLLMProvider(server.url) as provider:
        assert provider.forward("chat_completion", body).status == 200
        assert server.requests[0].json == json.loads(json.dumps(body))
    with Scripted(["request", answer({"results": []})]) as server, VLLMProvider(server.url) as provider:
        body = {"query": "q", "documents": ["d"], "timeout": 5, "extra_headers": {"a": "b"}, "api_key": "x", "qery": 1}
        assert provider.with_options(verbatim=True).rerank(**body).results == []
        assert server.requests[0].json == body and "a" not in dict(server.requests[0].headers)
