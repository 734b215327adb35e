"""Rerank: the caller's keywords → vLLM's body, and vLLM's reply → the caller's."""

import math
from typing import Any, Dict, List, Optional, Tuple

from ..errors import APIStatusError, BadRequestError, BridgeError, ResponseDecodeError

__all__ = ["convert", "falls_back", "prepare"]

# Keys that describe a document without being its content.
_LABELS = frozenset(("text", "id", "meta"))


def prepare(wire: Dict[str, Any]) -> Dict[str, Any]:
    """Build vLLM's body from the caller's keywords.

    Objects with a ``text`` go up as that text, because vLLM 0.32 answers 400 to ``{"text": ...}``;
    objects with another content (``{"content": [...]}``) go up as they are. What is nested in ``params`` counts
    where the top level says nothing. ``return_documents`` stays here. Raises ``BadRequestError``.
    """
    given = _given(wire)
    query, documents, top_n = given.get("query"), given.get("documents"), given.get("top_n", 1)
    if query is None or (isinstance(query, str) and not query.strip()):
        raise BadRequestError("query is required for rerank, and must not be blank", param="query")
    if not _holds_many(documents):
        given["documents"] = [_content(document, index) for index, document in enumerate(_listed(documents))]
    # vLLM would take "2" and read 0 as "all" (rerank_top_n_string, rerank_top_n_zero); a caller who sends
    # those is more likely mistaken than served.
    if isinstance(top_n, bool) or not isinstance(top_n, int):
        raise BadRequestError("top_n must be an integer, got %.100r" % (top_n,), param="top_n")
    if top_n < 1:
        raise BadRequestError("top_n must be at least 1, got %d; leave it out for all documents" % top_n, param="top_n")
    given.pop("return_documents", None)
    return given


def _given(wire: Dict[str, Any]) -> Dict[str, Any]:
    """Merge ``params`` under the top level; ``None`` means that nothing was said."""
    nested = wire.get("params")
    nested = {} if nested is None else nested
    if not isinstance(nested, dict):
        raise BadRequestError("params must be an object, got %s" % type(nested).__name__, param="params")
    given = {name: value for name, value in nested.items() if value is not None}
    given.update((name, value) for name, value in wire.items() if value is not None and name != "params")
    wanted = given.get("return_documents", True)
    if not isinstance(wanted, bool):
        raise BadRequestError(
            "return_documents must be true or false, got %.100r" % (wanted,), param="return_documents"
        )
    return given


def _holds_many(documents: Any) -> bool:
    # One object in the place of the list: each of its content parts is a document to vLLM.
    return isinstance(documents, dict) and isinstance(documents.get("content"), list) and bool(documents["content"])


def _listed(documents: Any) -> List[Any]:
    """Return the caller's documents one by one, as vLLM's ``index`` counts them."""
    if _holds_many(documents):
        return list(documents["content"])
    if isinstance(documents, (str, dict)):
        return [documents]
    if documents is None or (isinstance(documents, (list, tuple)) and not documents):
        raise BadRequestError("documents are required for rerank, and must not be empty", param="documents")
    if not isinstance(documents, (list, tuple)):
        problem = "documents must be an array of strings or objects, got %s" % type(documents).__name__
        raise BadRequestError(problem, param="documents")
    return list(documents)


def _content(document: Any, index: int) -> Any:
    text = document
    if isinstance(document, dict):
        text = document.get("text")
        others = [name for name, value in document.items() if value is not None and name not in _LABELS]
        if document.get("content") is not None or (text is None and others):
            return document  # its content is something else than a text: only the server can judge it
    if text is not None and not isinstance(text, str):
        problem = "document at index %d must be a string or an object with a text" % index
    elif text is None or not text.strip():
        problem = "document text is required for rerank at index %d" % index
    else:
        return text
    raise BadRequestError(problem, param="documents")


# ---------------------------------------------------------------- reply


def convert(payload: Any, wire: Dict[str, Any]) -> Dict[str, Any]:
    """Check vLLM's reply to `wire`, the caller's keywords, and return it best score first.

    ``document`` is the caller's own (a string as ``{"text": ...}``) when ``return_documents`` is true, vLLM's copy
    when nothing was said, and absent when it is false. ``relevance_score`` is always there, ``model`` is the one
    asked for. Raises ``ResponseDecodeError``.
    """
    given = _given(wire)
    documents = _listed(given.get("documents"))
    try:
        results = _results(payload, len(documents))
    except ValueError as error:
        problem = "error converting rerank response: invalid vllm rerank response: %s" % error
        raise ResponseDecodeError(problem, payload=payload) from None
    wanted = given.get("return_documents")
    for result in results:
        if wanted:
            own = documents[result["index"]]
            result["document"] = own if isinstance(own, dict) else {"text": own}
        elif wanted is False:
            result.pop("document", None)  # vLLM 0.32.0 ignores return_documents: false
    reply = {**payload, "results": results, "usage": _usage(payload.get("usage"))}
    if given.get("model") is not None:
        reply["model"] = given["model"]
    if reply["usage"] is None:
        del reply["usage"]
    return reply


def _results(payload: Any, count: int) -> List[Dict[str, Any]]:
    """Return the results, best first; raises `ValueError` with what is wrong."""
    if not isinstance(payload, dict):
        raise ValueError("the reply must be an object")
    if "results" not in payload:
        raise ValueError("missing results")
    if not isinstance(payload["results"], list):
        raise ValueError("results must be an array")
    ranked: Dict[int, Tuple[float, int, Dict[str, Any]]] = {}
    for item in payload["results"]:
        if not isinstance(item, dict):
            raise ValueError("result item must be an object")
        index, score = item.get("index"), _score(item)
        if isinstance(index, bool) or not (isinstance(index, int) or (isinstance(index, float) and index.is_integer())):
            raise ValueError("result index is required")
        index = int(index)
        if not 0 <= index < count:
            raise ValueError("result index %d out of range" % index)
        if index in ranked:
            raise ValueError("duplicate index %d" % index)
        if score is None:
            raise ValueError("relevance_score/score is required")
        ranked[index] = (-score, index, {**item, "index": index, "relevance_score": score})
    return [item for _, _, item in sorted(ranked.values())]


def _score(item: Dict[str, Any]) -> Optional[float]:
    for value in (item.get("relevance_score"), item.get("score")):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, int) or math.isfinite(value):
                return value
    return None


def _usage(usage: Any) -> Optional[Dict[str, Any]]:
    """Fill in the names that rerank servers leave out; ``None`` where nothing was counted."""
    if not isinstance(usage, dict):
        return None
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens") or prompt + completion
    filled = {**usage, "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return filled if any(filled.values()) else None


def _count(usage: Dict[str, Any], *names: str) -> int:
    counts = [usage.get(name) for name in names]
    return next((count for count in counts if isinstance(count, int) and not isinstance(count, bool)), 0)


# ---------------------------------------------------------------- fallback


def falls_back(error: BridgeError) -> bool:
    """Tell whether an error of ``/v1/rerank`` means that the route is missing, so that ``/rerank`` is worth a try.

    vLLM 0.32.0 answers 404 ``{"detail": "Not Found"}`` for the route (err_generate_model_v1_rerank) and 404 with the
    type ``NotFoundError`` for the model (rerank_err_unknown_model).
    """
    if not isinstance(error, APIStatusError) or error.status_code not in (404, 405, 501):
        return False
    model = error.type == "NotFoundError" or error.param == "model" or error.code == "model_not_found"
    return error.status_code != 404 or not model
