"""The Responses API over chat completions: a request to chat, a reply and its chunks back; dicts in, dicts out."""

from .events import ResponseEvents, from_chat, iter_events
from .output import PartialResponse
from .request import to_chat

__all__ = ["PartialResponse", "ResponseEvents", "from_chat", "iter_events", "to_chat"]
