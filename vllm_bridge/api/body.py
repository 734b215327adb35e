"""Bodies of requests and replies: keywords → request body → JSON, and JSON → object."""

import json
from typing import Any, Dict, Mapping, Optional

from ..errors import BadRequestError, ResponseDecodeError, undecodable
from .record import decode

__all__ = ["Written", "as_written", "merged", "object_of", "to_json"]

_to_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # json.dumps makes one for each call


class Written(Dict[str, Any]):
    """A request body that is there as JSON already: `data` says what the object says."""

    __slots__ = ("data",)

    def __init__(self, body: Mapping[str, Any], data: bytes) -> None:
        super().__init__(body)
        self.data = data


def as_written(body: Dict[str, Any], given: Mapping[str, Any], data: Optional[bytes]) -> Dict[str, Any]:
    """Return `body`, with `data` if that still says the same: nothing has changed since it was read as `given`."""
    if data is None or data[:1] != b"{" or data[1:2] == b"\0" or body != given:  # UTF-16 has a NUL there
        return body
    return Written(body, data)


def merged(wire: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the body of an operation's keywords: no ``None``, ``extra_body`` and ``extra_params`` merged in.

    Two objects of one name are merged, of anything else the extra value stays (SPEC §2.2).
    """
    body = {name: value for name, value in wire.items() if value is not None}
    for wrapper in ("extra_body", "extra_params"):
        extra = body.pop(wrapper, None)
        if extra is None:
            continue
        if not isinstance(extra, Mapping):
            raise BadRequestError("%s must be an object, got %s" % (wrapper, type(extra).__name__), param=wrapper)
        try:
            _merge(body, extra)
        except RecursionError:
            raise BadRequestError("%s is nested too deeply" % wrapper, param=wrapper) from None
    return body


def _merge(target: Dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in extra.items():
        have = target.get(name)
        if isinstance(have, Mapping) and isinstance(value, Mapping):
            target[name] = dict(have)
            _merge(target[name], value)
        else:
            target[name] = value


def object_of(body: bytes, **fields: Any) -> Dict[str, Any]:
    """Return the JSON object of a reply's body; `ResponseDecodeError`, with `fields`, if it is none."""
    try:
        payload = decode(body)
    except ResponseDecodeError as error:
        error.__dict__.update(fields)
        raise
    if not isinstance(payload, dict):
        text = body.decode("utf-8", "replace")
        raise undecodable("the server sent no JSON object", text, payload=payload, **fields)
    return payload


def to_json(wire: Dict[str, Any]) -> bytes:
    """Return a request body as JSON, or raise `BadRequestError` naming the field that has no JSON form."""
    if type(wire) is Written:
        return wire.data
    try:
        return _to_text(wire).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    for name, value in wire.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequestError("%s has no JSON form: %s" % (name, error), param=str(name)) from None
    raise BadRequestError("the request has no JSON form: %s" % reason)
