"""A warning of embeddings that are not those of the text: their client has made token ids of it for another model."""

import logging
from typing import Any, Dict

from ..config.redaction import one_line

__all__ = ["look"]

_CLIENTS = ("langchain", "openai")  # langchain-openai makes token ids with tiktoken, unless it is told not to
_OF_OPENAI = "text-embedding-"
_MESSAGE = (
    "%s was sent token ids by %s, which as a rule are those of OpenAI's tokenizer: the vectors are then those of other "
    "words. With langchain-openai: OpenAIEmbeddings(..., check_embedding_ctx_length=False). Said once."
)
_log = logging.getLogger("vllm_bridge.gateway")
_warned = False


def look(fields: Dict[str, str], body: Dict[str, Any]) -> None:
    """Warn, once, of the first request for embeddings whose ids a tokenizer of OpenAI's has probably made."""
    global _warned
    model = str(body.get("model"))
    if _warned or not _are_ids(body.get("input")) or model.rpartition("/")[2].startswith(_OF_OPENAI):
        return
    client = fields.get("user-agent", "")
    if any(name in client.lower() for name in _CLIENTS):
        _warned = True
        _log.warning(_MESSAGE, one_line(model, 200), one_line(client, 200))


def _are_ids(given: Any) -> bool:
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, list) and first:
        first = first[0]
    return isinstance(first, int)
