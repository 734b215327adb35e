"""The annotated shapes of every reply (vLLM 0.32.0)."""

from typing import Any, Dict, List, Optional, Union

from .attributes import Record as Record, Shape, Whole
from .folding import objects

# ---------------------------------------------------------------- shapes shared by several operations


class Usage(Shape):
    """Tokens counted by the server."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Optional[Record]
    completion_tokens_details: Optional[Record]


class ToolFunction(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    """A call the model asks for. ``arguments`` is a string of JSON, as the model wrote it.

    ``arguments_error`` is set by the bridge when that string is no JSON object.
    """

    id: str
    type: str
    index: Optional[int]
    function: ToolFunction
    arguments_error: Optional[str]


# ---------------------------------------------------------------- chat


class ChatMessage(Shape):
    role: str
    content: Optional[str]
    reasoning: Optional[str]
    reasoning_content: Optional[str]
    refusal: Optional[str]
    tool_calls: Optional[List[ToolCall]]
    annotations: Optional[List[Record]]
    audio: Optional[Record]
    function_call: Optional[Record]


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]


class ChatCompletion(Whole):
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

    @property
    def parsed(self) -> Any:
        """The first choice's content as an object of the class that ``response_format`` was, else as plain JSON.

        Raises `ResponseDecodeError`, which says where it is not what was asked for.
        """
        return _parsed(self, self.text)


class ChatDelta(Shape):
    role: Optional[str]
    content: Optional[str]
    reasoning: Optional[str]
    reasoning_content: Optional[str]
    refusal: Optional[str]
    tool_calls: Optional[List[ToolCall]]


class ChatChunkChoice(Shape):
    index: int
    delta: ChatDelta
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]


class ChatCompletionChunk(Shape):
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


def _parsed(reply: Whole, text: str) -> Any:
    from .structured import parsed

    return parsed(text, reply._way[4], _first_choice(reply).get("finish_reason"))


# ---------------------------------------------------------------- text completions


class CompletionChoice(Shape):
    index: int
    text: str
    finish_reason: Optional[str]
    stop_reason: Union[str, int, None]
    logprobs: Optional[Record]
    token_ids: Optional[List[int]]
    prompt_logprobs: Optional[List[Any]]
    prompt_token_ids: Optional[List[int]]


class Completion(Whole):
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

    @property
    def parsed(self) -> Any:
        """The first choice's text as what ``response_format`` asked for: see `ChatCompletion`."""
        return _parsed(self, self.text)


# ---------------------------------------------------------------- embeddings, rerank


class Embedding(Shape):
    """One vector: a list of floats, or the base64 string of little-endian float32 that the caller asked for."""

    index: int
    object: str
    embedding: List[float]


class EmbeddingList(Whole):
    """The reply of ``embedding``."""

    id: str
    object: str
    created: int
    model: str
    data: List[Embedding]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


class RerankResult(Shape):
    """One document's score; ``index`` is its place in the caller's list."""

    index: int
    relevance_score: float
    document: Optional[Record]


class Rerank(Whole):
    """The reply of ``rerank``: ``results``, best first."""

    id: Optional[str]
    model: str
    results: List[RerankResult]
    usage: Optional[Usage]
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- transcription, models


class TranscriptionSegment(Shape):
    id: int
    start: float
    end: float
    text: str
    tokens: Optional[List[int]]


class Transcription(Whole):
    """The reply of ``transcription``. ``duration`` is seconds, a number or a string as the server sent it."""

    text: str
    task: Optional[str]
    language: Optional[str]
    duration: Union[float, str, None]
    segments: Optional[List[TranscriptionSegment]]
    words: Optional[List[Record]]
    usage: Optional[Record]
    extra_fields: Optional[Record]


class TranscriptionEvent(Shape):
    """One item of ``transcription_stream``.

    ``transcript.text.delta`` carries ``delta``; the one ``transcript.text.done`` at the end ``text`` and ``usage``.
    """

    type: str
    delta: Optional[str]
    text: Optional[str]
    usage: Optional[Record]


class Model(Shape):
    """One model of ``list_models``; ``max_model_len`` is its context length in tokens."""

    id: str
    object: str
    created: int
    owned_by: str
    root: Optional[str]
    parent: Optional[str]
    max_model_len: Optional[int]
    permission: Optional[List[Record]]


class ModelList(Whole):
    """The reply of ``list_models``."""

    object: str
    data: List[Model]
    key_statuses: Optional[List[Record]]
    extra_fields: Optional[Record]


# ---------------------------------------------------------------- Responses


class ResponseItem(Shape):
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


class Response(Whole):
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


class ResponseEvent(Shape):
    """One item of ``responses_stream``."""

    type: str
    sequence_number: int
    response: Optional[Response]
    item: Optional[ResponseItem]
    output_index: Optional[int]
    item_id: Optional[str]
    delta: Optional[str]
    text: Optional[str]
