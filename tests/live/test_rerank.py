"""Rerank: order, scores and errors are the server's; the documents are the caller's own."""

import pytest
from oracle import ask, differences

from vllm_bridge import APIStatusError, BadRequestError

PATH = "/v1/rerank"
DOCUMENTS = ["the dog in the city", "the paris in the city", "the cat in the city"]
ASK = {"query": "what is paris", "documents": DOCUMENTS}
BODIES = {
    "plain": ASK,
    "the best two": dict(ASK, top_n=2),
    "raw scores": dict(ASK, use_activation=False),
    "more than there are": dict(ASK, top_n=50),
    "cut documents": dict(ASK, documents=["paris " * 60, "dog " * 60], max_tokens_per_doc=16),
    "one": dict(ASK, documents=["the paris in the city"]),
}
WRONG = {
    "unknown model": dict(ASK, model="nope"),
    "too long": dict(ASK, documents=["paris " * 400]),
}


def rows(reply):
    return [(row["index"], pytest.approx(row["relevance_score"], abs=1e-3)) for row in reply["results"]]


@pytest.mark.parametrize("name", sorted(BODIES))
def test_the_reply_is_the_servers(rerank, name):
    raw = ask(rerank.server, "POST", PATH, dict(BODIES[name], model=rerank.server.model))
    assert raw.status == 200
    reply = rerank.vllm.rerank(model=rerank.model, **BODIES[name])
    assert rows(reply) == rows(raw.json)
    assert list(differences(reply.usage, raw.json["usage"])) == []
    assert reply.model == raw.json["model"] or rerank.kind == "gateway"


def test_the_best_comes_first(rerank, scripted):
    scripted(rerank)
    best = rerank.vllm.rerank(model=rerank.model, **ASK).results[0]
    assert best.index == 1
    assert best.relevance_score > 0.9


def test_objects_come_back_as_they_were(rerank):
    documents = [{"text": text, "mark": place} for place, text in enumerate(DOCUMENTS)]
    reply = rerank.vllm.rerank(model=rerank.model, query=ASK["query"], documents=documents, return_documents=True)
    raw = ask(rerank.server, "POST", PATH, dict(ASK, model=rerank.server.model)).json
    assert [row.index for row in reply.results] == [row["index"] for row in raw["results"]]
    for row in reply.results:
        assert row.document == documents[row.index]


@pytest.mark.parametrize("name", sorted(WRONG))
def test_the_error_is_the_servers(rerank, name):
    raw = ask(rerank.server, "POST", PATH, dict({"model": rerank.server.model}, **WRONG[name]))
    with pytest.raises(APIStatusError) as caught:
        rerank.vllm.rerank(**dict({"model": rerank.model}, **WRONG[name]))
    assert caught.value.status_code == raw.status
    assert caught.value.message == raw.json["error"]["message"]


@pytest.mark.parametrize("fields", [{"top_n": -1}, {"documents": []}], ids=["top_n", "no documents"])
def test_what_is_refused_here_and_there(rerank, fields):
    raw = ask(rerank.server, "POST", PATH, dict(ASK, model=rerank.server.model, **fields))
    with pytest.raises(BadRequestError) as caught:
        rerank.vllm.rerank(**dict(ASK, model=rerank.model, **fields))
    assert caught.value.status_code == raw.status == 400


def test_many_documents(rerank):
    documents = ["the %s in the city" % word for word in ("paris", "dog", "cat", "fish")] * 30
    raw = ask(rerank.server, "POST", PATH, dict(ASK, documents=documents, model=rerank.server.model)).json
    reply = rerank.vllm.rerank(model=rerank.model, query=ASK["query"], documents=documents)
    # Equal documents differ in the ninth digit and may change places: compare what was found, not which copy.
    assert [documents[row.index] for row in reply.results[:30]] == [
        documents[row["index"]] for row in raw["results"][:30]] == ["the paris in the city"] * 30
    assert sorted(row.index for row in reply.results) == list(range(len(documents)))


SCORES = {
    "one against many": {"text_1": ASK["query"], "text_2": DOCUMENTS},
    "pairs": {"text_1": DOCUMENTS, "text_2": DOCUMENTS},
    "queries": {"queries": ASK["query"], "documents": DOCUMENTS},
    "items": {"queries": ASK["query"], "items": DOCUMENTS},
    "raw": {"data_1": ASK["query"], "data_2": DOCUMENTS[0], "use_activation": False},
}


@pytest.mark.parametrize("name", sorted(SCORES))
def test_scores_are_the_servers(rerank, name):
    raw = ask(rerank.server, "POST", "/v1/score", dict(SCORES[name], model=rerank.server.model)).json
    assert list(differences(rerank.vllm.score(model=rerank.model, **SCORES[name]), raw)) == []


def test_classes_are_the_servers(rerank):
    for path, call in (("/classify", rerank.vllm.classify), ("/pooling", rerank.vllm.pooling)):
        body = {"input": DOCUMENTS} if path == "/classify" else {"input": DOCUMENTS[0], "task": "classify"}
        raw = ask(rerank.server, "POST", path, dict(body, model=rerank.server.model)).json
        assert list(differences(call(model=rerank.model, **body), raw)) == []


def test_scores_that_cannot_be_made(rerank):
    body = {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}
    raw = ask(rerank.server, "POST", "/v1/score", dict(body, model=rerank.server.model))
    with pytest.raises(BadRequestError) as caught:
        rerank.vllm.score(model=rerank.model, **body)
    assert caught.value.message == raw.json["error"]["message"]


def test_coheres_package(rerank, request):
    cohere = pytest.importorskip("cohere")
    if rerank.kind == "library":
        pytest.skip("cohere's client has no use for the library")
    http = pytest.importorskip("httpx").Client()
    request.addfinalizer(http.close)
    client = cohere.ClientV2(api_key="none", base_url=rerank.front.url, httpx_client=http)
    reply = client.rerank(model=rerank.model, query=ASK["query"], documents=DOCUMENTS, top_n=2)
    assert [row.index for row in reply.results] == [1, 0]


def test_langchains_cohere(rerank, request):
    langchain = pytest.importorskip("langchain_cohere")
    if rerank.kind == "library":
        pytest.skip("langchain has no use for the library")
    ranker = langchain.CohereRerank(model=rerank.model, cohere_api_key="none", base_url=rerank.front.url, top_n=2)
    request.addfinalizer(ranker.client._client_wrapper.httpx_client.httpx_client.close)
    assert [row["index"] for row in ranker.rerank(DOCUMENTS, ASK["query"])] == [1, 0]
