"""The Responses API over chat completions: a request to chat, a reply and its chunks back; dicts in, dicts out."""

from .context import ResponseContext
from .events import ResponseEvents, iter_events
from .partial import PartialResponse
from .request import to_chat
from .response import from_chat

__all__ = [
    "PartialResponse",
    "ResponseContext",
    "ResponseEvents",
    "from_chat",
    "iter_events",
    "to_chat",
]
