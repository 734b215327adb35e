"""How the pieces of a reply are put together: its choices, their ends, and fields that come bit by bit."""

import re
from typing import Any, Dict, Iterable, List

from ..errors import InternalServerError

__all__ = [
    "check_finish", "copied", "fold", "index_of", "is_finish", "joined", "latest", "objects", "without_empty_ends",
]

_ENDS = ("finish_reason", "stop_reason")

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def is_finish(reason: Any) -> bool:
    """Tell whether a finish reason is one: SGLang, Ollama and others say ``""`` where OpenAI says null."""
    return reason is not None and reason != ""


def without_empty_ends(choice: Dict[str, Any]) -> None:
    """Put null in the place of empty finish and stop reasons, in place."""
    for name in _ENDS:
        if choice.get(name) == "":
            choice[name] = None


def joined(pieces: Iterable[str]) -> str:
    """Join the pieces of a text; the halves of a surrogate pair that came in two of them are one character."""
    text = "".join(pieces)
    return text if text.isascii() else _PAIR.sub(_character, text)


def _character(pair: "re.Match[str]") -> str:
    return pair.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def check_finish(choice: Dict[str, Any], payload: Any) -> None:
    """Raise `InternalServerError` if a choice was ended by the server's failure.

    vLLM says ``abort`` when it is stopped (tests/data/vllm-0.32.0/kill_sigterm_api_chat_stream.json).
    """
    if choice.get("finish_reason") in ("abort", "error"):
        raise InternalServerError(
            "the server aborted the generation (finish_reason %r)" % choice["finish_reason"],
            type="aborted",
            code="abort",
            status_code=502,
            payload=payload,
        )


def objects(value: Any) -> List[Dict[str, Any]]:
    """Return the objects of a list; of anything else, and of any other item, nothing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def index_of(choice: Dict[str, Any]) -> int:
    """Return the index of a choice, 0 if it has none."""
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def fold(target: Dict[str, Any], key: str, value: Any) -> None:
    """Join lists (token ids) and lists in objects (logprobs); of anything else the latest that is not null stays.

    An empty finish or stop reason is null. The lists of `target` are its own and grow in place.
    """
    have = target.get(key)
    if isinstance(value, list):
        if isinstance(have, list):
            have.extend(value)
        else:
            target[key] = list(value)
    elif isinstance(value, dict):
        inner = target[key] = have if isinstance(have, dict) else {}
        for name, item in value.items():
            if isinstance(item, list) and isinstance(inner.get(name), list):
                inner[name].extend(item)
            else:
                latest(inner, name, list(item) if isinstance(item, list) else item)
    else:
        latest(target, key, None if value == "" and key in _ENDS else value)


def copied(target: Dict[str, Any]) -> Dict[str, Any]:
    """Return a copy of what `fold` has made, with lists of its own."""
    copy: Dict[str, Any] = {}
    for key, value in target.items():
        fold(copy, key, value)
    return copy


def latest(target: Dict[str, Any], key: str, value: Any) -> None:
    """Set a value, unless it is null and something is there."""
    if value is not None or key not in target:
        target[key] = value
