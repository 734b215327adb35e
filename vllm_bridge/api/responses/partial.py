"""What of a Response has arrived when its events stop before their end."""

from typing import Any, Dict, List, Mapping, Optional, Tuple

from ...errors import BridgeError
from .response import error_outcome

__all__ = ["PartialResponse", "error_event"]

Json = Dict[str, Any]

# Where the text of a delta belongs: the field of the item, the index in it and the rest of the part, if it has parts.
_PLACES: Dict[str, Tuple[str, str, Json]] = {
    "response.output_text.delta": ("content", "content_index", {"type": "output_text", "annotations": []}),
    "response.refusal.delta": ("content", "content_index", {"type": "refusal"}),
    "response.reasoning_text.delta": ("content", "content_index", {"type": "reasoning_text"}),
    "response.reasoning_summary_text.delta": ("summary", "summary_index", {"type": "summary_text"}),
    "response.function_call_arguments.delta": ("arguments", "", {}),
    "response.custom_tool_call_input.delta": ("input", "", {}),
}


class PartialResponse:
    """Folds the events of a Responses stream, a server's own ones too, into the Response that they tell so far.

    A terminal event brings the Response whole; before it ``output`` is made of items and deltas.
    """

    def __init__(self) -> None:
        self._response: Optional[Json] = None
        self._items: Dict[int, Json] = {}
        self._pieces: Dict[int, Dict[Tuple[str, int], List[str]]] = {}  # by output_index, of items not done
        self._parts: Dict[Tuple[int, str, int], Json] = {}

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take in an event; what does not fit the Responses API is passed over."""
        kind = event.get("type")
        if type(event.get("response")) is dict:
            self._response = event["response"]
            return
        index = event.get("output_index")
        if not isinstance(index, int):
            return
        place = _PLACES.get(kind) if isinstance(kind, str) else None
        if place is not None:
            self._delta(index, place, event)
        elif kind in ("response.output_item.added", "response.output_item.done") and type(event.get("item")) is dict:
            self._items[index] = event["item"]
            self._pieces[index] = {}
            if kind == "response.output_item.done":
                del self._pieces[index]

    def _delta(self, index: int, place: Tuple[str, str, Json], event: Mapping[str, Any]) -> None:
        field, name, part = place
        number, pieces, text = event.get(name, 0), self._pieces.get(index), event.get("delta")
        if pieces is not None and isinstance(number, int) and isinstance(text, str):
            pieces.setdefault((field, number), []).append(text)
            self._parts[index, field, number] = part

    def response(self) -> Optional[Json]:
        """Return the Response so far, items that were not done as ``incomplete``; ``None`` before the first event."""
        if self._response is None or self._response.get("output"):
            return self._response
        return dict(self._response, output=[self._item(index) for index in sorted(self._items)])

    def _item(self, index: int) -> Json:
        item = self._items[index]
        if index not in self._pieces:
            return item
        item = dict(item, status="incomplete")
        for (field, number), pieces in sorted(self._pieces[index].items()):
            part, text = self._parts[index, field, number], "".join(pieces)
            if not part:
                item[field] = text
            else:
                so_far = item.get(field) if number else None
                key = "refusal" if part["type"] == "refusal" else "text"
                item[field] = [*(so_far or ()), dict(part, **{key: text})]
        return item

    def failure(self, error: BridgeError, number: int) -> Json:
        """Return the terminal event for a stream that an error ended; `number` is its place in the sequence.

        It is ``response.failed``, or ``error`` when no Response is known that could have failed (SPEC §5.3).
        """
        response = self.response()
        if response is None:
            return error_event(error, number)
        failed = dict(response, status="failed", error=error_outcome(error).error)
        return {"type": "response.failed", "sequence_number": number, "response": failed}


def error_event(error: BridgeError, number: int) -> Json:
    """Return the event that tells of an error under no Response: flat for OpenAI's types, nested for Open Responses."""
    shown: Json = {
        "type": error.type or "server_error",
        "code": None if error.code is None else str(error.code),
        "message": error.message,
        "param": error.param,
    }
    return {
        "type": "error", "sequence_number": number, "code": shown["code"], "message": error.message,
        "param": error.param, "error": shown,
    }
