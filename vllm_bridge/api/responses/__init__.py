"""The Responses API over chat completions: a request to chat, a reply and its chunks back; dicts in, dicts out."""

from .events import ResponseEvents, from_chat, iter_events
from .output import PartialResponse
from .request import to_chat
from .sealing import Seal, without_seals

__all__ = ["PartialResponse", "ResponseEvents", "Seal", "from_chat", "iter_events", "to_chat", "without_seals"]
