"""The Responses API over chat completions, both ways: dicts in, dicts out."""

from .context import ResponseContext
from .events import ResponseEvents, iter_events
from .request import to_chat
from .response import from_chat

__all__ = [
    "ResponseContext",
    "ResponseEvents",
    "from_chat",
    "iter_events",
    "to_chat",
]
