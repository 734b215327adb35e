"""Scores, classes, pooled vectors and decisions in vLLM 0.32.0's shapes; the numbers are hashes and words in common."""

import base64
import json
import struct
from typing import Any, Dict, List, Tuple

from .directives import Plan
from .generate import pieces, text_of, usage
from .pooling import encoded, inputs, packed, score as likeness, vector
from .refusal import invalid, missing, plain_bad_request
from .reply import Reply, World, headed

_PAIRS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


def _tokens(*texts: str) -> int:
    return sum(max(1, len(pieces(text))) for text in texts)


def _listed(given: Any) -> List[str]:
    return [text_of(one) for one in given] if isinstance(given, list) else [text_of(given)]


def _pair(body: Dict[str, Any]) -> Tuple[str, str]:
    for pair in _PAIRS:
        if pair[0] in body and pair[1] in body:
            return pair
    raise invalid(*(missing("body." + name, body) for pair in _PAIRS for name in pair if name not in body))


def needs_pair(body: Dict[str, Any]) -> None:
    """Raise Refusal for a request without two sides."""
    _pair(body)


def heard_pair(body: Dict[str, Any]) -> str:
    """Return the text that a score's directives are read from: the first one's."""
    return (_listed(body[_pair(body)[0]]) or [""])[0]


def score(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Score pairs: one against many, or as many against as many (score_mismatch)."""
    first, second = (_listed(body[name]) for name in _pair(body))
    if first:
        first[0] = plan.text or first[0]
    if len(first) not in (1, len(second)):
        raise plain_bad_request("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(first * len(second) if len(first) == 1 else first, second))
    data = [{"index": index, "object": "score", "score": likeness(*pair)} for index, pair in enumerate(pairs)]
    return Reply(headed(identity, "list", data=data, usage=usage(_tokens(*sum(pairs, ())), 0)), tokens=1)


def needs_input(body: Dict[str, Any]) -> None:
    """Raise Refusal for a request without an input (rerank_classify_missing)."""
    if "input" not in body and "messages" not in body:
        raise invalid(missing("body.input", body), missing("body.messages", body))


def needs_data(body: Dict[str, Any]) -> None:
    """Raise Refusal for a request without an input (embed_pooling_missing)."""
    if not {"input", "messages", "data"} & set(body):
        raise invalid(*(missing("body." + name, body) for name in ("input", "messages", "data")))


def classify(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Put each input into one of two classes."""
    texts = inputs(body)
    data = []
    for index, text in enumerate(texts):
        probability = _probability(plan.text if index == 0 and plan.text else text)
        data.append({"index": index, "label": "LABEL_0" if probability >= 0.5 else "LABEL_1",
                     "probs": [probability, 1.0 - probability], "num_classes": 2})
    return Reply(headed(identity, "list", data=data, usage=usage(_tokens(*texts), 0)), tokens=1)


def _probability(text: str) -> float:
    return float((vector(text, 1 << 3)[0] + 1.0) / 2.0)


def pool(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer with a vector for each input: numbers, base64, or bytes and a header that tells them apart."""
    texts = inputs(body)
    kind = body.get("encoding_format") or "float"
    vectors = [vector(text, world.embedding_size) for text in texts]
    counted = usage(_tokens(*texts), 0)
    if kind in ("bytes", "bytes_only"):
        parts = [packed(values, body) for values in vectors]
        metadata = {"id": identity["id"], "created": identity["created"], "model": identity["model"], "data": [
            {"index": index, "embed_dtype": "float32", "endianness": "native", "start": sum(map(len, parts[:index])),
             "end": sum(map(len, parts[:index + 1])), "shape": [world.embedding_size]} for index in range(len(parts))],
            "usage": {"prompt_tokens": counted["prompt_tokens"], "total_tokens": counted["total_tokens"]}}
        headers = {"content-type": "application/octet-stream"}
        if kind == "bytes":
            headers["metadata"] = json.dumps(metadata)
        return Reply(b"".join(parts), headers=headers, tokens=1)
    data = [{"index": index, "object": "pooling", "data": encoded(values, kind, body)}
            for index, values in enumerate(vectors)]
    return Reply(headed(identity, "list", data=data, usage=counted), tokens=1)


def heard_texts(body: Dict[str, Any]) -> str:
    """Return the text that the directives of Cohere's embeddings are read from."""
    return str((body.get("texts") or [""])[0])


def needs_texts(body: Dict[str, Any]) -> None:
    """Raise Refusal for a request without exactly one kind of input."""
    if sum(bool(body.get(name)) for name in ("texts", "images", "inputs")) != 1:
        raise plain_bad_request(
            "Exactly one of texts, images, or inputs must be provided, and it must be non-empty")


def embed(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer an embedding in Cohere's form."""
    texts = body.get("texts") or [json.dumps(one) for one in body.get("images") or body.get("inputs") or []]
    vectors = [vector(text, int(body.get("output_dimension") or world.embedding_size)) for text in texts]
    forms: Dict[str, Any] = {}
    asked = body.get("embedding_types") or ["float"]
    for kind in (kind for kind in ("float", "binary", "ubinary", "base64") if kind in asked):
        forms[kind] = vectors
        if kind == "base64":
            forms[kind] = [base64.b64encode(struct.pack("<%df" % len(one), *one)).decode("ascii") for one in vectors]
        elif kind in ("binary", "ubinary"):
            forms[kind] = [_bits(one, kind == "binary") for one in vectors]
    return Reply({"id": identity["id"], "embeddings": forms, "texts": body.get("texts"), "meta": {
        "api_version": {"version": "2"}, "billed_units": {"input_tokens": _tokens(*texts), "image_tokens": 0}},
        "response_type": "embeddings_by_type"}, tokens=1)


def _bits(values: List[float], signed: bool) -> List[int]:
    bits = [value > 0 for value in values]
    found = [sum(bit << (7 - place) for place, bit in enumerate(bits[at:at + 8])) for at in range(0, len(bits), 8)]
    return [byte - 128 for byte in found] if signed else found


def heard_state(body: Dict[str, Any]) -> str:
    """Return the text that a decision's directives are read from: the state, if it is a text."""
    return body["state"] if isinstance(body["state"], str) else ""


def decide(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Answer questions by chance, the same each time."""
    answers: Dict[str, Any] = {}
    state = text_of(body["state"]) if isinstance(body["state"], str) else json.dumps(body["state"])
    for name, question in body["questions"].items():
        said = "%s\n%s\n%s" % (state, name, question.get("instructions"))
        if question["type"] == "noul":
            answers[name] = {"type": "noul", "noul": _probability(said)}
            continue
        if question["type"] != "choice":
            raise plain_bad_request("unknown question type %r; supported: ['choice', 'noul']" % question["type"])
        weights = {option: _probability(said + option) for option in question.get("criteria") or {}}
        total = sum(weights.values()) or 1.0
        probabilities = {option: weight / total for option, weight in weights.items()}
        best = max(probabilities, key=lambda option: probabilities[option])
        answers[name] = {"type": "choice", "choice": best, "probabilities": probabilities,
                         "confidence": probabilities[best]}
    certain = {"label_mass": 1.0, "argmax_is_label": True}
    return Reply(headed(identity, "structured_decision", answers=answers,
                        usage={"input_tokens": _tokens(state), "output_tokens": len(answers)},
                        diagnostics={name: certain for name in answers}), tokens=len(answers))


def heard_query(body: Dict[str, Any]) -> str:
    """Return the text that the directives of generative scoring are read from: the query."""
    return body["query"] if isinstance(body["query"], str) else ""


def score_items(body: Dict[str, Any], plan: Plan, identity: Dict[str, Any], world: World) -> Reply:
    """Score items by chance, the same each time."""
    texts = ["%s %s" % (body["query"], item) for item in body["items"]]
    data = [{"index": index, "object": "score", "score": _probability(text)} for index, text in enumerate(texts)]
    return Reply(headed(identity, "list", data=data, usage=usage(_tokens(*texts), len(texts))), tokens=len(texts))
