"""Replies as dicts with attribute reads, and the annotated shapes of all of them.

A record is the JSON object itself: ``json.dumps(reply)``, ``reply["choices"]`` and
``reply.choices[0].message.content`` all work. The classes below only declare which fields a reply has (vLLM 0.32.0,
WIRE.md §4 to §10): a declared field that the server left out reads ``None``; a field that nobody declared is there all
the same.
"""

import json
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple, Type, Union

from .errors import ResponseDecodeError

if TYPE_CHECKING:
    _Base = Dict[str, Any]
else:
    _Base = dict


class Record(_Base):
    """A JSON object with attribute reads. Names of dict methods mean the methods: ``reply["items"]`` is the field."""

    __slots__ = ("_origin",)

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            cls = type(self)
            if name in _declared(cls):
                return None
            raise AttributeError(
                "%s has no field %r; it has: %s" % (cls.__name__, name, ", ".join(map(str, self)) or "none")
            ) from None
        if type(value) is dict:
            value = self[name] = _declared(type(self)).get(name, Record)(value)
        elif type(value) is list and value and any(type(item) is dict for item in value):
            cls = _declared(type(self)).get(name, Record)
            value[:] = [cls(item) if type(item) is dict else item for item in value]
        return value

    def __dir__(self) -> List[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str)), *_declared(type(self))})

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, super().__repr__())

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (dict(self),)

    def copy(self) -> "Record":
        """Return a shallow copy of the same class."""
        return type(self)(self)


_shapes: Dict[Type[Record], Dict[str, Type[Record]]] = {}


def _declared(cls: Type[Record]) -> Dict[str, Type[Record]]:
    """Return the declared fields of a record class, each with the class of its objects."""
    try:
        return _shapes[cls]
    except KeyError:
        pass
    shapes: Dict[str, Type[Record]] = {}
    for base in reversed(cls.__mro__):
        for name, hint in getattr(base, "__annotations__", {}).items():
            shapes[name] = _record_in(hint) or Record
    _shapes[cls] = shapes
    return shapes


def _record_in(hint: Any) -> Optional[Type[Record]]:
    """Return the record class inside ``X``, ``Optional[X]``, ``List[X]`` and their like."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint
    for inner in getattr(hint, "__args__", ()):
        found = _record_in(inner)
        if found is not None:
            return found
    return None


def decode(data: Union[bytes, str]) -> Any:
    """Parse JSON, or raise `ResponseDecodeError` with what stood there instead."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        shown = text if len(text) <= 200 else text[:200] + "…"
        raise ResponseDecodeError(
            "the server sent no valid JSON (%s): %s" % (reason, shown or "an empty body"), payload=shown
        ) from None


# ---------------------------------------------------------------- shapes shared by several operations


class Usage(Record):
    """Tokens counted by the server."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Optional[Record]
    completion_tokens_details: Optional[Record]


class ToolFunction(Record):
    name: str
    arguments: str


class ToolCall(Record):
    """A call the model asks for. ``arguments`` is a string of JSON, as the model wrote it.

    ``arguments_error`` is set by the bridge when that string is no JSON object (WIRE.md §4).
    """

    id: str
    type: str
    index: Optional[int]
    function: ToolFunction
    arguments_error: Optional[str]


# ---------------------------------------------------------------- chat


class ChatMessage(Record):
    role: str
    content: Optional[str]
    reasoning: Optional[str]
    reasoning_content: Optional[str]
    refusal: Optional[str]
    tool_calls: Optional[List[ToolCall]]
    annotations: Optional[List[Record]]
    audio: Optional[Record]
    function_call: Optional[Record]


class ChatChoice(Record):
    index: int
    message: ChatMessage
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]


class ChatCompletion(Record):
    """The reply of ``chat_completion``."""

    id: str
    object: str
    created: int
    model: str
    choices: List[ChatChoice]
    usage: Optional[Usage]
    system_fingerprint: Optional[str]
    service_tier: Optional[str]
    prompt_logprobs: Optional[List[Any]]
    prompt_token_ids: Optional[List[int]]
    kv_transfer_params: Optional[Record]
    metrics: Optional[Record]
    extra_fields: Optional[Record]

    @property
    def text(self) -> str:
        """The content of the first choice, or ``""``."""
        return _text_of(self, "message")


class ChatDelta(Record):
    role: Optional[str]
    content: Optional[str]
    reasoning: Optional[str]
    reasoning_content: Optional[str]
    refusal: Optional[str]
    tool_calls: Optional[List[ToolCall]]


class ChatChunkChoice(Record):
    index: int
    delta: ChatDelta
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]


class ChatCompletionChunk(Record):
    """One item of ``chat_completion_stream``; the last one carries ``usage``."""

    id: str
    object: str
    created: int
    model: str
    choices: List[ChatChunkChoice]
    usage: Optional[Usage]
    system_fingerprint: Optional[str]
    prompt_token_ids: Optional[List[int]]
    extra_fields: Optional[Record]

    @property
    def text(self) -> str:
        """The content that this chunk adds to the first choice, or ``""``."""
        return _text_of(self, "delta")


def _text_of(reply: Record, holder: str) -> str:
    for choice in reply.get("choices") or ():
        if not choice.get("index"):
            return (choice.get(holder) or {}).get("content") or ""
    return ""


# ---------------------------------------------------------------- text completions


class CompletionChoice(Record):
    index: int
    text: str
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]
    prompt_logprobs: Optional[List[Any]]
    prompt_token_ids: Optional[List[int]]


class Completion(Record):
    """The reply of ``text_completion``, and one item of ``text_completion_stream``."""

    id: str
    object: str
    created: int
    model: str
    choices: List[CompletionChoice]
    usage: Optional[Usage]
    system_fingerprint: Optional[str]
    service_tier: Optional[str]
    kv_transfer_params: Optional[Record]
    extra_fields: Optional[Record]

    @property
    def text(self) -> str:
        """The text of the first choice, or what this chunk adds to it."""
        for choice in self.get("choices") or ():
            if not choice.get("index"):
                return choice.get("text") or ""
        return ""


# ---------------------------------------------------------------- embeddings, rerank


class Embedding(Record):
    """One vector: a list of floats, or the base64 string of little-endian float32 that the caller asked for."""

    index: int
    object: str
    embedding: List[float]


class EmbeddingList(Record):
    """The reply of ``embedding``."""

    id: str
    object: str
    created: int
    model: str
    data: List[Embedding]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


class RerankResult(Record):
    """One document's score; ``index`` is its place in the caller's list."""

    index: int
    relevance_score: float
    document: Optional[Record]


class Rerank(Record):
    """The reply of ``rerank``: ``results``, best first."""

    id: Optional[str]
    model: str
    results: List[RerankResult]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- transcription, models


class TranscriptionSegment(Record):
    id: int
    start: float
    end: float
    text: str
    tokens: Optional[List[int]]


class Transcription(Record):
    """The reply of ``transcription``. ``duration`` is seconds, a number or a string as the server sent it."""

    text: str
    task: Optional[str]
    language: Optional[str]
    duration: Union[float, str, None]
    segments: Optional[List[TranscriptionSegment]]
    words: Optional[List[Record]]
    usage: Optional[Record]
    extra_fields: Optional[Record]


class TranscriptionEvent(Record):
    """One item of ``transcription_stream``.

    ``transcript.text.delta`` carries ``delta``; the one ``transcript.text.done`` at the end ``text`` and ``usage``.
    """

    type: str
    delta: Optional[str]
    text: Optional[str]
    usage: Optional[Record]


class Model(Record):
    """One model of ``list_models``; ``max_model_len`` is its context length in tokens."""

    id: str
    object: str
    created: int
    owned_by: str
    root: Optional[str]
    parent: Optional[str]
    max_model_len: Optional[int]
    permission: Optional[List[Record]]


class ModelList(Record):
    """The reply of ``list_models``."""

    object: str
    data: List[Model]
    key_statuses: Optional[List[Record]]
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- Responses


class ResponseItem(Record):
    """One item of a Response's ``output``: a message, a reasoning, a call."""

    id: Optional[str]
    type: str
    role: Optional[str]
    status: Optional[str]
    content: Optional[List[Record]]
    summary: Optional[List[Record]]
    call_id: Optional[str]
    name: Optional[str]
    arguments: Optional[str]


class Response(Record):
    """The reply of ``responses``."""

    id: str
    object: str
    created_at: int
    model: str
    status: str
    output: List[ResponseItem]
    error: Optional[Record]
    incomplete_details: Optional[Record]
    usage: Optional[Record]
    extra_fields: Optional[Record]

    @property
    def output_text(self) -> str:
        """All text of all messages, joined."""
        return "".join(
            part.get("text") or ""
            for item in self.get("output") or ()
            if item.get("type") == "message"
            for part in item.get("content") or ()
            if part.get("type") == "output_text"
        )


class ResponseEvent(Record):
    """One item of ``responses_stream``."""

    type: str
    sequence_number: int
    response: Optional[Response]
    item: Optional[ResponseItem]
    output_index: Optional[int]
    item_id: Optional[str]
    delta: Optional[str]
    text: Optional[str]
