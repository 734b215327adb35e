"""Vectors: asked for as base64, handed out as lists of floats (seven times cheaper than decimal digits).

vLLM prints a float32 as the shortest decimal of the same double, so both ways give equal floats.
"""

import base64
import json
import re
import sys
from array import array
from math import isfinite
from typing import Any, Dict, Iterator, Optional

from ..errors import APIStatusError, error_from_payload, undecodable

__all__ = ["converted", "falls_back", "from_bytes", "prepare"]

# What vLLM answers to a request for floats when one is NaN or infinite (nan_embedding_float); base64 gives a 200.
_NO_NUMBER = {
    "error": {
        "message": "Out of range float values are not JSON compliant",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
}


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the request with base64 asked for; the same object where the caller says how vectors are to come."""
    if "encoding_format" in body or "embed_dtype" in body or "endianness" in body:
        return body
    return {**body, "encoding_format": "base64"}


# How servers say that they do not know the field, or this value of it: the place that pydantic names, in its forms
# (vLLM 0.32: 'loc': 'body.encoding_format'), a line that begins with it, or words. A validation error may quote the
# whole request, this field included, and "base64" may be said of an image.
# Compiled when the first such error comes: that takes milliseconds.
_UNKNOWN = (
    r"""\bloc\W{1,6}(body\W{1,6})?encoding_format\b
    | ^\W*(body\W)?encoding_format\b
    | (unknown|unexpected|unsupported|unrecogni[sz]ed|invalid|extra)\ (request\ |keyword\ |input\ )?
      (field|parameters?|arguments?(\ supplied)?|option|key|value\ for)?\W{1,4}encoding_format\b
    | encoding_format\W{1,3}(base64\W{1,3})?(is\ |are\ )?(not|un\w+|only|must|should)\b
    | base64\ ((encoding|format|embeddings?|output|vectors?)\ )?((is|are)\ )?(not\ |un)((currently|yet)\ )?
      (supported|implemented|available|allowed)
    | should\ be\ ['"]float['"]"""
)


def falls_back(error: APIStatusError, body: Dict[str, Any]) -> bool:
    """Tell whether an error says that the server does not know base64; `body` is the request it refused."""
    if error.status_code not in (400, 422, 501):
        return False
    message = error.message
    for text in _texts([body.get("input"), body.get("messages")]):
        if len(text) > 14:  # quoted, it may say anything
            message = message.replace(text, "")
    flags = re.IGNORECASE | re.MULTILINE | re.VERBOSE
    return error.param == "encoding_format" or re.search(_UNKNOWN, message, flags) is not None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def converted(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Turn the base64 vectors of a reply into lists of floats, in place; lists stay (a server may ignore base64).

    Raises `BadRequestError` for a vector that JSON's floats could not carry, `ResponseDecodeError` for what is none.
    """
    rows = payload.get("data")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("embedding"), str):
            row["embedding"] = _floats(row["embedding"])
    return payload


def from_bytes(body: bytes, content_type: str, metadata: Optional[str], member: str) -> Optional[Dict[str, Any]]:
    """Return a reply of plain numbers, each row's as bytes under `member`; ``None`` if the reply is none.

    Its header ``metadata`` says what they are (embed_pooling_bytes); without it all is one row.
    """
    if not content_type.lower().startswith("application/octet-stream"):
        return None
    try:
        found = json.loads(metadata or "{}")
        rows = found.pop("data", None) or [{"index": 0, "start": 0, "end": len(body)}]
        data = [{**row, "object": member, member: body[row["start"]:row["end"]]} for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise undecodable("the metadata of the numbers cannot be read (%r)" % error, str(metadata)) from None
    return {**found, "object": "list", "data": data}


def _floats(text: str) -> Any:
    vector = array("f")
    try:
        vector.frombytes(base64.b64decode(text, validate=True))
    except ValueError as error:  # not base64, and a length that is no multiple of four
        raise undecodable("an embedding is no base64 of float32 numbers (%s)" % error, text) from None
    if sys.byteorder == "big":
        vector.byteswap()
    floats = vector.tolist()
    if not isfinite(sum(floats)):  # a sum of float32 numbers cannot itself grow beyond a double
        raise error_from_payload(_NO_NUMBER, 400)
    return floats
