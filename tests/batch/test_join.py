"""Several requests in one, and its answer taken apart again."""

import pytest

from vllm_bridge.batch.asking import grouped
from vllm_bridge.batch.join import joined, parted
from vllm_bridge.batch.request import Request
from vllm_bridge.errors import ResponseDecodeError


def requests(operation, *bodies):
    found = []
    for number, body in enumerate(bodies):
        request = Request(number + 1, b"")
        request.operation, request.body = operation, body
        found.append(request)
    return found


def test_inputs_of_all_kinds_go_in_one_and_their_vectors_come_apart():
    asked = requests("embedding", {"model": "m", "input": "a"}, {"model": "m", "input": ["b", "c"]})
    assert joined(asked) == {"model": "m", "input": ["a", "b", "c"]}
    rows = [{"index": index, "object": "embedding", "embedding": [float(index)]} for index in (2, 0, 1)]
    usage = {"prompt_tokens": 10, "total_tokens": 10, "details": None}
    first, second = parted({"object": "list", "model": "m", "data": rows, "usage": usage}, asked)
    assert [row["embedding"] for row in first["data"]] == [[0.0]]
    assert [(row["index"], row["embedding"]) for row in second["data"]] == [(0, [1.0]), (1, [2.0])]
    assert first["model"] == second["model"] == "m"
    assert first["usage"]["prompt_tokens"] + second["usage"]["prompt_tokens"] == 10
    assert 0 < first["usage"]["prompt_tokens"] < second["usage"]["prompt_tokens"] and first["usage"]["details"] is None


def test_documents_for_one_query_go_in_one_and_keep_their_order_by_score():
    asked = requests("rerank", {"query": "q", "documents": ["a", "b"]}, {"query": "q", "documents": ["c", "d"]})
    assert joined(asked) == {"query": "q", "documents": ["a", "b", "c", "d"]}
    results = [{"index": index, "relevance_score": 1 - place} for place, index in enumerate((3, 0, 2, 1))]
    first, second = parted({"results": results}, asked)
    assert [row["index"] for row in first["results"]] == [0, 1]
    assert [row["index"] for row in second["results"]] == [1, 0]


@pytest.mark.parametrize("operation, bodies, sizes", [
    ("embedding", [{"input": "a"}, {"input": "b"}, {"input": "c", "dimensions": 8}, {"input": "d", "dimensions": 8}],
     [2, 2]),
    ("embedding", [{"input": "a"}, {"input": [1, 2]}, {"input": [[3], [4]]}], [1, 2]),  # tokens with tokens
    ("embedding", [{"input": []}, {"input": "a"}, {"messages": []}, {"input": "b"}], [1, 1, 1, 1]),
    ("rerank", [{"query": "q", "documents": ["a"]}, {"query": "r", "documents": ["a"]}], [1, 1]),
    ("rerank", [{"query": "q", "documents": ["a"], "top_n": 1}] * 2, [1, 1]),
    ("chat_completion", [{"messages": []}] * 2, [1, 1]),
])
def test_only_what_asks_the_same_is_joined(operation, bodies, sizes):
    assert [len(group) for group in grouped(requests(operation, *bodies))] == sizes


def test_token_ids_stay_lists():
    asked = requests("embedding", {"input": [1, 2]}, {"input": [[3], [4]]})
    assert joined(asked)["input"] == [[1, 2], [3], [4]]


@pytest.mark.parametrize("payload", [
    {}, {"data": None}, {"data": [{}]}, {"data": [{"index": 0}]}, {"data": [{"index": 0}, {"index": 5}]},
    {"data": [{"index": 0}, {"index": 0}]}, {"data": [{"index": 0}, {"index": "1"}]},
    {"data": [{"index": 0}, {"index": -1}, {"index": 1}]},
])
def test_an_answer_that_does_not_fit_is_no_answer(payload):
    with pytest.raises(ResponseDecodeError):
        parted(payload, requests("embedding", {"input": "a"}, {"input": "b"}))
