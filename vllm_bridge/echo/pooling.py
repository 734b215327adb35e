"""POST /v1/embeddings and /rerank: vectors from a hash, scores from words in common, in vLLM 0.32.0's shapes."""

import base64
import hashlib
import math
import re
import struct
from typing import Any, Dict, List

from .directives import Plan
from .generate import pieces, text_of, texts_of, usage, whole
from .refusal import invalid, missing, plain_bad_request, problem
from .reply import Reply, World, headed

_FORMATS = {"float32": "f", "float16": "e"}


def vector(text: str, size: int) -> List[float]:
    """Return a unit vector of ``size`` float32 values that depends on ``text`` alone.

    >>> vector("a", 2) == vector("a", 2) != vector("b", 2)
    True
    """
    raw: List[float] = []
    block = 0
    while len(raw) < size:
        digest = hashlib.sha256(("%d:%s" % (block, text)).encode("utf-8", "surrogatepass")).digest()
        raw += [number / 32767.5 - 1.0 for number in struct.unpack("<16H", digest)]
        block += 1
    length = math.sqrt(sum(value * value for value in raw[:size])) or 1.0
    packed = struct.pack("<%df" % size, *[value / length for value in raw[:size]])
    return list(struct.unpack("<%df" % size, packed))


def inputs(body: Dict[str, Any]) -> List[str]:
    """Return the texts to embed: a text, texts, token ids, lists of them, or one conversation."""
    given = body.get("input", body.get("messages"))
    if isinstance(given, list) and given and isinstance(given[0], dict):
        return ["\n".join(text_of(message.get("content")) for message in given)]
    return texts_of(given) if isinstance(given, (str, list)) else []


def heard_embedding(body: Dict[str, Any]) -> str:
    """Return the text that an embedding's directives are read from: the first input."""
    return (inputs(body) or [""])[0]


def embed(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer an embedding request; as a Matryoshka model the stand-in takes fewer ``dimensions`` than it has."""
    size = world.embedding_size
    given = body.get("input", body.get("messages"))
    if not isinstance(given, (str, list)):
        raise invalid(problem("list_type", "body.input", "Input should be a valid list", given),
                      problem("string_type", "body.input", "Input should be a valid string", given))
    kind = body.get("encoding_format") or "float"
    if kind not in ("float", "base64"):
        raise invalid(problem("literal_error", "body.encoding_format", "Input should be 'float' or 'base64'", kind,
                              expected="'float' or 'base64'"))
    texts = inputs(body)
    if not texts:
        raise plain_bad_request("You must pass at least one prompt")
    texts[0] = plan.text if given and plan.text else texts[0]
    dimensions = whole(body, "dimensions", size) or 0
    if not 1 <= dimensions <= size:
        raise plain_bad_request("Model '%s' only supports dimensions in range [1, %d], got %d."
                                % (identity["model"], size, dimensions))
    data = [{"index": index, "object": "embedding", "embedding": encoded(vector(text, dimensions), kind, body)}
            for index, text in enumerate(texts)]
    tokens = sum(max(1, len(pieces(text))) for text in texts)
    return Reply(headed(identity, "list", data=data, usage=usage(tokens, 0)), tokens=1)


def encoded(values: List[float], kind: str, body: Dict[str, Any]) -> Any:
    """Return a vector in the form that is asked for."""
    return values if kind == "float" else base64.b64encode(packed(values, body)).decode("ascii")


def packed(values: List[float], body: Dict[str, Any]) -> bytes:
    """Return a vector as bytes in the type and order that are asked for."""
    order = ">" if body.get("endianness") == "big" else "<"
    packing = _FORMATS.get(str(body.get("embed_dtype") or "float32"), "f")
    return struct.pack("%s%d%s" % (order, len(values), packing), *values)


def heard_rerank(body: Dict[str, Any]) -> str:
    """Return the text that a rerank's directives are read from: the query."""
    return str(body.get("query") or "")


def score(query: str, document: str) -> float:
    """Return how many of all the words of both are in both, between 0 and 1.

    >>> score("the cat", "a cat"), score("dog", "a cat")
    (0.3333333333333333, 0.0)
    """
    asked, told = (set(re.findall(r"\w+", text.lower())) for text in (query, document))
    return len(asked & told) / max(1, len(asked | told))


def rerank(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer a rerank: strings only, as vLLM's text rerankers take them."""
    documents, query = body["documents"], body["query"]
    documents = [documents] if isinstance(documents, str) else documents
    _check_rerank(query, documents, body)
    query = plan.text or query
    scored = [(score(query, document), index) for index, document in enumerate(documents)]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    top = whole(body, "top_n", 0) or len(documents)
    results = [{"index": index, "document": {"text": documents[index], "multi_modal": None}, "relevance_score": value}
               for value, index in scored[:top]]
    tokens = sum(max(1, len(pieces(query)) + len(pieces(document))) for document in documents)
    return Reply({"id": identity["id"], "model": identity["model"],
                  "usage": {"prompt_tokens": tokens, "total_tokens": tokens}, "results": results}, tokens=1)


def _no_string(where: str, value: Any, *more: str) -> List[Dict[str, Any]]:
    """Describe a value that is none of what vLLM takes for a query or for documents."""
    found = [problem("string_type", where, "Input should be a valid string", value),
             problem("dict_type", where + ".ScoreMultiModalParam", "Input should be a valid dictionary", value)]
    return found + [problem(kind + "_type", where, "Input should be a valid " + kind, value) for kind in more]


def _check_rerank(query: Any, documents: Any, body: Dict[str, Any]) -> None:
    if not isinstance(query, (str, dict)):
        raise invalid(*_no_string("body.query", query))
    if not isinstance(documents, list):
        raise invalid(*_no_string("body.documents", documents, "list"))
    strange = [item for item in documents if not isinstance(item, str)]
    if any(not (isinstance(item, dict) and "content" in item) for item in strange):
        # vLLM 0.32.0's text rerankers take strings (rerank_query_object).
        found = _no_string("body.documents", documents)
        for index, document in enumerate(documents):
            if not isinstance(document, str):
                where = "body.documents.%d" % index
                found.append(problem("string_type", where, "Input should be a valid string", document))
                found.append(missing(where + ".ScoreMultiModalParam.content", document))
        raise invalid(*found)
    if strange or isinstance(query, dict):
        raise plain_bad_request("MultiModalParam is not supported for BertForSequenceClassification")
    if "top_n" in body and body["top_n"] is None:
        raise invalid(problem("int_type", "body.top_n", "Input should be a valid integer", None))
    if (whole(body, "top_n", 0) or 0) < 0:
        raise invalid(problem("greater_than_equal", "body.top_n", "Input should be greater than or equal to 0",
                              body["top_n"], ge=0))
    if not documents:
        raise plain_bad_request("At least one text_pair element must be given")
