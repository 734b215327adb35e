"""The Responses API over chat completions, both ways: dicts in, dicts out."""

from .context import ResponseContext
from .events import ResponseEvents, iter_events
from .partial import PartialResponse
from .request import to_chat
from .response import from_chat
from .reverse import ChatChunks, iter_chunks, to_completion

__all__ = [
    "ChatChunks",
    "PartialResponse",
    "ResponseContext",
    "ResponseEvents",
    "from_chat",
    "iter_chunks",
    "iter_events",
    "to_chat",
    "to_completion",
]
