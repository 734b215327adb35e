"""Rerank: the caller's keywords → vLLM's body, and vLLM's reply → the caller's."""

import math
from typing import Any, Dict, List, Optional, Tuple

from ..errors import APIStatusError, BadRequestError, BridgeError, ResponseDecodeError

__all__ = ["convert", "falls_back", "prepare"]

# Keys that describe a document without being its content.
_LABELS = frozenset(("text", "id", "meta"))


# ---------------------------------------------------------------- request


def prepare(wire: Dict[str, Any]) -> Dict[str, Any]:
    """Build vLLM's body from the caller's keywords.

    Objects with a ``text`` go up as that text, because vLLM 0.32 answers 400 to ``{"text": ...}``;
    objects with another content (``{"content": [...]}``) go up as they are. What is nested in ``params`` counts
    where the top level says nothing. ``return_documents`` stays here. Raises ``BadRequestError``.
    """
    given = _given(wire)
    _return_documents(given)
    query = given.get("query")
    if query is None or (isinstance(query, str) and not query.strip()):
        raise BadRequestError("query is required for rerank, and must not be blank", param="query")
    given["documents"] = _contents(given.get("documents"))
    top_n = given.get("top_n")
    if top_n is not None:
        _check_top_n(top_n)
    given.pop("return_documents", None)
    return given


def _given(wire: Dict[str, Any]) -> Dict[str, Any]:
    """Merge ``params`` under the top level; ``None`` means that nothing was said."""
    nested = wire.get("params")
    if nested is None:
        nested = {}
    if not isinstance(nested, dict):
        raise BadRequestError("params must be an object, got %s" % type(nested).__name__, param="params")
    given = {name: value for name, value in wire.items() if value is not None and name != "params"}
    for name, value in nested.items():
        if value is not None:
            given.setdefault(name, value)
    return given


def _return_documents(given: Dict[str, Any]) -> Optional[bool]:
    value = given.get("return_documents")
    if value is None or isinstance(value, bool):
        return value
    raise BadRequestError("return_documents must be true or false, got %.100r" % (value,), param="return_documents")


def _check_top_n(top_n: Any) -> None:
    # vLLM would take "2" and read 0 as "all" (rerank_top_n_string, rerank_top_n_zero); a caller who sends
    # those is more likely mistaken than served.
    if isinstance(top_n, bool) or not isinstance(top_n, int):
        raise BadRequestError("top_n must be an integer, got %.100r" % (top_n,), param="top_n")
    if top_n < 1:
        raise BadRequestError("top_n must be at least 1, got %d; leave it out for all documents" % top_n,
                              param="top_n")


def _contents(documents: Any) -> Any:
    if isinstance(documents, dict) and _holds_many(documents):
        return documents
    return [_content(document, index) for index, document in enumerate(_listed(documents))]


def _holds_many(documents: Dict[str, Any]) -> bool:
    # One object in the place of the list: each of its content parts is a document to vLLM.
    return isinstance(documents.get("content"), list) and bool(documents["content"])


def _listed(documents: Any) -> List[Any]:
    """Return the caller's documents one by one, as vLLM's ``index`` counts them."""
    if isinstance(documents, dict) and _holds_many(documents):
        return list(documents["content"])
    if isinstance(documents, (str, dict)):
        return [documents]
    if documents is None or (isinstance(documents, (list, tuple)) and not documents):
        raise BadRequestError("documents are required for rerank, and must not be empty", param="documents")
    if not isinstance(documents, (list, tuple)):
        raise BadRequestError("documents must be an array of strings or objects, got %s" % type(documents).__name__,
                              param="documents")
    return list(documents)


def _content(document: Any, index: int) -> Any:
    text = document
    if isinstance(document, dict):
        text = document.get("text")
        others = [name for name, value in document.items() if value is not None and name not in _LABELS]
        if document.get("content") is not None or (text is None and others):
            return document  # its content is something else than a text: only the server can judge it
    if text is not None and not isinstance(text, str):
        raise BadRequestError("document at index %d must be a string or an object with a text" % index,
                              param="documents")
    if text is None or not text.strip():
        raise BadRequestError("document text is required for rerank at index %d" % index, param="documents")
    return text


# ---------------------------------------------------------------- reply


def convert(payload: Any, wire: Dict[str, Any]) -> Dict[str, Any]:
    """Check vLLM's reply to `wire`, the caller's keywords, and return it best score first.

    ``document`` is the caller's own (a string as ``{"text": ...}``) when ``return_documents`` is true, vLLM's copy
    when nothing was said, and absent when it is false. ``relevance_score`` is always there, ``model`` is the one
    asked for. Raises ``ResponseDecodeError``.
    """
    given = _given(wire)
    documents = _listed(given.get("documents"))
    if not isinstance(payload, dict):
        raise _invalid("the reply must be an object", payload)
    wanted = _return_documents(given)
    results = [_shown(result, documents, wanted) for result in _results(payload, len(documents))]
    reply = dict(payload)
    reply["results"] = results
    if given.get("model") is not None:
        reply["model"] = given["model"]
    usage = _usage(payload.get("usage"))
    if usage is None:
        reply.pop("usage", None)
    else:
        reply["usage"] = usage
    return reply


def _invalid(what: str, payload: Any) -> ResponseDecodeError:
    return ResponseDecodeError("error converting rerank response: invalid vllm rerank response: " + what,
                               payload=payload)


def _results(payload: Dict[str, Any], count: int) -> List[Dict[str, Any]]:
    if "results" not in payload:
        raise _invalid("missing results", payload)
    items = payload["results"]
    if not isinstance(items, list):
        raise _invalid("results must be an array", payload)
    ranked: List[Tuple[float, int, Dict[str, Any]]] = []
    seen = set()
    for item in items:
        if not isinstance(item, dict):
            raise _invalid("result item must be an object", payload)
        index = _index(item.get("index"))
        if index is None:
            raise _invalid("result index is required", payload)
        if not 0 <= index < count:
            raise _invalid("result index %d out of range" % index, payload)
        if index in seen:
            raise _invalid("duplicate index %d" % index, payload)
        seen.add(index)
        score = _score(item)
        if score is None:
            raise _invalid("relevance_score/score is required", payload)
        ranked.append((-score, index, dict(item, index=index, relevance_score=score)))
    ranked.sort(key=lambda entry: entry[:2])
    return [entry[2] for entry in ranked]


def _index(value: Any) -> Optional[int]:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _score(item: Dict[str, Any]) -> Optional[float]:
    for name in ("relevance_score", "score"):
        value = item.get(name)
        if isinstance(value, bool):
            continue
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return value
    return None


def _shown(result: Dict[str, Any], documents: List[Any], wanted: Optional[bool]) -> Dict[str, Any]:
    if wanted:
        own = documents[result["index"]]
        result["document"] = own if isinstance(own, dict) else {"text": own}
    elif wanted is False:
        result.pop("document", None)  # vLLM 0.32.0 ignores return_documents: false
    return result


def _usage(usage: Any) -> Optional[Dict[str, Any]]:
    """Fill in the names that rerank servers leave out; ``None`` where nothing was counted."""
    if not isinstance(usage, dict):
        return None
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    completion = _count(usage, "completion_tokens", "output_tokens")
    total = _count(usage, "total_tokens")
    if not total:
        total = prompt + completion
    filled = dict(usage, prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)
    return filled if any(filled.values()) else None


def _count(usage: Dict[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0


# ---------------------------------------------------------------- fallback


def falls_back(error: BridgeError) -> bool:
    """Tell whether an error of ``/v1/rerank`` means that the route is missing, so that ``/rerank`` is worth a try.

    vLLM 0.32.0 answers 404 ``{"detail": "Not Found"}`` for the route (err_generate_model_v1_rerank) and 404 with the
    type ``NotFoundError`` for the model (rerank_err_unknown_model).
    """
    if not isinstance(error, APIStatusError):
        return False
    if error.status_code in (405, 501):
        return True
    if error.status_code != 404:
        return False
    return error.type != "NotFoundError" and error.param != "model" and error.code != "model_not_found"
