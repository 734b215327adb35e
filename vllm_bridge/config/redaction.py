"""No key in an error: a server, or a proxy in between, may repeat the request's headers in what it answers."""

import re
from typing import Any, Callable

from ..errors import BridgeError

__all__ = ["MASK", "mask"]

MASK = "[api key]"

# A shorter key may be part of an ordinary word, so only as a word of its own it is taken for the key.
_SURELY = 8


def mask(error: BridgeError, secret: str) -> None:
    """Replace the key in an error's message, payload and fields."""
    if not secret:
        return
    pattern = re.escape(secret)
    if len(secret) < _SURELY:
        pattern = r"(?<![A-Za-z0-9])%s(?![A-Za-z0-9])" % pattern
    find = re.compile(pattern)
    state = error.__dict__
    for name in ("message", "type", "code", "param", "payload", "request_id"):
        try:
            state[name] = _masked(state[name], find.sub)
        except RecursionError:
            state[name] = None  # nested so deeply that nobody reads it
    error.args = tuple(_masked(arg, find.sub) if isinstance(arg, str) else arg for arg in error.args)


def _masked(value: Any, sub: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return sub(MASK, value)
    if isinstance(value, dict):
        return {sub(MASK, str(name)): _masked(item, sub) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, sub) for item in value]
    return value
