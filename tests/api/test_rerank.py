"""Rerank bodies and replies, against the transcripts rerank_*."""

import copy

import pytest

import wire
from vllm_bridge.api import rerank
from vllm_bridge.errors import (
    APIConnectionError,
    BadRequestError,
    ResponseDecodeError,
    error_from_body,
)

RECORDED = [name for name in wire.names("rerank_") if wire.load(name).request["path"].endswith("/rerank")]
ASK = {"model": "rerank", "query": "what is paris", "documents": ["the dog", "the paris"]}


def body(**changes):
    return rerank.prepare(dict(ASK, **changes))


def reply(*results, **top):
    return dict({"id": "score-1", "model": "m", "results": list(results)}, **top)


# ---------------------------------------------------------------- request


@pytest.mark.parametrize("name", [name for name in RECORDED if "_err_" not in name
                                  and not name.startswith("rerank_top_n_") and name != "rerank_query_object"])
def test_recorded_requests_go_up_unchanged(name):
    sent = wire.load(name).request["body"]
    expected = {key: value for key, value in sent.items() if key != "return_documents"}
    assert rerank.prepare(sent) == expected


def test_documents_go_up_as_strings():
    documents = ["a", {"text": "b"}, {"text": "c", "id": 7, "meta": {"k": 1}, "title": "t"}]
    assert body(documents=documents)["documents"] == ["a", "b", "c"]
    assert body(documents=("a",))["documents"] == ["a"]
    assert body(documents="one alone")["documents"] == ["one alone"]
    assert body(documents={"text": "one alone", "id": 1})["documents"] == ["one alone"]


@pytest.mark.parametrize("document", [
    {"content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
    {"content": "words", "text": "words"},
    {"image": "https://example.test/a.png"},
    {"type": "image_url", "image_url": {"url": "data:x"}, "text": None},
    {"content": []},
])
def test_documents_of_another_content_go_up_as_they_are(document):
    assert body(documents=["a", document])["documents"] == ["a", document]


def test_one_object_of_many_parts_goes_up_as_it_is():
    many = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert body(documents=many)["documents"] == many


def test_params_count_under_the_top_level_and_are_not_sent():
    sent = body(top_n=1, max_tokens_per_doc=None,
                params={"top_n": 2, "max_tokens_per_doc": 9, "priority": 3, "custom": [1], "return_documents": True,
                        "nothing": None})
    assert sent == dict(ASK, top_n=1, max_tokens_per_doc=9, priority=3, custom=[1])


def test_unknown_parameters_go_up_and_none_does_not():
    sent = body(use_activation=False, truncate_prompt_tokens=-1, user=None, top_n=None, return_documents=False,
                params=None)
    assert sent == dict(ASK, use_activation=False, truncate_prompt_tokens=-1)


def test_the_caller_s_dict_is_left_alone():
    given = dict(ASK, documents=[{"text": "a", "id": 1}], params={"top_n": 1})
    before = copy.deepcopy(given)
    rerank.prepare(given)
    rerank.convert(reply({"index": 0, "relevance_score": 1}), given)
    assert given == before


@pytest.mark.parametrize("changes, param, message", [
    ({"query": None}, "query", "query is required"),
    ({"query": " \n"}, "query", "query is required"),
    ({"documents": None}, "documents", "must not be empty"),
    ({"documents": []}, "documents", "must not be empty"),
    ({"documents": 5}, "documents", "array of strings or objects, got int"),
    ({"documents": ["a", "  "]}, "documents", "document text is required for rerank at index 1"),
    ({"documents": [{}]}, "documents", "document text is required for rerank at index 0"),
    ({"documents": ["a", "b", {"id": 1, "meta": {"k": 1}}]}, "documents",
     "document text is required for rerank at index 2"),
    ({"documents": [{"text": ""}]}, "documents", "document text is required for rerank at index 0"),
    ({"documents": [None]}, "documents", "document text is required for rerank at index 0"),
    ({"documents": ["a", 5]}, "documents", "document at index 1 must be a string or an object"),
    ({"documents": [{"text": 5}]}, "documents", "document at index 0 must be a string or an object"),
    ({"top_n": 0}, "top_n", "top_n must be at least 1, got 0"),
    ({"top_n": -1}, "top_n", "top_n must be at least 1, got -1"),
    ({"top_n": True}, "top_n", "top_n must be an integer, got True"),
    ({"top_n": "2"}, "top_n", "top_n must be an integer, got '2'"),
    ({"top_n": 2.0}, "top_n", "top_n must be an integer, got 2.0"),
    ({"params": {"top_n": "2"}}, "top_n", "top_n must be an integer"),
    ({"params": []}, "params", "params must be an object, got list"),
    ({"return_documents": "yes"}, "return_documents", "return_documents must be true or false, got 'yes'"),
])
def test_what_is_refused_before_it_is_sent(changes, param, message):
    with pytest.raises(BadRequestError) as caught:
        body(**changes)
    assert caught.value.param == param
    assert message in caught.value.message
    assert caught.value.status_code == 400


# ---------------------------------------------------------------- reply


@pytest.mark.parametrize("name", [name for name in RECORDED + ["embed_rerank"]
                                  if wire.load(name).status == 200])
def test_recorded_replies_come_back_whole(name):
    transcript = wire.load(name)
    asked, sent = transcript.request["body"], transcript.json
    got = rerank.convert(copy.deepcopy(sent), {key: value for key, value in asked.items()
                                               if key != "return_documents"})
    assert [(row["index"], row["relevance_score"]) for row in got["results"]] == sorted(
        ((row["index"], row["relevance_score"]) for row in sent["results"]), key=lambda row: (-row[1], row[0]))
    by_index = {row["index"]: row for row in sent["results"]}
    assert all(row == by_index[row["index"]] for row in got["results"])  # vLLM's document copy included
    assert got["id"] == sent["id"] and got["model"] == asked["model"]
    assert got["usage"] == dict(sent["usage"], completion_tokens=0)


def test_order_is_by_score_then_index():
    rows = [{"index": 3, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.5},
            {"index": 0, "relevance_score": -4.6}, {"index": 2, "relevance_score": 3}]
    got = rerank.convert(reply(*rows), dict(ASK, documents=list("abcd")))
    assert [row["index"] for row in got["results"]] == [2, 1, 3, 0]


def test_the_caller_s_own_documents_come_back():
    own = {"text": "b", "id": 7, "meta": {"k": 1}}
    rows = [{"index": i, "relevance_score": -i, "document": {"text": "upstream", "multi_modal": None}}
            for i in range(2)]
    asked = dict(ASK, documents=["a", own])
    for given in (dict(asked, return_documents=True), dict(asked, params={"return_documents": True})):
        got = rerank.convert(reply(*rows), given)
        assert [row["document"] for row in got["results"]] == [{"text": "a"}, own]
    got = rerank.convert(reply(*rows), dict(asked, return_documents=False, params={"return_documents": True}))
    assert not any("document" in row for row in got["results"])
    got = rerank.convert(reply(*rows), asked)
    assert [row["document"]["text"] for row in got["results"]] == ["upstream", "upstream"]


def test_the_parts_of_one_object_are_the_documents():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    got = rerank.convert(reply({"index": 1, "relevance_score": 1}),
                         dict(ASK, documents={"content": parts}, return_documents=True))
    assert got["results"][0]["document"] == parts[1]


def test_unknown_fields_stay_and_score_is_read():
    got = rerank.convert(reply({"index": 1.0, "score": 0.25, "relevance_score": None, "extra": [1]}, warnings=["w"]),
                         ASK)
    assert got["results"] == [{"index": 1, "score": 0.25, "relevance_score": 0.25, "extra": [1]}]
    assert got["warnings"] == ["w"]


def test_the_model_is_the_one_asked_for():
    assert rerank.convert(reply(), ASK)["model"] == "rerank"
    unnamed = {key: value for key, value in ASK.items() if key != "model"}
    assert rerank.convert(reply(), unnamed)["model"] == "m"


@pytest.mark.parametrize("sent, expected", [
    ({"prompt_tokens": 33, "total_tokens": 33},
     {"prompt_tokens": 33, "completion_tokens": 0, "total_tokens": 33}),
    ({"input_tokens": 3, "output_tokens": 4},
     {"input_tokens": 3, "output_tokens": 4, "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}),
    ({"prompt_tokens": 5, "input_tokens": 3, "total_tokens": 9, "details": {"x": 1}},
     {"prompt_tokens": 5, "input_tokens": 3, "completion_tokens": 0, "total_tokens": 9, "details": {"x": 1}}),
    ({"prompt_tokens": True, "input_tokens": "3"}, {"input_tokens": "3", "prompt_tokens": 0, "completion_tokens": 0,
                                                    "total_tokens": 0}),
    ({"prompt_tokens": 0, "total_tokens": 0}, None),
    ({}, None),
    (None, None),
])
def test_usage(sent, expected):
    assert rerank.convert(reply(usage=sent), ASK).get("usage") == expected


@pytest.mark.parametrize("payload, what", [
    ([], "the reply must be an object"),
    ({"id": "x"}, "missing results"),
    ({"results": None}, "results must be an array"),
    ({"results": {}}, "results must be an array"),
    (reply("x"), "result item must be an object"),
    (reply({"relevance_score": 1}), "result index is required"),
    (reply({"index": True, "relevance_score": 1}), "result index is required"),
    (reply({"index": "0", "relevance_score": 1}), "result index is required"),
    (reply({"index": 2, "relevance_score": 1}), "result index 2 out of range"),
    (reply({"index": -1, "relevance_score": 1}), "result index -1 out of range"),
    (reply({"index": 0, "relevance_score": 1}, {"index": 0, "relevance_score": 2}), "duplicate index 0"),
    (reply({"index": 0}), "relevance_score/score is required"),
    (reply({"index": 0, "relevance_score": True}), "relevance_score/score is required"),
    (reply({"index": 0, "relevance_score": float("nan"), "score": "1"}), "relevance_score/score is required"),
])
def test_a_reply_that_is_none(payload, what):
    with pytest.raises(ResponseDecodeError) as caught:
        rerank.convert(payload, ASK)
    assert caught.value.message == "error converting rerank response: invalid vllm rerank response: " + what
    assert caught.value.payload is payload


def test_a_score_of_any_size_sorts():
    got = rerank.convert(reply({"index": 0, "relevance_score": 1.5}, {"index": 1, "relevance_score": 10 ** 400}), ASK)
    assert [row["index"] for row in got["results"]] == [1, 0]


# ---------------------------------------------------------------- fallback


@pytest.mark.parametrize("name, expected", [
    ("err_generate_model_v1_rerank", True),   # {"detail": "Not Found"}
    ("rerank_err_unknown_model", False),
    ("err_unknown_model", False),
    ("err_unknown_route", True),
    ("err_wrong_method_get", True),
    ("rerank_err_too_long", False),
    ("auth_missing", False),
    ("engine_dead_first_request", False),
])
def test_fallback_on_recorded_errors(name, expected):
    transcript = wire.load(name)
    error = error_from_body(transcript.status, transcript.content_type, transcript.body)
    assert rerank.falls_back(error) is expected


@pytest.mark.parametrize("status, content_type, sent, expected", [
    (404, "", b"", True),
    (404, "text/html", b"<html><title>404</title></html>", True),
    (404, "text/plain", b"404 page not found", True),
    (405, "application/json", b'{"detail":"Method Not Allowed"}', True),
    (501, "", b"", True),
    (404, "application/json", b'{"object":"error","message":"no","type":"NotFoundError","code":404}', False),
    (404, "application/json", b'{"error":{"message":"no","code":"model_not_found"}}', False),
    (500, "", b"", False),
    (400, "", b"", False),
])
def test_fallback_on_other_servers(status, content_type, sent, expected):
    assert rerank.falls_back(error_from_body(status, content_type, sent)) is expected


def test_no_fallback_without_an_answer():
    assert rerank.falls_back(APIConnectionError("refused")) is False
