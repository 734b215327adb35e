"""A JSON object with attribute reads, and the annotated shapes of every reply (vLLM 0.32.0).

A record is the JSON object itself: ``json.dumps(reply)``, ``reply["choices"]`` and
``reply.choices[0].message.content`` all work. What its subclasses annotate are its declared fields: one that the
server left out reads ``None``. A field that nobody declared is there all the same.
"""

from itertools import islice
from typing import TYPE_CHECKING, Any, Dict, List, NoReturn, Optional, Tuple, Type, TypeVar, Union

from .folding import objects

if TYPE_CHECKING:
    _Base = Dict[str, Any]
else:
    _Base = dict

R = TypeVar("R", bound="Record")

_KEYS_SHOWN = 30


class Record(_Base):
    """A JSON object with attribute reads. Names of dict methods mean the methods: ``reply["items"]`` is the field.

    Attributes cannot be set: ``reply["name"] = value`` sets a field.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        if name[:2] == "__":  # copy, pickle and others ask for such names; a server's field is no protocol of Python
            raise AttributeError("%s is no attribute; a field of that name is record[%r]" % (name, name))
        try:
            value = self[name]
        except KeyError:
            if name in _declared(cls):
                return None
            raise AttributeError("%s has no field %r; it has: %s" % (cls.__name__, name, _names(self))) from None
        kind = type(value)
        if kind is dict:
            value = self[name] = (_declared(cls).get(name) or Record)(value)
        elif kind is list and value:
            shape = _declared(cls).get(name, Record)
            if shape is not None and any(type(item) is dict for item in value):
                value[:] = [shape(item) if type(item) is dict else item for item in value]
        return value

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("attributes of a %s are read-only: set record[%r]" % (type(self).__name__, name))

    def __dir__(self) -> List[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str)), *_declared(type(self))})

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, super().__repr__())

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (dict(self),)

    def copy(self: R) -> R:
        """Return a shallow copy of the same class."""
        return type(self)(self)


def _names(record: Record) -> str:
    names = [str(name) for name in islice(record, _KEYS_SHOWN)]
    more = len(record) - len(names)
    return (", ".join(names) + (" and %d more" % more if more else "")) or "none"


_shapes: Dict[Type[Record], Dict[str, Optional[Type[Record]]]] = {}


def _declared(cls: Type[Record]) -> Dict[str, Optional[Type[Record]]]:
    """Return the declared fields of a record class, each with the class of its objects; ``None`` if it has none."""
    try:
        return _shapes[cls]
    except KeyError:
        pass
    shapes: Dict[str, Optional[Type[Record]]] = {}
    for base in reversed(cls.__mro__):
        for name, hint in getattr(base, "__annotations__", {}).items():
            shapes[name] = _record_in(hint)
    _shapes[cls] = shapes
    return shapes


def _record_in(hint: Any) -> Optional[Type[Record]]:
    """Return the record class inside ``X``, ``Optional[X]``, ``List[X]`` and their like; `Record` for ``Any``."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint
    if hint is Any:
        return Record
    for inner in getattr(hint, "__args__", ()):
        found = _record_in(inner)
        if found is not None:
            return found
    return None


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

    ``arguments_error`` is set by the bridge when that string is no JSON object.
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


def _first_choice(reply: Record) -> Dict[str, Any]:
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else ():  # each chunk of a stream is asked
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return {}


def _text_of(reply: Record, holder: str) -> str:
    message = _first_choice(reply).get(holder)
    text = message.get("content") if isinstance(message, dict) else None
    return text if isinstance(text, str) else ""


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
        text = _first_choice(self).get("text")
        return text if isinstance(text, str) else ""


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
            part["text"]
            for item in objects(self.get("output"))
            if item.get("type") == "message"
            for part in objects(item.get("content"))
            if part.get("type") == "output_text" and isinstance(part.get("text"), str)
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
