"""How deeply JSON may be nested: CPython 3.8 ends the whole process where a reader meets its limit at a bad moment.

There, an object's finalizer that the collector runs at the limit uses up what makes the reader stop
("Fatal Python error: Cannot recover from stack overflow"). So what is nested too deeply is refused before it is read.
"""

import json
import re
import sys
from typing import Any, Union

__all__ = ["loads"]

_DEEPEST = 500  # levels; the interpreter's limit is 1000 calls, of which the caller has used some
_ENDS_THE_PROCESS = sys.version_info < (3, 9)
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[^"\[\]{}]+', re.DOTALL)

_scan = json.JSONDecoder().raw_decode


def _check(text: Union[bytes, str]) -> None:
    """Raise `RecursionError` for JSON that is nested more than 500 levels deep."""
    read = text.decode(json.detect_encoding(text), "surrogatepass") if isinstance(text, bytes) else text
    if read.count("[") + read.count("{") > _DEEPEST:
        depth = 0
        for mark in _STRINGS.sub("", read):
            depth += 1 if mark in "[{" else -1
            if depth > _DEEPEST:
                raise RecursionError("JSON nested more than %d levels deep" % _DEEPEST)


def loads(text: Union[bytes, str]) -> Any:
    """Parse JSON like `json.loads`, which raises `ValueError` or, where it is nested too deeply, `RecursionError`."""
    if _ENDS_THE_PROCESS:
        _check(text)
    # What json.loads calls in the end: a third of its time goes into looking at what is around a value.
    try:
        read = text.decode("utf-8") if isinstance(text, bytes) else text
        value, end = _scan(read)
        if end == len(read):
            return value
    except ValueError:
        pass  # another encoding, or no JSON
    return json.loads(text)
