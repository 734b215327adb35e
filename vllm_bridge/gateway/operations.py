"""What each operation needs in its request, and how the provider's answer leaves: `OPERATIONS` as data."""

from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from ..api.body import object_of, to_json
from ..api.forwarding import DONE
from ..client.options import Trace
from ..client.stream import Stream
from ..errors import error_from_payload
from ..provider import BaseOpenAIProvider
from ..server.request import Answer
from ..sse import encode
from . import token_ids
from .errors import invalid

__all__ = ["Asked", "OPERATIONS", "Opened", "Operation"]

Body = Dict[str, Any]
JSON = "application/json"
_FAILED = ("response.failed", "error")
_LAST = ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "error")


class Asked(NamedTuple):
    """What is asked of a provider: a body, also as JSON where that is at hand, and what is noted of the call.

    `words` returns what a client may read of an error's code and message.
    """

    provider: BaseOpenAIProvider
    body: Body
    data: Optional[bytes]
    trace: Trace
    words: Callable[[Any, str], str]


class Opened:
    """A stream of which something is there, as the bytes of its blocks: those of chat and text completions."""

    failed = False  # it has told of a failure itself
    deltas: Optional[int] = None  # how many there were, where not every event is one

    def __init__(self, stream: Stream[Any]) -> None:
        self.stream = stream
        self.blocks: Iterator[bytes] = iter(stream)

    def failure(self, error: Body) -> bytes:
        """Return the event that ends the stream because of an error; no ``[DONE]`` follows it."""
        return encode(to_json({"error": error}).decode("ascii"))


class Operation(NamedTuple):
    """An operation: its fields of which one must be there, and the two ways to carry it out."""

    name: str
    required: Tuple[str, ...]  # none: the server says itself what is missing
    missing: str
    answer: Callable[[Asked], Answer]
    stream: Optional[Callable[[Asked], Opened]] = None
    passes: bool = False  # nothing of its main field has to be looked at, so that need not be parsed
    without_model: bool = False  # may be asked for without a model, where all servers have the same one

    def check(self, body: Body, fields: Dict[str, str]) -> None:
        """Raise `BadRequestError` for a request that lacks its main field; `fields` are its headers."""
        if self.name == "embedding":
            token_ids.look(fields, body)
        for name in self.required:
            value = body.get(name)
            if value is not None and value != []:
                return
        if self.required:
            raise invalid(self.missing, self.required[0])


# ---------------------------------------------------------------- whole replies

def _forwarded(operation: str) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        reply = asked.provider.forward(operation, asked.body, asked.data)
        if operation == "responses":
            response = reply.read(lambda: object_of(reply.body))
            if _reworded(response.get("error"), asked.words):
                reply = reply._replace(body=to_json(response))
        return Answer(200, reply.headers.items(), reply.body)

    return answer


def _reworded(error: Any, words: Callable[[Any, str], str]) -> bool:
    """Put what a client may read into an error that a reply or an event holds; tell if that is something else."""
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(message, str):
        return False
    error["message"] = words(error.get("upstream_code", error.get("code")), message)
    return bool(error["message"] != message)


def _record(call: str) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        record: Body = getattr(asked.provider, call)(**asked.body)
        return Answer(200, [("Content-Type", JSON)], to_json(record))

    return answer


# ---------------------------------------------------------------- streams


def _forwarded_stream(operation: str) -> Callable[[Asked], Opened]:
    return lambda asked: Opened(asked.provider.forward_stream(operation, asked.body, asked.data))


class _Messages(Opened):
    """Events of Anthropic's Messages API."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked.provider.forward_stream("messages", asked.body, asked.data))

    def failure(self, error: Body) -> bytes:
        """Return the API's own event for an error."""
        return encode(to_json({"type": "error", "error": error}).decode("ascii"), "error")


class _Transcript(Opened):
    """Events of a transcription or a translation, as objects."""

    def __init__(self, stream: Stream[Any]) -> None:
        super().__init__(stream)
        self.blocks = self._printed()

    def _printed(self) -> Iterator[bytes]:
        for event in self.stream:
            yield event if type(event) is bytes else b"data: %s\n\n" % to_json(event)  # bytes: a comment
        yield DONE


class _Typed(Opened):
    """Events of the Responses API with their types in ``event:`` lines."""

    def __init__(self, asked: Asked) -> None:
        from ..api.responses import PartialResponse  # a gateway that is asked for chats alone does without

        super().__init__(asked.provider.responses_stream(**asked.body))
        self.blocks = map(self._printed, self.stream)
        self.deltas = 0
        self._words = asked.words
        self._next = 0  # the sequence number that an error would have
        self._ended = False
        self._so_far = PartialResponse()

    def _printed(self, event: Any) -> bytes:
        if type(event) is bytes:  # a comment
            return event
        self._so_far.feed(event)
        number = event.get("sequence_number")
        if isinstance(number, int):
            self._next = number + 1
        kind = str(event.get("type"))
        if kind.endswith(".delta"):
            self.deltas = (self.deltas or 0) + 1
        self._ended = self._ended or kind in _LAST
        if kind in _FAILED:
            self.failed = True
            response = event.get("response")
            for error in (event, event.get("error"), response.get("error") if isinstance(response, dict) else None):
                _reworded(error, self._words)
        if not kind.isprintable():  # a line end in it would end the event
            kind = "message"
        return b"event: %s\ndata: %s\n\n" % (kind.encode("utf-8", "replace"), to_json(event))

    def failure(self, error: Body) -> bytes:
        """Return the API's own event for an error, unless the response has come to its end."""
        if self._ended:
            return b""
        event = self._so_far.failure(error_from_payload({"error": error}), self._next)
        return encode(to_json(event).decode("ascii"), event["type"])


OPERATIONS: Dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("chat_completion", ("messages",), "messages is required for chat completion",
                  _forwarded("chat_completion"), _forwarded_stream("chat_completion")),
        Operation("text_completion", ("prompt", "prompt_embeds"), "prompt is required for text completion",
                  _forwarded("text_completion"), _forwarded_stream("text_completion"), True),
        Operation("embedding", ("input", "messages"), "input is required for embeddings",
                  _forwarded("embedding"), None, True),
        Operation("rerank", ("query",), "query is required for rerank, and must not be blank", _record("rerank")),
        Operation("responses", ("input",), "input is required for responses",
                  _forwarded("responses"), _Typed),
        Operation("transcription", ("file",), "file is required", _record("transcription"),
                  lambda asked: _Transcript(asked.provider.transcription_stream(**asked.body))),
        Operation("translation", ("file",), "file is required", _record("translation"),
                  lambda asked: _Transcript(asked.provider.translation_stream(**asked.body))),
        Operation("messages", (), "", _forwarded("messages"), _Messages),
        *(Operation(name, (), "", _forwarded(name)) for name in (
            "count_tokens", "chat_completion_batch", "decision", "generative_scoring", "score", "classify", "pooling",
            "embed", "speech", "image_generation",
        )),
        *(Operation(name, (), "", _forwarded(name), without_model=True) for name in ("tokenize", "detokenize")),
        Operation("tokenizer_info", (), "", _record("tokenizer_info"), without_model=True),
    )
}
