"""Operations of pooling models: vectors and scores."""

from typing import TYPE_CHECKING, Any, Dict

from ..api.body import object_of
from ..api.records import EmbeddingList, Rerank
from ..client.reply import Reply
from .calls import Calls
from .described import POOLED, SCHEDULING, described

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import EmbeddingRequest, RerankRequest

__all__ = ["Pooling"]

_EMBEDDING = """Input: ``input`` (a string, strings, token ids, lists of them) or ``messages``, ``model``;
    of messages ``chat_template``, ``add_generation_prompt``, ``continue_final_message``, ``media_io_kwargs``.

    Vectors: ``dimensions``, ``encoding_format`` (``"base64"``: a string), ``embed_dtype``, ``endianness``;
    ``add_special_tokens``."""
_RERANK = """Input: ``query``, ``documents`` (strings, or objects with a ``text``), ``model``, ``instruction``,
    ``max_tokens_per_query``, ``max_tokens_per_doc``. Output: ``top_n`` (0: all), ``return_documents``."""


class Pooling(Calls):
    """Vectors and scores."""

    @described(_EMBEDDING, POOLED, SCHEDULING)
    def embedding(self, /, **wire: "Unpack[EmbeddingRequest]") -> EmbeddingList:
        """Embed ``input``, or a chat: POST /v1/embeddings.

        Vectors are lists of floats, unless ``encoding_format`` asks for something else. From vLLM they travel as
        base64, which is cheaper to read.

        >>> [len(row.embedding) for row in vllm.embedding(model="echo", input=["one", "two"]).data]
        [8, 8]
        """
        call, body = self._asked("embedding", wire)
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
        reply = call._reranked(body)
        return call._finished(Rerank(reply.read(lambda: convert(object_of(reply.body), given))), body, reply)

    def _reranked(self, body: Dict[str, Any]) -> Reply:
        return self._reply("rerank", body, body.get("model"))
