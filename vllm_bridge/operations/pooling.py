"""Operations of pooling models: vectors and scores."""

from typing import TYPE_CHECKING, Any, Dict, Type

from ..api.body import object_of
from ..api.records import EmbeddingList, Rerank
from ..api.replies import ClassificationList, CohereEmbeddings, Decision, PoolingList, ScoreList
from .calls import Calls, R
from .described import POOLED, SCHEDULING, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import (
        ClassifyRequest,
        DecisionRequest,
        EmbeddingRequest,
        EmbedRequest,
        GenerativeScoringRequest,
        PoolingRequest,
        RerankRequest,
        ScoreRequest,
    )

__all__ = ["Pooling"]

_EMBEDDING = """Input: ``input`` (a string, strings, token ids, lists of them) or ``messages``, ``model``;
    of messages ``chat_template``, ``add_generation_prompt``, ``continue_final_message``, ``media_io_kwargs``.

    Vectors: ``dimensions``, ``encoding_format`` (``"base64"``: a string, ``"bytes"``), ``embed_dtype``, ``endianness``;
    ``add_special_tokens``."""
_RERANK = """Input: ``query``, ``documents`` (strings, or objects with a ``text``), ``model``, ``instruction``,
    ``max_tokens_per_query``, ``max_tokens_per_doc``. Output: ``top_n`` (0: all), ``return_documents``."""

_CLASSIFY = """Input: ``input`` (a string, strings, token ids, lists of them) or ``messages``, ``model``,
    ``add_special_tokens``; of messages ``chat_template``, ``add_generation_prompt``, ``continue_final_message``,
    ``media_io_kwargs``."""
_POOLING = """Which: ``task`` (such as ``"token_embed"``), ``data`` (for a plugin).

    Output: ``encoding_format`` (``"base64"``: a string, ``"bytes"``: bytes), ``embed_dtype``, ``endianness``,
    ``dimensions``."""
_SCORE = """Input: ``text_1`` and ``text_2``, ``queries`` and ``documents``, ``queries`` and ``items``, or ``data_1``
    and ``data_2`` (each a string or several; one against many, or as many against as many), ``model``,
    ``instruction``, ``max_tokens_per_query``, ``max_tokens_per_doc``."""
_EMBED = """Input: one of ``texts``, ``images`` (data URLs) and ``inputs`` (objects with ``content``); ``model``,
    ``input_type``, ``truncate``, ``max_tokens``, ``priority``. Output: ``embedding_types``, ``output_dimension``."""
_DECISION = """Input: ``state`` (a text or JSON), ``questions`` (by id: ``type`` ``"noul"``, yes or no, or ``"choice"``,
    ``instructions``, ``criteria``), ``model``, ``instructions`` (ahead of them), ``images``, ``audio``, ``videos``
    (URLs), ``chat_template_kwargs``, ``cache_salt``, ``priority``, ``request_id``."""
_GENERATIVE = """Input: ``query``, ``items`` (strings, or token ids), ``label_token_ids``, ``model``, ``item_first``,
    ``add_special_tokens``, ``cache_salt``, ``priority``, ``request_id``. Output: ``apply_softmax`` (over the labels
    alone)."""


class Pooling(Calls):
    """Vectors and scores."""

    @described(_EMBEDDING, POOLED, SCHEDULING)
    def embedding(self, /, **wire: "Unpack[EmbeddingRequest]") -> EmbeddingList:
        """Embed ``input``, or a chat: POST /v1/embeddings.

        Vectors are lists of floats, unless ``encoding_format`` asks for something else; with ``"bytes"`` each is bytes.
        From vLLM they travel as base64, which is cheaper to read.

        >>> [len(row.embedding) for row in vllm.embedding(model="echo", input=["one", "two"]).data]
        [8, 8]
        """
        call, body = self._asked("embedding", wire)
        if str(body.get("encoding_format")).startswith("bytes"):
            return call._numbers(EmbeddingList, "embedding", "embedding", body)
        return call._embedded(body)

    def _embedded(self, body: Dict[str, Any]) -> EmbeddingList:
        return self._record(EmbeddingList, "embedding", body)

    @described(_RERANK, POOLED, SCHEDULING)
    def rerank(self, /, **wire: "Unpack[RerankRequest]") -> Rerank:
        """Score ``documents`` against ``query``, best first: POST /v1/rerank.

        With ``return_documents=True`` each result carries the caller's own document.

        >>> ranking = vllm.rerank(query="cat", documents=["a dog", "a cat"], return_documents=True)
        >>> ranking.results[0].index, ranking.results[0].document.text
        (1, 'a cat')
        """
        from ..api.rerank import convert, prepare

        call, given = self._asked("rerank", wire)
        body = prepare(given)
        reply = call._reply("rerank", body, body.get("model"))
        return call._finished(Rerank(reply.read(lambda: convert(object_of(reply.body), given))), body, reply)

    @described(_SCORE, POOLED, SCHEDULING)
    def score(self, /, **wire: "Unpack[ScoreRequest]") -> ScoreList:
        """Score pairs of texts, in the order of the request: POST /v1/score.

        >>> [row.score for row in vllm.score(model="echo", text_1="the cat", text_2=["a cat", "the cat"]).data]
        [0.3333333333333333, 1.0]
        """
        call, body = self._asked("score", wire)
        return call._record(ScoreList, "score", body)

    @described(_CLASSIFY, POOLED, SCHEDULING)
    def classify(self, /, **wire: "Unpack[ClassifyRequest]") -> ClassificationList:
        """Tell the class of each input, with the probability of every class: POST /classify.

        >>> row = vllm.classify(model="echo", input="Win a prize now!").data[0]
        >>> row.label, row.num_classes, len(row.probs)
        ('LABEL_1', 2, 2)
        """
        call, body = self._asked("classify", wire)
        return call._record(ClassificationList, "classify", body)

    @described(_CLASSIFY, _POOLING, POOLED, SCHEDULING)
    def pooling(self, /, **wire: "Unpack[PoolingRequest]") -> PoolingList:
        """Return what a model's pooler makes of each input: POST /pooling.

        With ``encoding_format="bytes"`` each row's ``data`` is bytes, beside its ``shape``, ``embed_dtype`` and
        ``endianness``.

        >>> [len(row.data) for row in vllm.pooling(model="echo", input=["one", "two"]).data]
        [8, 8]
        """
        call, body = self._asked("pooling", wire)
        return call._numbers(PoolingList, "pooling", "data", body)

    def _numbers(self, record: Type[R], operation: str, member: str, body: Dict[str, Any]) -> R:
        """Return a reply that may be plain numbers, in which each row's are bytes under `member`."""
        from ..api.embeddings import from_bytes

        reply = self._reply(operation, body, body.get("model"))
        payload = reply.read(lambda: from_bytes(
            reply.body, reply.content_type, reply.headers.get("metadata"), member) or object_of(reply.body))
        return self._finished(record(payload), body, reply)

    @described(_EMBED)
    def embed(self, /, **wire: "Unpack[EmbedRequest]") -> CohereEmbeddings:
        """Embed as Cohere's API has it: POST /v2/embed.

        >>> reply = vllm.embed(model="echo", texts=["one"], embedding_types=["float"])
        >>> len(reply.embeddings["float"][0])
        8
        """
        call, body = self._asked("embed", wire)
        return call._record(CohereEmbeddings, "embed", body)

    @described(_DECISION)
    def decision(self, /, **wire: "Unpack[DecisionRequest]") -> Decision:
        """Answer questions by the probabilities of their answers: POST /v1/systemone.

        >>> questions = {"spam": {"type": "noul", "instructions": "Is this spam?"}}
        >>> answer = vllm.decision(model="echo", state="Win a prize now!", questions=questions).answers["spam"]
        >>> answer["type"], 0 <= answer["noul"] <= 1
        ('noul', True)
        """
        call, body = self._asked("decision", wire)
        return call._record(Decision, "decision", body)

    @described(_GENERATIVE)
    def generative_scoring(self, /, **wire: "Unpack[GenerativeScoringRequest]") -> ScoreList:
        """Score items by the probability of the first of some tokens as the next one: POST /generative_scoring.

        >>> ask = {"query": "Is it a cat? ", "items": ["cat", "dog"], "label_token_ids": [1, 2]}
        >>> [row.index for row in vllm.generative_scoring(model="echo", **ask).data]
        [0, 1]
        """
        call, body = self._asked("generative_scoring", wire)
        return call._record(ScoreList, "generative_scoring", body)
