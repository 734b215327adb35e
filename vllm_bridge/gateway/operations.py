"""What each operation needs in its request, and how the provider's answer leaves: `OPERATIONS` as data."""

import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import BadRequestError, error_from_payload
from ..http1.multipart import CONTROLS
from ..api.forwarding import DONE, Tally
from ..provider import BaseOpenAIProvider
from ..client.reply import Reply
from ..sse import encode
from ..client.stream import Stream
from ..api.body import object_of, to_json

__all__ = ["Answer", "Asked", "OPERATIONS", "Operation", "Opened"]

Headers = List[Tuple[str, str]]
Body = Dict[str, Any]
JSON = "application/json"
_LAST = ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "error")


class Answer(NamedTuple):
    """A whole reply."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Tuple[Tuple[str, str], ...] = ()


class Opened(NamedTuple):
    """A stream whose first event is there: its frames as bytes, and how an error within it looks.

    `passing` is the stream itself where its items are the frames.
    """

    stream: Stream[Any]
    frames: Iterator[bytes]
    failure: Callable[[Body], bytes]
    passing: Optional[Stream[bytes]] = None


class Asked(NamedTuple):
    """What is asked of a provider: a body, also as JSON where that is at hand, and where to count tokens."""

    provider: BaseOpenAIProvider
    body: Body
    data: Optional[bytes]
    tally: Tally


class Operation(NamedTuple):
    """An operation: its fields of which one must be there, and the two ways to carry it out."""

    name: str
    required: Tuple[str, ...]
    missing: str
    answer: Callable[[Asked], Answer]
    stream: Optional[Callable[[Asked], Opened]] = None

    def check(self, body: Body) -> None:
        """Raise `BadRequestError` for a request that lacks its main field (SPEC §10)."""
        for name in self.required:
            value = body.get(name)
            if value is not None and value != []:
                return
        raise BadRequestError(self.missing, param=self.required[0], type="invalid_request_error")


# ---------------------------------------------------------------- whole replies

# Of a server's headers these stay with it: they belong to its connection, to its own clients, or name it.
_KEPT = frozenset((
    "connection content-encoding content-length content-type date keep-alive location proxy-authenticate server "
    "set-cookie strict-transport-security te trailer transfer-encoding upgrade vary via www-authenticate x-request-id "
    "x-powered-by x-frame-options x-content-type-options"
).split())
_COUNT = re.compile(rb'"(prompt|completion)_tokens": ?([0-9]{1,15})')


def _forwarded(operation: str) -> Callable[[Asked], Answer]:
    def answer(asked: Asked) -> Answer:
        reply = asked.provider.forward(operation, asked.body, asked.data)
        _count(reply.body, asked.tally)
        kind = reply.content_type
        if kind != JSON and (not kind or CONTROLS.search(kind)):
            kind = JSON
        return Answer(200, reply.body, kind, passed_headers(reply))

    return answer


def _count(body: bytes, tally: Tally) -> None:
    """Read the usage from a reply's bytes; inside a string its quotes would be escaped."""
    at = body.rfind(b'"usage":{')
    if at < 0:
        at = body.rfind(b'"usage": {')
        if at < 0:
            return
    for name, digits in _COUNT.findall(body, at, at + 1000):
        if name == b"prompt":
            tally.prompt_tokens = int(digits)
        else:
            tally.completion_tokens = int(digits)


def passed_headers(reply: Reply) -> Tuple[Tuple[str, str], ...]:
    """Return the headers of a server's reply that its client gets to see."""
    return tuple([pair for pair in reply.headers.items() if pair[0] not in _KEPT and _passes(*pair)])


def _passes(name: str, value: str) -> bool:
    name = name.lower()
    return not (name in _KEPT or name.startswith("access-control-") or CONTROLS.search(value))


def _rerank(asked: Asked) -> Answer:
    return _record(asked.provider.rerank(**asked.body), asked.tally)


def _responses(asked: Asked) -> Answer:
    reply = asked.provider.forward("responses", asked.body, asked.data)
    asked.tally.take(reply.read(lambda: object_of(reply.body)).get("usage"))
    return Answer(200, reply.body, reply.content_type or JSON, passed_headers(reply))


def _transcription(asked: Asked) -> Answer:
    return _record(asked.provider.transcription(**asked.body), asked.tally)


def _record(record: Body, tally: Tally) -> Answer:
    tally.take(record.get("usage"))
    return Answer(200, to_json(record))


# ---------------------------------------------------------------- streams


def _frames_of(operation: str) -> Callable[[Asked], Opened]:
    def open_stream(asked: Asked) -> Opened:
        stream = asked.provider.forward_stream(operation, asked.body, asked.data)
        return Opened(stream, iter(stream), error_frame, stream)

    return open_stream


def error_frame(error: Body) -> bytes:
    """Return the event that ends a stream in chat's manner; no ``[DONE]`` follows it."""
    return encode(to_json({"error": error}).decode("ascii"))


def _transcription_stream(asked: Asked) -> Opened:
    stream = asked.provider.transcription_stream(**asked.body)
    return Opened(stream, _data_frames(stream, asked.tally), error_frame)


def _data_frames(events: Iterator[Body], tally: Tally) -> Iterator[bytes]:
    for event in events:
        tally.take(event.get("usage"))
        yield b"data: %s\n\n" % to_json(event)
    yield DONE


def _responses_stream(asked: Asked) -> Opened:
    stream = asked.provider.responses_stream(**asked.body)
    frames = _EventFrames(stream, asked.tally)
    return Opened(stream, frames, frames.failure)


class _EventFrames:
    """Events of the Responses API with their types in ``event:`` lines."""

    def __init__(self, events: Iterator[Body], tally: Tally) -> None:
        from ..api.responses import PartialResponse  # a gateway that is asked for chats alone does without

        self._events = events
        self._tally = tally
        self._next = 0  # the sequence number that an error would have
        self._ended = False
        self._so_far = PartialResponse()

    def __iter__(self) -> "Iterator[bytes]":
        return self

    def __next__(self) -> bytes:
        event = next(self._events)
        self._so_far.feed(event)
        number = event.get("sequence_number")
        if isinstance(number, int):
            self._next = number + 1
        response = event.get("response")
        if isinstance(response, Mapping):
            self._tally.take(response.get("usage"))
        kind = str(event.get("type"))
        self._ended = self._ended or kind in _LAST
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
                  _forwarded("chat_completion"), _frames_of("chat_completion")),
        Operation("text_completion", ("prompt", "prompt_embeds"), "prompt is required for text completion",
                  _forwarded("text_completion"), _frames_of("text_completion")),
        Operation("embedding", ("input", "messages"), "input is required for embeddings", _forwarded("embedding")),
        Operation("rerank", ("query",), "query is required for rerank, and must not be blank", _rerank),
        Operation("responses", ("input",), "input is required for responses", _responses, _responses_stream),
        Operation("transcription", ("file",), "file is required", _transcription, _transcription_stream),
    )
}
