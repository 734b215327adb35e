"""Several embedding or rerank requests in one, and its answer taken apart again."""

import json
from itertools import accumulate
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..errors import ResponseDecodeError
from .request import Request

__all__ = ["joined", "parted", "sort_of"]

_FIELD = {"embedding": "input", "rerank": "documents"}


def sort_of(request: Request) -> Optional[Tuple[str, str]]:
    """Return what requests that can be joined have in common; ``None`` for one that has to go alone."""
    body, operation = request.body, request.operation
    field = _FIELD.get(operation, "")
    if field not in body or "top_n" in body or _count(request) == 0:  # the first of each, not of all together
        return None
    rest = {name: value for name, value in body.items() if name != field}
    if operation == "embedding":
        rest["input of tokens"] = not isinstance(_inputs(body["input"])[0], str)
    return operation, json.dumps(rest, sort_keys=True)


def joined(requests: Sequence[Request]) -> Dict[str, Any]:
    """Return the body of one request in the place of several of the same sort."""
    field = _FIELD[requests[0].operation]
    return {**requests[0].body, field: [item for request in requests for item in _inputs(request.body[field])]}


def parted(payload: Dict[str, Any], requests: Sequence[Request]) -> List[Dict[str, Any]]:
    """Return the answer to each of them.

    The tokens of ``usage`` were counted together: each gets its share by the length of what it asked.
    Raises `ResponseDecodeError` where the answer is not one for all of them.
    """
    counts = [_count(request) for request in requests]
    ends = list(accumulate(counts))
    embeds = requests[0].operation == "embedding"
    rows: List[List[Dict[str, Any]]] = [[] for _ in requests]
    owner = [number for number, count in enumerate(counts) for _ in range(count)]
    try:
        found = payload["data" if embeds else "results"]
        for row in found:
            number = owner[row["index"]]
            rows[number].append({**row, "index": row["index"] - ends[number] + counts[number]})
    except (LookupError, TypeError):
        raise ResponseDecodeError("the server's answer does not fit the joined request") from None
    if any(len(part) != count for part, count in zip(rows, counts)):
        raise ResponseDecodeError("the server answered %d of %d parts of a joined request" % (len(found), len(owner)))
    shares = _shares(payload.get("usage"), [_length(request) for request in requests])
    parts = []
    for part, usage in zip(rows, shares):
        if embeds:
            part.sort(key=lambda row: int(row["index"]))
        parts.append({**payload, "data" if embeds else "results": part, **usage})
    return parts


def _inputs(given: Any) -> List[Any]:
    """Return the inputs of an embedding request, or a rerank's documents: one string or list of tokens is one."""
    if isinstance(given, list) and not (given and isinstance(given[0], int)):
        return given
    return [given]


def _count(request: Request) -> int:
    return len(_inputs(request.body[_FIELD[request.operation]]))


def _length(request: Request) -> int:
    return sum(len(str(item)) for item in _inputs(request.body[_FIELD[request.operation]]))


def _shares(usage: Any, lengths: List[int]) -> List[Dict[str, Any]]:
    """Return each request's ``usage``: whole numbers that add up to those of all."""
    if not isinstance(usage, dict):
        return [{} for _ in lengths]
    whole = sum(lengths) or 1
    marks = [0] + list(accumulate(lengths))
    return [
        {"usage": {
            name: value * end // whole - value * start // whole if type(value) is int else value
            for name, value in usage.items()
        }}
        for start, end in zip(marks, marks[1:])
    ]
