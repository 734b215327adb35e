"""What a stream has brought so far: its choices, and the items that are not complete yet."""

from typing import Any, Dict, List, Optional, Union

from .context import ToolName
from .output import (
    call_item,
    logprobs_of,
    message_item,
    reasoning_item,
    refusal_part,
    text_part,
    token_range,
    well_formed,
)
from .response import CHOICE_FIELDS, MESSAGE_FIELDS, choice_record, kept

__all__ = ["CallDraft", "ChoiceDraft", "MessageDraft", "ReasoningDraft"]

Json = Dict[str, Any]


class ReasoningDraft:
    """A reasoning item in the making."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self.item_id = item_id
        self.output_index = output_index
        self.pieces: List[str] = []

    def item(self, status: str) -> Json:
        """Return the item; with the status ``""`` as it is announced, before anything is in it."""
        if not status:
            return dict(reasoning_item(self.item_id, "", "in_progress"), summary=[], content=[])
        return reasoning_item(self.item_id, "".join(self.pieces), status)


class MessageDraft:
    """A message in the making; ``kind`` is the type of its open part, ``""`` when none is."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self.item_id = item_id
        self.output_index = output_index
        self.content_index = 0
        self.kind = ""
        self.pieces: List[str] = []
        self.annotations: List[Json] = []
        self._parts: List[Json] = []

    def where(self) -> Json:
        """Return the fields that say which part an event is about."""
        return {
            "item_id": self.item_id,
            "output_index": self.output_index,
            "content_index": self.content_index,
        }

    def part(self, tokens: List[Json]) -> Json:
        """Return the open part as far as it is known."""
        text = "".join(self.pieces)
        if self.kind == "refusal":
            return refusal_part(text)
        return text_part(text, list(self.annotations), tokens)

    def end_part(self, part: Json) -> None:
        """Put the open part, now complete, among the others."""
        self._parts.append(part)
        self.content_index += 1
        self.kind = ""
        self.pieces = []
        self.annotations = []

    def item(self, status: str) -> Json:
        """Return the message with the parts that are complete."""
        return message_item(self.item_id, list(self._parts), status)


class CallDraft:
    """A call in the making. Its id and name are latched once: some servers repeat or change them."""

    def __init__(self, number: Any) -> None:
        self.number = number
        self.call_id = ""
        self.name = ""
        self.pieces: List[str] = []
        self.opened = False
        self.tool = ToolName("function", "")
        self.item_id = ""
        self.output_index = 0
        self._item_name = ""

    def latch(self, call_id: Any, name: Any) -> None:
        """Take the id and the name of a fragment, where they are the first."""
        if not self.call_id and isinstance(call_id, str):
            self.call_id = call_id
        if not self.name and isinstance(name, str):
            self.name = name

    def open(self, tool: ToolName, call_id: str, name: str) -> None:
        """Settle what the call is: its tool, its id, and its item's id without the prefix."""
        self.opened = True
        self.tool = tool
        self.call_id = call_id
        self._item_name = name

    def item(self, status: str, arguments: str) -> Json:
        """Return the item with these arguments."""
        return call_item(self.tool, self._item_name, self.call_id, arguments, status)

    def well_formed(self) -> bool:
        """Tell whether the arguments are a JSON object, or nothing at all."""
        return well_formed("".join(self.pieces))


class ChoiceDraft:
    """One choice of a stream: its open item, its calls, and what it leaves for ``chat_choices``."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.item: Optional[Union[ReasoningDraft, MessageDraft]] = None
        self.calls: List[CallDraft] = []
        self.finish_reason: Any = None
        self.thoughts = ""
        self._by_key: Dict[Any, CallDraft] = {}
        self._last: Any = 0
        self._extra: Json = {}
        self._spoken: Json = {}
        self._tokens: List[Json] = []
        self._placed = 0
        self.seen = False

    def fold(self, choice: Json) -> None:
        """Take what has no item of its own: finish reason, logprobs, fields of vLLM's own."""
        self.seen = True
        if choice.get("finish_reason") is not None:
            self.finish_reason = choice["finish_reason"]
        if choice.get("logprobs") is not None:
            self._tokens += logprobs_of(choice["logprobs"])
        for key, value in kept(choice, CHOICE_FIELDS).items():
            if not isinstance(value, list):
                self._extra[key] = value
            elif isinstance(self._extra.get(key), list):
                self._extra[key].extend(value)  # token_ids come in pieces
            else:
                self._extra[key] = list(value)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key, value in kept(delta, MESSAGE_FIELDS).items():
                before = self._spoken.get(key)
                joins = isinstance(before, str) and isinstance(value, str)
                self._spoken[key] = before + value if joins else value

    def call_of(self, fragment: Json) -> CallDraft:
        """Return the call that a fragment belongs to: by its index, else its id, else the last one."""
        key: Any = fragment.get("index")
        if not isinstance(key, int):
            key = fragment.get("id")
            if not isinstance(key, str) or not key:
                key = self._last
        return self._call(key)

    def legacy_call(self) -> CallDraft:
        """Return the one call of the form before tools."""
        return self._call("function_call")

    def _call(self, key: Any) -> CallDraft:
        self._last = key
        call = self._by_key.get(key)
        if call is None:
            call = self._by_key[key] = CallDraft(key)
            self.calls.append(call)
        return call

    def place(self, item: MessageDraft, at_end: bool) -> List[Json]:
        """Return the logprobs of a message's open text part."""
        tokens = token_range(self._tokens, "".join(item.pieces), self.thoughts, at_end)
        self._placed += len(tokens)
        return tokens

    def record(self) -> Json:
        """Return what ``chat_choices`` keeps of this choice."""
        extra = dict(self._extra, **self._spoken)
        return choice_record(self.index, self.finish_reason, extra, self._tokens, self._placed)
