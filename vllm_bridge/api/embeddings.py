"""Vectors: asked for as base64, handed out as lists of floats (seven times cheaper than decimal digits).

vLLM prints a float32 as the shortest decimal of the same double, so both ways give equal floats.
"""

import base64
import sys
from array import array
from math import isfinite
from typing import Any, Dict

from ..errors import APIStatusError, error_from_payload, undecodable

__all__ = ["converted", "falls_back", "prepare"]

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


def falls_back(error: APIStatusError) -> bool:
    """Tell whether an error says that the server does not know base64."""
    text = error.message.lower()
    return error.status_code in (400, 422) and ("encoding_format" in text or "base64" in text)


def converted(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Turn the base64 vectors of a reply into lists of floats, in place; lists stay (a server may ignore base64).

    Raises `BadRequestError` for a vector that JSON's floats could not carry, `ResponseDecodeError` for what is none.
    """
    rows = payload.get("data")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("embedding"), str):
            row["embedding"] = _floats(row["embedding"])
    return payload


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
