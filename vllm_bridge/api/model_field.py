"""The ``model`` of a request body replaced in its bytes: a long prompt is not printed again for the sake of a name."""

import json
import re
from typing import Optional

__all__ = ["replaced", "stands_once"]

_KEY = b'"model"'
_MEMBER = re.compile(rb'(?<!\\)"model"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)

# Each letter of "model" written as an escape begins so; no shorter escape stands for a letter.
_DISGUISE = b"\\u006"

_PLAIN = re.compile(r"[!#-\[\]-~]+\Z")  # printable ASCII that a JSON string holds as it is


def stands_once(body: bytes) -> bool:
    """Tell whether nothing in a JSON object can be taken for another ``"model"`` than the one that a reader found."""
    return body.count(_KEY) == 1 and _DISGUISE not in body


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
    name = '"%s"' % model if _PLAIN.match(model) else json.dumps(model)
    return b"%b%b%b" % (body[:match.start(1)], name.encode("ascii"), body[match.end(1):])
