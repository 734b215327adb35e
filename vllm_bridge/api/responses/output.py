"""The items of a Response's output: what they are made of, how they grow, and what events tell of them so far."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

from ...errors import BridgeError
from ...nesting import loads
from ..folding import fold, is_finish, joined, objects
from ..tool_calls import ToolCalls
from .client_tools import CLIENT_TOOLS, call_fields
from .response import ResponseContext, ToolName, error_event, error_outcome, kept

__all__ = [
    "PARTS", "CallDraft", "CallIds", "ChoiceDraft", "ItemDraft", "PartialResponse", "annotations_of", "logprobs_of",
    "parsed_arguments", "part_of", "text_of",
]

Json = Dict[str, Any]

_CHOICE_FIELDS = frozenset(("index", "message", "delta", "finish_reason", "logprobs"))
_MESSAGE_FIELDS = frozenset((
    "role", "content", "refusal", "annotations", "function_call", "tool_calls", "reasoning", "reasoning_content",
))


class Part(NamedTuple):
    """How a type of part is told: its events, the list of the item that it is in, its index there, its text's field."""

    part_event: str
    text_event: str
    among: str
    place: str
    field: str = "text"


_CONTENT = "response.content_part"

PARTS: Dict[str, Part] = {
    "output_text": Part(_CONTENT, "response.output_text", "content", "content_index"),
    "refusal": Part(_CONTENT, "response.refusal", "content", "content_index", "refusal"),
    "reasoning_text": Part(_CONTENT, "response.reasoning_text", "content", "content_index"),
    "summary_text": Part(
        "response.reasoning_summary_part", "response.reasoning_summary_text", "summary", "summary_index"
    ),
}


def part_of(kind: str, text: str, **fields: Any) -> Json:
    """Return a part of this type."""
    if kind == "output_text":
        fields = {"annotations": [], "logprobs": [], **fields}
    return {"type": kind, PARTS[kind].field: text, **fields}


# ---------------------------------------------------------------- what is in a chat reply


def text_of(content: Any) -> str:
    """Return the text of a chat content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in objects(content) if isinstance(part.get("text"), str))


def annotations_of(annotations: Any) -> List[Json]:
    """Return the annotations of a chat message in the flat form of the Responses API."""
    flat = []
    for annotation in objects(annotations):
        inner = annotation.get(str(annotation.get("type")))
        if isinstance(inner, dict):
            annotation = dict(inner, type=annotation["type"])
        flat.append(annotation)
    return flat


def logprobs_of(logprobs: Any) -> List[Json]:
    """Return the content tokens of a chat choice's ``logprobs``, every field of a token present."""
    if not isinstance(logprobs, dict):
        return []
    return [dict(_token(token), top_logprobs=_tops(token)) for token in objects(logprobs.get("content"))]


def _tops(token: Json) -> List[Json]:
    return [_token(top) for top in objects(token.get("top_logprobs"))]


def _token(token: Json) -> Json:
    return token if token.get("bytes") is not None else dict(token, bytes=[])


def token_range(tokens: List[Json], text: str, thoughts: str, to_end: bool) -> List[Json]:
    """Return the tokens that make up `text`, and with `to_end` those after it.

    vLLM counts the tokens of `thoughts` and of calls into the same list
    (tests/data/vllm-0.32.0/think_stream_logprobs.json). When the tokens do not spell the text, all are returned.
    """
    spelled = [str(token.get("token") or "") for token in tokens]
    together = "".join(spelled)
    after = together.find(thoughts) + len(thoughts) if thoughts in together else 0
    start = together.find(text, after)
    if start < 0:  # the thoughts came later
        start, to_end = together.find(text), False
    first = _reaching(spelled, start) if start >= 0 else None
    if first is None:
        return tokens
    return tokens[first:] if to_end else tokens[first:_reaching(spelled, start + len(text))]


def _reaching(spelled: List[str], offset: int) -> Optional[int]:
    """Return how many tokens spell the first `offset` characters, ``None`` if a token straddles it."""
    at = 0
    for position, piece in enumerate(spelled):
        if at >= offset:
            return position if at == offset else None
        at += len(piece)
    return len(spelled) if at == offset else None


# ---------------------------------------------------------------- calls


class CallIds:
    """Gives every call of a reply an id of its own: the server's, else one made of the chat id."""

    def __init__(self, chat_id: str) -> None:
        self._chat_id = chat_id
        self._given: Set[str] = set()

    def take(self, wanted: str, choice: int, number: int) -> str:
        """Return the id for the call `number` of a choice, `wanted` if it is one and is free."""
        while not wanted or wanted in self._given:
            wanted, number = "call_%s_%d_%d" % (self._chat_id, choice, number), number + 1
        self._given.add(wanted)
        return wanted


def _custom_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of the function that stood for it.

    Arguments that are not as asked for are the input themselves, so that nothing is lost.
    """
    parsed = parsed_arguments(arguments)
    given = None if parsed is None else parsed.get("input")
    return given if isinstance(given, str) else arguments


def parsed_arguments(arguments: str) -> Optional[Json]:
    """Return the object that arguments are, an empty one for blank arguments, ``None`` for anything else."""
    try:
        parsed = loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


# ---------------------------------------------------------------- items in the making


class ItemDraft:
    """A reasoning item or a message in the making; ``part`` is the type of its open part, ``""`` when none is."""

    def __init__(self, kind: str, name: str, output_index: int, context: ResponseContext) -> None:
        self.kind = kind
        self.item_id = ("rs_" if kind == "reasoning" else "msg_") + name
        self.output_index = output_index
        self.part = ""
        self.pieces: List[str] = []
        self.annotations: List[Json] = []
        self.at: Json = {}  # `where`, as long as a text is open
        self._context = context
        self._parts: List[Json] = []

    def where(self) -> Json:
        """Return the fields that say which part an event is about."""
        at = {"item_id": self.item_id, "output_index": self.output_index}
        at[PARTS[self.part].place] = len(self._parts)
        return at

    def end_part(self, part: Json) -> None:
        """Put the open part, now complete, among the others."""
        self._parts.append(part)
        self.part, self.pieces, self.annotations = "", [], []

    def shown(self, status: str) -> Json:
        """Return the item with the parts that are complete."""
        item: Json = {"type": self.kind, "id": self.item_id, "status": status}
        if self.kind == "message":
            return {**item, "role": "assistant", "content": list(self._parts)}
        item["summary"] = []
        item[PARTS[self._context.reasoning].among] = list(self._parts)
        if self._parts and self._context.seal is not None:
            item["encrypted_content"] = self._context.seal.sealed("".join(part["text"] for part in self._parts))
        return item


class CallDraft:
    """A call in the making. Its id and name are latched once: some servers repeat or change them.

    ``client`` holds what is in the item of a call that the client runs, once the arguments are known.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.call_id = self.name = ""
        self.pieces: List[str] = []
        self.opened = False
        self.tool = ToolName("function", "")
        self.client: Optional[Json] = None
        self._broken = False
        self.item_id = self.item_name = ""
        self.output_index = 0

    def take(self, call_id: Any, name: Any, arguments: str) -> None:
        """Take a fragment; its id and name only where they are the first."""
        if not self.call_id and isinstance(call_id, str):
            self.call_id = call_id
        if not self.name and isinstance(name, str):
            self.name = name
        if arguments:
            self.pieces.append(arguments)

    def settle(self, tool: ToolName, whole: bool) -> None:
        """Settle which tool is called.

        The client is given one of its own calls only if that is `whole` and fits its tool: it could not run another.
        Of any other it gets what the model wrote, as a function call that is incomplete.
        """
        self.tool = tool
        if tool.kind in CLIENT_TOOLS:
            self.client = call_fields(tool.kind, parsed_arguments(joined(self.pieces))) if whole else None
            if self.client is None:
                self.tool = ToolName("function", tool.name)
                self._broken = True

    def well_formed(self) -> bool:
        """Tell whether the arguments are a JSON object, or nothing at all, and fit a client's own tool.

        vLLM streams a call that it cannot parse as far as it got
        (tests/data/vllm-0.32.0/chat_stream_tools_bad_json.json).
        """
        return not self._broken and parsed_arguments(joined(self.pieces)) is not None

    def item(self, status: str, arguments: str) -> Json:
        """Return the item with these arguments."""
        kind, name = self.tool.kind, self.item_name
        if self.client is not None:
            own = CLIENT_TOOLS[kind]
            call = {"type": own.call, "id": own.prefix + name, "call_id": self.call_id}
            return {**call, **self.client, "status": status}
        if kind == "custom":
            call = {"type": "custom_tool_call", "id": "ctc_" + name, "call_id": self.call_id, "name": self.tool.name}
            call["input"] = _custom_input(arguments)
        else:
            call = {"type": "function_call", "id": "fc_" + name, "call_id": self.call_id, "name": self.tool.name}
            call["arguments"] = arguments
        if self.tool.namespace is not None:
            call["namespace"] = self.tool.namespace
        return {**call, "status": status}


class ChoiceDraft:
    """One choice: its open item, its calls, and what it leaves for ``chat_choices``."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.item: Optional[ItemDraft] = None
        self.numbers = ToolCalls()
        self.calls: Dict[int, CallDraft] = {}
        self.finish_reason: Any = None
        self.thoughts = ""
        self.seen = False
        self._extra: Json = {}
        self._spoken: Json = {}
        self._tokens: List[Json] = []
        self._placed = 0

    def fold(self, choice: Json) -> None:
        """Take what has no item of its own: finish reason, logprobs, fields of vLLM's own."""
        self.seen = True
        if is_finish(choice.get("finish_reason")):
            self.finish_reason = choice["finish_reason"]
        self._tokens += logprobs_of(choice.get("logprobs"))
        for key, value in kept(choice, _CHOICE_FIELDS).items():
            fold(self._extra, key, value)
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for key, value in kept(delta, _MESSAGE_FIELDS).items():
                before = self._spoken.get(key)
                if isinstance(before, str) and isinstance(value, str):
                    value = joined((before, value))
                self._spoken[key] = value

    def call(self, number: int) -> CallDraft:
        """Return the call of this number."""
        if number not in self.calls:
            self.calls[number] = CallDraft(number)
        return self.calls[number]

    def place(self, text: str, at_end: bool) -> List[Json]:
        """Return the logprobs of a message's text."""
        tokens = token_range(self._tokens, text, self.thoughts, at_end)
        self._placed += len(tokens)
        return tokens

    def record(self) -> Json:
        """Return what ``chat_choices`` keeps of this choice.

        The logprobs stand here as well when some of them (of reasoning, of calls) are in no text part.
        """
        record = {"index": self.index, "finish_reason": self.finish_reason, **kept(self._extra, ()), **self._spoken}
        if self._placed < len(self._tokens):
            record["logprobs"] = {"content": self._tokens}
        return record


# ---------------------------------------------------------------- what has arrived when events stop


# Where the text of a delta belongs: the type of its part, or the field of an item without parts.
_PART_OF = {part.text_event + ".delta": kind for kind, part in PARTS.items()}
_FIELD_OF = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}


class PartialResponse:
    """Folds the events of a Responses stream, a server's own ones too, into the Response that they tell so far.

    A terminal event brings the Response whole; before it ``output`` is made of items and deltas.
    """

    def __init__(self) -> None:
        self._response: Optional[Json] = None
        self._items: Dict[int, Json] = {}
        # Of items that are not done, by output_index: the pieces of every part, by its list, index and type.
        self._pieces: Dict[int, Dict[Tuple[str, int, str], List[str]]] = {}

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take in an event; what does not fit the Responses API is passed over."""
        kind, index, item, text = event.get("type"), event.get("output_index"), event.get("item"), event.get("delta")
        if isinstance(event.get("response"), dict):
            self._response = event["response"]
        elif not isinstance(index, int) or not isinstance(kind, str):
            return
        elif isinstance(item, dict) and kind in ("response.output_item.added", "response.output_item.done"):
            self._items[index] = item
            self._pieces[index] = {}
            if kind == "response.output_item.done":
                del self._pieces[index]
        elif isinstance(text, str) and index in self._pieces:
            part = _PART_OF.get(kind, "")
            number = event.get(PARTS[part].place, 0) if part else 0
            name = PARTS[part].among if part else _FIELD_OF.get(kind)
            if name is not None and isinstance(number, int):
                self._pieces[index].setdefault((name, number, part), []).append(text)

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
        for (name, number, part), pieces in sorted(self._pieces[index].items()):
            text = joined(pieces)
            if part:
                so_far = item.get(name) if number else None
                item[name] = [*(so_far or ()), part_of(part, text)]
            else:
                item[name] = text
        return item

    def failure(self, error: BridgeError, number: int) -> Json:
        """Return the terminal event for a stream that an error ended; `number` is its place in the sequence.

        It is ``response.failed``, or ``error`` when no Response is known that could have failed.
        """
        response = self.response()
        if response is None:
            return error_event(error, number)
        failed = dict(response, status="failed", error=error_outcome(error).error)
        return {"type": "response.failed", "sequence_number": number, "response": failed}
