"""The lines of OUT: OpenAI's batch output, or texts alone; and what is read of them when a job goes on."""

import json
import re
from array import array
from typing import Any, Dict, Optional, Sequence

from ..errors import BridgeError
from ..nesting import loads
from .lines import Hashes, key_hash, text_hash
from .result import Result

__all__ = ["DUPLICATE", "Answered", "hex_hash", "line_of", "text_line"]

DUPLICATE = "duplicate_custom_id"  # the code of the error of such a line

_HEAD = re.compile(
    rb'\{"id":"line-([0-9]{1,15})(?:-([0-9a-f]{16}))?","custom_id":(?:null|"([^"\\]*(?:\\.[^"\\]*)*)"),'
    rb'"response":(?:null|\{"status_code":([0-9]{3}))'
)
_PLAIN = re.compile(rb"[ !#-\[\]-~]*\Z")  # printable ASCII that a JSON string holds as it is
_SUCCESS = ord("2")
_FAR = 1000000  # lines that a number may be ahead of the greatest before it


def line_of(result: Result) -> bytes:
    """Return a result as a line; ``id`` and ``custom_id``, by which it is found again, stand first."""
    error, key = result.error, result.key
    if key is None or (error is not None and error.code == DUPLICATE):  # another line answers to that id
        given = result.request if isinstance(result.request, bytes) else b""
        known = b'"line-%d-%b","custom_id":null' % (result.number, text_hash(given))
    else:
        name = b'"%b"' % key if _PLAIN.match(key) else _json(key.decode("utf-8"))
        known = b'"line-%d","custom_id":%b' % (result.number, name)
    if error is None:
        data = result.data
        if b"\n" in data or b"\r" in data:
            data = _json(result.payload)
        return b'{"id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n' % (
            known, result.status_code or 200, _json(result.request_id), data)
    response = b"null"
    if error.status_code is not None and error.url is not None:  # else nobody was asked
        body = {"error": _told(error)} if error.payload is None else error.payload
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (
            error.status_code, _json(error.request_id), _json(body))
    return b'{"id":%b,"response":%b,"error":%b}\n' % (known, response, _json(_told(error)))


def _told(error: BridgeError) -> Dict[str, Any]:
    return {"code": str(error.code or error.type or type(error).__name__), "message": error.message}


def _json(value: Any) -> bytes:
    if value is None:
        return b"null"
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def text_line(result: Result) -> bytes:
    """Return the answer's text alone as a JSON string, or its numbers where it has no text; ``null`` for a failure."""
    if result.error is not None:
        return b"null\n"
    try:
        found = _text(result.payload, result.operation)
    except (LookupError, TypeError, AttributeError):
        found = ""  # an answer without a text
    return json.dumps(found).encode("ascii") + b"\n"


def _text(payload: Dict[str, Any], operation: str) -> Any:
    if operation == "chat_completion":
        return payload["choices"][0]["message"].get("content") or ""
    if operation == "text_completion":
        return payload["choices"][0]["text"] or ""
    if operation == "responses":
        return "".join(
            part["text"] for item in payload["output"] if item["type"] == "message"
            for part in item["content"] if part["type"] == "output_text")
    if operation == "messages":
        return "".join(part["text"] for part in payload["content"] if part["type"] == "text")
    if operation == "rerank":
        return payload["results"]
    return payload["data"][0]["embedding"] if operation == "embedding" else payload["data"]


# ---------------------------------------------------------------- read again


def hex_hash(digits: bytes) -> int:
    """Return the number that `lines.text_hash` has written; never 0."""
    return int.from_bytes(bytes.fromhex(digits.decode("ascii")), "big", signed=True) or 1


class Answered:
    """The lines of IN that have their answer: 8 bytes for each."""

    def __init__(self) -> None:
        self.lines = 0
        self.failed = 0
        self._at = array("q", [0])  # by the number of the line
        self._others = Hashes()  # without a number, or one that is far ahead
        self._all: Optional[Hashes] = None

    def read(self, line: bytes, well: bool = False) -> bool:
        """Note the answer that a line of OUT is, with `well` only if it has not failed; tell whether it is one."""
        match = _HEAD.match(line)
        if match is None:
            return self._read_other(line, well)
        digits, text, key, status = match.groups()
        if key is not None:
            known = hash(loads(b'"%b"' % key).encode("utf-8", "surrogatepass") if b"\\" in key else key) or 1
        elif text is not None:
            known = hex_hash(text)
        else:
            return False
        if status is None or status[0] != _SUCCESS:
            if well:
                return True
            self.failed += 1
        self.lines += 1
        number, at = int(digits), self._at
        if number >= len(at):
            if number >= len(at) + _FAR:
                self._others.add(known)
                return True
            at.extend(array("q", bytes(8 * (number + 1 - len(at) + len(at) // 16))))
        at[number] = known
        return True

    def _read_other(self, line: bytes, well: bool) -> bool:
        """Note a line of another program's batch output."""
        try:
            found = loads(line)
            known = key_hash(found["custom_id"].encode("utf-8"))
            failed = bool(found["error"]) or (found["response"] or {}).get("status_code", 200) != 200
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return False
        if not (failed and well):
            self.lines += 1
            self.failed += failed
            self._others.add(known)
        return True

    def at(self, number: int) -> int:
        """Return the hash of the line of that number, 0 if it is not answered."""
        return self._at[number] if number < len(self._at) else 0

    def between(self, start: int, end: int) -> Sequence[int]:
        """Return the hashes of the lines from one number on to before another."""
        found = self._at[start:end]
        return found + array("q", bytes(8 * (end - start - len(found))))

    def __contains__(self, known: int) -> bool:
        """Tell whether a line with that hash is answered, whatever its number."""
        if self._all is None:
            self._all = self._others
            for value in self._at:
                if value:
                    self._all.add(value)
        return known in self._all
