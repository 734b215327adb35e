"""Bodies of requests and replies: keywords → request body → JSON, JSON → object, and what a long body says unread."""

import json
import re
import sys
from itertools import accumulate
from typing import Any, Collection, Dict, Iterator, Mapping, Optional, Tuple, Union

from ..errors import APIStatusError, BadRequestError, ResponseDecodeError, undecodable
from ..nesting import loads

__all__ = [
    "Written", "as_written", "decode", "merged", "object_of", "read_object", "replaced", "scan", "stands_once",
    "to_json",
]

# ---------------------------------------------------------------- keywords → request body → JSON

_to_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # json.dumps makes one for each call


class Written(Dict[str, Any]):
    """A request body that is there as JSON already: `data` says what the object says."""

    __slots__ = ("data",)

    def __init__(self, body: Mapping[str, Any], data: bytes) -> None:
        super().__init__(body)
        self.data = data


def as_written(body: Dict[str, Any], given: Mapping[str, Any], data: Optional[bytes]) -> Dict[str, Any]:
    """Return `body`, with `data` if that still says the same: nothing has changed since it was read as `given`."""
    if data is None or not _plain(data) or body != given:
        return body
    return Written(body, data)


def merged(wire: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the body of an operation's keywords: no ``None``, ``extra_body`` and ``extra_params`` merged in.

    Two objects of one name are merged, of anything else the extra value stays.
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


# ---------------------------------------------------------------- another model in the same bytes

_MODEL = b'"model"'
_MEMBER = re.compile(rb'(?<!\\)"model"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_DISGUISE = b"\\u006"  # each letter of "model" written as an escape begins so; no shorter escape stands for a letter
_UNESCAPED = re.compile(r"[!#-\[\]-~]+\Z")  # printable ASCII that a JSON string holds as it is


def stands_once(body: bytes) -> bool:
    """Tell whether nothing in a JSON object can be taken for another ``"model"`` than the one that a reader found."""
    return body.count(_MODEL) == 1 and _DISGUISE not in body


def replaced(body: bytes, model: str) -> Optional[bytes]:
    """Return `body` with another `model`, all its other bytes as they were; ``None`` where that is not safe.

    `body` is a JSON object that a JSON reader has accepted, with a string as its top-level ``"model"``.

    It is safe where ``"model"`` stands in it once: within a string its quotes would be escaped, so that is the member
    itself. A second one (in a tool's schema, or a duplicate), an escape that may spell the name, or an encoding other
    than UTF-8 is not looked into: the caller then prints the body anew.
    """
    if not stands_once(body):
        return None
    match = _MEMBER.search(body)
    if match is None:
        return None
    name = '"%s"' % model if _UNESCAPED.match(model) else json.dumps(model)
    return b"%b%b%b" % (body[:match.start(1)], name.encode("ascii"), body[match.end(1):])


# ---------------------------------------------------------------- a reply's JSON


def decode(data: Union[bytes, str]) -> Any:
    """Parse JSON, or raise `ResponseDecodeError` with what stood there instead."""
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise undecodable("the server sent no valid JSON (%s)" % reason, text) from None


# What an answer to each operation holds: a list, and a member by which its items are known.
_SHAPES = {
    "chat_completion": ("choices", "message"),
    "text_completion": ("choices", "text"),
    "embedding": ("data", "embedding"),
    "list_models": ("data", "id"),
    "responses": ("output", "type"),
}


def object_of(body: bytes, operation: str = "", **fields: Any) -> Dict[str, Any]:
    """Return the JSON object of a reply's body.

    Raises `ResponseDecodeError`, with `fields`, if it is none, or the answer to another operation.
    """
    try:
        payload = decode(body)
    except ResponseDecodeError as error:
        error.__dict__.update(fields)
        raise
    if not isinstance(payload, dict):
        text = body.decode("utf-8", "replace")
        raise undecodable("the server sent no JSON object", text, payload=payload, **fields)
    name, member = _SHAPES.get(operation, ("", ""))
    items = payload.get(name) if name else []
    for item in items if isinstance(items, list) else (None,):
        if isinstance(item, dict) and member in item:
            return payload
    if items == []:
        return payload
    text = body.decode("utf-8", "replace")
    raise undecodable("the server sent no answer to %s" % operation, text, payload=payload, **fields)


# ---------------------------------------------------------------- a client's JSON, read strictly

_DEEPEST = 200  # levels: what is read has to be copied, merged and printed too, and each takes frames for a level


def read_object(data: bytes, limit: Optional[int] = None) -> Dict[str, Any]:
    """Return the JSON object that is a request's body, in UTF-8, UTF-16 or UTF-32.

    Raises `BadRequestError` for what is none (RFC 8259: no NaN, no Infinity), for numbers that no float or, with more
    than 4300 digits, no computer in a second can read, for one nested too deeply; `APIStatusError` (413) where more
    than `limit` bytes stand outside its strings: they take a hundred times as long to read as a text does. Quotes and
    backslashes are among them, for each costs time. What only passes can be looked through by `scan`.
    """
    if not data:
        raise _invalid("the body is empty")
    try:
        if not _plain(data):
            data = data.decode(json.detect_encoding(data)).encode("utf-8")
        _check(data, limit)
        text = data.decode("utf-8").strip(" \t\r\n")
        body, end = _STRICT.raw_decode(text)
        if end != len(text):
            _STRICT.decode(text)  # which says what is wrong
    except RecursionError:
        raise _invalid("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise _invalid("the body is not UTF-8 (byte %d)" % error.start) from None
    except ValueError as error:
        raise _invalid("the body is not JSON: %s" % error) from None
    if not isinstance(body, dict):
        raise _invalid("the body must be a JSON object")
    return body


def _plain(data: bytes) -> bool:
    return data[:1] == b"{" and data[1:2] != b"\0"  # UTF-16 and UTF-32 have a NUL there


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("the number %.20s is too large" % digits)
    return number


def _short(digits: str) -> int:
    if len(digits) > 4300:  # older Pythons need hours for millions of digits (CVE-2020-10735), newer ones refuse
        raise ValueError("a number has more than 4300 digits")
    return int(digits)


def _no_number(name: str) -> float:
    raise ValueError("%s is no JSON number" % name)


_STRICT = json.JSONDecoder(
    parse_float=_finite, parse_constant=_no_number, parse_int=None if hasattr(sys, "set_int_max_str_digits") else _short
)


def _check(data: bytes, limit: Optional[int]) -> None:
    """Raise for a body that would take too long to read, or is nested too deeply."""
    deep = data.count(b"[") + data.count(b"{") > _DEEPEST
    if not deep and (limit is None or len(data) <= limit):
        return
    size = depth = 0
    for _, _, outside, _, marks in _blocks(data):
        size += len(outside) + marks
        if limit is not None and size > limit:
            raise APIStatusError(
                "the body has more than %d bytes outside its strings (--max-parsed-mb)" % limit,
                type="invalid_request_error", code="request_too_large", status_code=413,
            )
        levels = list(accumulate(map(_STEPS, outside.translate(None, _NO_BRACKETS)))) if deep else ()
        if levels:
            if depth + max(levels) > _DEEPEST:
                raise _invalid("the JSON is nested too deeply")
            depth += levels[-1]


def _invalid(reason: str) -> BadRequestError:
    return BadRequestError("invalid request format: %s" % reason, type="invalid_request_error")


# ---------------------------------------------------------------- JSON looked through in blocks, not parsed

# No call on a block takes more than a few milliseconds, and between two of them other threads have their turn.
_BLOCK = 256 * 1024
_BRACKETS = b"[{]}"
_NO_BRACKETS = bytes(code for code in range(256) if code not in _BRACKETS)
_STEPS = {91: 1, 123: 1, 93: -1, 125: -1}.__getitem__
_MARKS = re.compile(rb'["\[\]{}]')

_NAME = re.compile(rb'[ \t\r\n]{0,1000}"([^"\\]{0,1000})"[ \t\r\n]{0,1000}:[ \t\r\n]{0,1000}')
_WORD = re.compile(rb"[-+.0-9A-Za-z]{1,5000}")
_NEXT = re.compile(rb"[ \t\r\n]{0,1000}([,}])")
_MOST_MEMBERS = 10000
_LONGEST_VALUE = 65536


def _blocks(data: bytes, at: int = 0, size: int = 0) -> Iterator[Tuple[int, bytes, bytes, bool, int]]:
    """Yield blocks of UTF-8 JSON from `at` on, which is no place within a string.

    Each as (its place, itself with its escapes blotted out, what of it stands outside strings, whether it begins in
    a string, its quotes and backslashes together).
    """
    within = False
    size = size or _BLOCK
    while at < len(data):
        block = data[at:at + size]
        if (len(block) - len(block.rstrip(b"\\"))) % 2:
            block = data[at:at + size + 1]  # no escape is cut
        marks = block.count(b"\\")
        if marks:
            block = block.replace(b"\\\\", b"..").replace(b'\\"', b"..")
        pieces = block.split(b'"')
        yield at, block, b"".join(pieces[within::2]), within, marks + len(pieces) - 1
        within ^= len(pieces) % 2 == 0
        at += len(block)
        size = min(4 * size, _BLOCK)


def scan(data: bytes, names: Collection[str]) -> Optional[Dict[str, Any]]:
    """Return those members of a JSON object that are called so, without parsing the others; ``None`` if not sure.

    A value of more than 64 KiB is an ``Ellipsis``. Sure is only an object in UTF-8, with one to 10,000 members, none of
    those names twice and no escape in a name. What is skipped is not checked: whoever reads it all will.
    """
    if not _plain(data):
        return None
    found: Dict[str, Any] = {}
    at = 1
    for _ in range(_MOST_MEMBERS):
        name = _NAME.match(data, at)
        end = None if name is None else _end(data, name.end())
        after = None if end is None else _NEXT.match(data, end)
        if name is None or end is None or after is None:
            return None
        label = name.group(1).decode("utf-8", "replace")
        if label in names:
            if label in found:
                return None
            try:
                found[label] = _value(data, name.end(), end)
            except (ValueError, RecursionError, BadRequestError):
                return None
        at = after.end()
        if after.group(1) == b"}":
            return None if data[at:at + 1000].strip(b" \t\r\n") or len(data) > at + 1000 else found
    return None


def _value(data: bytes, start: int, end: int) -> Any:
    if end - start > _LONGEST_VALUE:
        return ...
    value = data[start:end]
    _check(value, None)
    return _STRICT.decode(value.decode("utf-8"))


def _end(data: bytes, at: int) -> Optional[int]:
    """Return where the JSON value ends that begins at `at`."""
    first = data[at:at + 1]
    if first not in (b'"', b"[", b"{"):
        word = _WORD.match(data, at)
        return None if word is None else word.end()
    depth = 0
    for start, block, outside, within, _ in _blocks(data, at, 1024):
        if first == b'"':
            end = block.find(b'"', start == at)
            if end >= 0:
                return start + end + 1
            continue
        levels = list(accumulate(map(_STEPS, outside.translate(None, _NO_BRACKETS))))
        if levels and depth + min(levels) <= 0:
            return start + _closing(block, within, depth)
        depth += levels[-1] if levels else 0
    return None


def _closing(block: bytes, within: bool, depth: int) -> int:
    """Return where in a block the brackets open before it, `depth` of them, have all been closed."""
    for mark in _MARKS.finditer(block):
        sign = mark.group()
        if sign == b'"':
            within = not within
        elif not within:
            depth += _STEPS(sign[0])
            if depth == 0:
                return mark.end()
    raise AssertionError("a block without the bracket that was counted in it")
