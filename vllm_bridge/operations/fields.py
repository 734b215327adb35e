"""What is written among the fields of a request and is a setting of the call, and names that nearly are a field."""

import warnings
from typing import Any, Dict, Iterable, Optional

from ..api.chat import level_outside
from ..errors import BadRequestError

__all__ = ["NO_FIELDS", "misspelt", "settings_in", "warn_of"]

# What is no field of any request, and what to write instead.
_OPTION = "vllm.with_options(%s=...)"
_ELSEWHERE = {
    "headers": "extra_headers=..., or " + _OPTION % "headers",
    **{name: _OPTION % name for name in (
        "max_retries", "deadline", "stream_idle_timeout", "cancel", "trace", "key_id", "key_name", "session",
    )},
    **{name: "VLLMProvider(..., %s=...)" % name for name in ("api_key", "base_url", "auth", "cert", "verify")},
}
NO_FIELDS = frozenset(("timeout", "extra_headers", "extra_query", *_ELSEWHERE))
# Names that other versions of the API, or another of its operations, have.
_KNOWN = frozenset(("stream", "best_of", "guided_json", "guided_regex", "guided_choice", "guided_grammar"))


def settings_in(wire: Dict[str, Any]) -> Dict[str, Any]:
    """Take the settings of the call out of its keywords, and return them as `Options` names them.

    Raises `BadRequestError` for a setting that has another place.
    """
    for name in wire:
        if name in _ELSEWHERE and wire[name] is not None:
            raise BadRequestError(
                "%s is a setting, not a field of the request: write %s (as a field it goes in extra_body)"
                % (name, _ELSEWHERE[name]), param=name,
            )
    changes = {}
    if "timeout" in wire:
        changes["timeout"] = _timeout(wire.pop("timeout"))
    for name in ("extra_headers", "extra_query"):
        value = wire.pop(name, None)
        if value:
            changes[name[len("extra_"):]] = value
    return changes


def _timeout(value: Any) -> Any:
    """Return a timeout as it is, that of httpx as requests would write it."""
    if hasattr(value, "connect") and hasattr(value, "read"):
        return value.connect, value.read
    return value


def warn_of(operation: str, names: Iterable[str], fields: Iterable[str]) -> None:
    """Warn of each name that is nearly that of a field."""
    for name in names:
        meant = None if name in _KNOWN or name in NO_FIELDS else misspelt(name, fields)
        if meant is not None:
            warnings.warn(
                "%s: there is no field %r; did you mean %r? It is sent all the same" % (operation, name, meant),
                stacklevel=level_outside(),
            )


def misspelt(name: str, fields: Iterable[str]) -> Optional[str]:
    """Return the field that a name was meant to be; ``None`` if it is one, or is like none."""
    from difflib import get_close_matches

    name = name[:-2] if name.endswith("[]") else name  # a form's way to write a list
    by_letters = {_letters(field): field for field in fields}
    if name in by_letters.values():
        return None
    near = get_close_matches(_letters(name), by_letters, 1, 0.85)
    if near:
        return by_letters[near[0]]
    mixed = {"".join(sorted(letters)): field for letters, field in by_letters.items()}
    return mixed.get("".join(sorted(_letters(name))))  # two letters changed places


def _letters(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
