"""Embeddings: vectors, encodings and errors are the server's."""

import base64
import math
import struct

import pytest
from oracle import additions, ask, differences, plain

from vllm_bridge import APIStatusError, NotFoundError

PATH = "/v1/embeddings"
BODIES = {
    "one": {"input": "hello"},
    "several": {"input": ["hello", "world", "the quick brown fox"]},
    "token ids": {"input": [5, 6, 7]},
    "lists of ids": {"input": [[5, 6, 7], [8]]},
    "messages": {"messages": [{"role": "user", "content": "hello"}]},
    "truncated": {"input": "hello " * 500, "truncate_prompt_tokens": 10},
    "priority and user": {"input": "hello", "user": "u"},
    "without activation": {"input": "hello", "use_activation": False},
    "base64": {"input": ["hello", "world"], "encoding_format": "base64"},
    "halves": {"input": "hello", "encoding_format": "base64", "embed_dtype": "float16"},
}
WRONG = {
    "unknown model": {"input": "hello", "model": "nope"},
    "nothing": {"input": []},
    "no input": {},
    "a number": {"input": 5},
    "too long": {"input": "hello " * 500},
    "one too long": {"input": ["hello", "hello " * 500]},
    "no such token": {"input": [999999]},
    "dimensions": {"input": "hello", "dimensions": 8},
    "encoding": {"input": "hello", "encoding_format": "hex"},
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_reply_is_the_servers(embed, name):
    raw = ask(embed.server, "POST", PATH, dict(BODIES[name], model=embed.server.model))
    assert raw.status == 200
    reply = embed.vllm.embedding(model=embed.model, **BODIES[name])
    assert list(differences(reply, raw.json)) == []
    assert additions(reply, raw.json) == set()


def test_the_vectors(embed):
    rows = embed.vllm.embedding(model=embed.model, input=["hello", "world", "hello"]).data
    assert [row.index for row in rows] == [0, 1, 2]
    assert all(math.isclose(math.fsum(x * x for x in row.embedding), 1.0, rel_tol=1e-3) for row in rows)
    assert rows[0].embedding == pytest.approx(rows[2].embedding, abs=1e-4)
    assert rows[0].embedding != pytest.approx(rows[1].embedding, abs=1e-2)
    packed = embed.vllm.embedding(model=embed.model, input="hello", encoding_format="base64").data[0].embedding
    assert isinstance(packed, str)
    bytes_ = base64.b64decode(packed)
    assert list(struct.unpack("<%df" % (len(bytes_) // 4), bytes_)) == pytest.approx(rows[0].embedding, abs=1e-4)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_error_is_the_servers(embed, name):
    theirs = ask(embed.server, "POST", PATH, dict({"model": embed.server.model}, **WRONG[name])).json["error"]
    with pytest.raises(APIStatusError) as caught:
        embed.vllm.embedding(**dict({"model": embed.model}, **WRONG[name]))
    if embed.kind == "gateway" and name in ("no input", "nothing"):
        assert caught.value.status_code == 400         # the gateway says itself that the input is missing
        return
    ours = caught.value
    assert (ours.status_code, plain(ours.message), ours.type, ours.param) == (
        theirs["code"], plain(theirs["message"]), theirs["type"], theirs["param"])


def test_a_large_batch(embed):
    texts = ["hello %d" % number for number in range(300)]
    reply = embed.vllm.embedding(model=embed.model, input=texts)
    assert [row.index for row in reply.data] == list(range(300))


def test_rerank_by_cosine(embed):
    """An embedding server reranks too, by the angle between the vectors."""
    body = {"query": "hello", "documents": ["world", "hello"]}
    raw = ask(embed.server, "POST", "/v1/rerank", dict(body, model=embed.server.model)).json
    reply = embed.vllm.rerank(model=embed.model, **body)
    assert [row.index for row in reply.results] == [row["index"] for row in raw["results"]] == [1, 0]


def test_chat_is_not_offered(embed):
    with pytest.raises(NotFoundError) as caught:
        embed.vllm.chat_completion(model=embed.model, messages=[{"role": "user", "content": "hello"}])
    assert embed.server.model in caught.value.message
    with pytest.raises(NotFoundError):
        embed.vllm.chat_completion_stream(model=embed.model, messages=[{"role": "user", "content": "hello"}])


POOLING = {
    "one": {"input": "hello"}, "several": {"input": ["hello", "world"]},
    "base64": {"input": ["hello", "world"], "encoding_format": "base64"},
    "chat": {"messages": [{"role": "user", "content": "hello"}]},
}


@pytest.mark.parametrize("name", sorted(POOLING))
def test_what_is_pooled_is_the_servers(embed, name):
    raw = ask(embed.server, "POST", "/pooling", dict(POOLING[name], model=embed.server.model)).json
    assert list(differences(embed.vllm.pooling(model=embed.model, **POOLING[name]), raw)) == []


def test_plain_numbers(embed):
    floats = embed.vllm.pooling(model=embed.model, input=["hello", "world"]).data
    rows = embed.vllm.pooling(model=embed.model, input=["hello", "world"], encoding_format="bytes").data
    for row, want in zip(rows, floats):
        assert row.shape == [64]
        assert list(struct.unpack("<64f", row["data"])) == pytest.approx(want.data, abs=1e-4)
    (alone,) = embed.vllm.embedding(model=embed.model, input="hello", encoding_format="bytes_only").data
    assert list(struct.unpack("<64f", alone["embedding"])) == pytest.approx(floats[0].data, abs=1e-4)


def test_coheres_form(embed):
    body = {"texts": ["hello", "world"], "embedding_types": ["float", "base64", "binary", "ubinary"]}
    raw = ask(embed.server, "POST", "/v2/embed", dict(body, model=embed.server.model)).json
    reply = embed.vllm.embed(model=embed.model, **body)
    assert list(differences(reply["embeddings"]["float"], raw["embeddings"]["float"])) == []
    assert reply["meta"] == raw["meta"] and len(reply.embeddings.base64) == 2


def test_coheres_package(embed, request):
    cohere = pytest.importorskip("cohere")
    if embed.kind == "library":
        pytest.skip("cohere's client has no use for the library")
    http = pytest.importorskip("httpx").Client()
    request.addfinalizer(http.close)
    client = cohere.ClientV2(api_key="none", base_url=embed.front.url, httpx_client=http)
    raw = ask(embed.server, "POST", "/v2/embed", {"model": embed.server.model, "texts": ["hello"],
                                                  "embedding_types": ["float"]}).json
    with pytest.raises(cohere.BadRequestError):  # this model has no task instructions
        client.embed(model=embed.model, texts=["hello"], input_type="search_query", embedding_types=["float"])
    with pytest.raises(cohere.NotFoundError):
        client.embed(model="nope", texts=["hello"], input_type="search_query", embedding_types=["float"])
    assert raw["response_type"] == "embeddings_by_type"
