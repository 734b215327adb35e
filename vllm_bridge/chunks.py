"""What the events of a stream mean: chunks of chat and text completions, events of a transcription."""

import json
from typing import Any, Dict, Generic, List, Optional, Sequence, Type, TypeVar

from .chat import ChatAccumulator, normalise_chunk
from .errors import IncompleteStreamError, ResponseDecodeError, payload_error
from .records import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Record,
    Response,
    ResponseEvent,
    TranscriptionEvent,
    decode,
)
from .sse import Event
from .text import CompletionAccumulator
from .transcription import TranscriptionEvents

__all__ = ["ChatChunks", "ChunkReader", "CompletionChunks", "ResponsesReader", "TranscriptionReader", "payload_of"]

R = TypeVar("R", bound=Record)

_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))


def payload_of(event: Event) -> Dict[str, Any]:
    """Return the JSON object of an event; raise the error that it is, or `ResponseDecodeError` if it is none."""
    try:
        payload = json.loads(event.data)
    except (ValueError, RecursionError):
        payload = decode(event.data)  # raises, and says what stood there
    if type(payload) is not dict:
        raise ResponseDecodeError(
            "an event of the stream is no JSON object: %s" % event.data[:200], payload=event.data[:2000]
        )
    if "error" in payload or "choices" not in payload:
        error = payload_error(payload)
        if error is not None:
            raise error
    return payload


class ChunkReader(Generic[R]):
    """Turn events into chunks of which each has a choice and the last one the usage (SPEC "We decided" 8).

    vLLM sends usage in a chunk of its own without choices. So a chunk with a finish reason is held back until the
    next one, and takes that usage on. `choices` is how many choices the request asked for.
    """

    record: Type[R]
    empty: Dict[str, Any]

    def __init__(self, choices: int = 1) -> None:
        self.finished = False
        self._open = choices
        self._held: Optional[Dict[str, Any]] = None
        self._seen: List[str] = []  # the text of every event: folded only when somebody asks

    def feed(self, event: Event) -> Sequence[R]:
        """Return the chunks that go out now; raise an error that the server reports inside the stream."""
        data = event.data
        if not data:
            return ()
        payload = payload_of(event)
        self._seen.append(data)
        choices = payload.get("choices")
        if not choices:
            return self._without_choices(payload)
        self.adapt(payload, data)
        finishes = False
        for choice in choices:
            reason = choice.get("finish_reason") if type(choice) is dict else None
            if reason is not None:
                finishes = True
                self._finish(reason, payload)
        held = self._held
        if finishes:
            self._held = payload
            return () if held is None else (self.record(held),)
        if held is None:
            return (self.record(payload),)
        self._held = None
        return (self.record(held), self.record(payload))

    def finish(self) -> Sequence[R]:
        """Return the chunk that was held back, if any."""
        held, self._held = self._held, None
        return () if held is None else (self.record(held),)

    def partial(self) -> Any:
        """Return what has arrived so far as a complete reply."""
        raise NotImplementedError

    def adapt(self, payload: Dict[str, Any], data: str) -> None:
        """Change a chunk in place before it goes out."""

    def _finish(self, reason: str, payload: Dict[str, Any]) -> None:
        if reason == "abort" or reason == "error":
            raise IncompleteStreamError(
                "the server aborted the generation (finish_reason %r)" % reason,
                partial=self.partial(),
                type="aborted",
                code="abort",
                payload=payload,
            )
        self._open -= 1
        self.finished = self._open <= 0

    def _without_choices(self, payload: Dict[str, Any]) -> Sequence[R]:
        held = self._held
        if held is None or not payload.get("usage"):
            payload["choices"] = [dict(self.empty)]
            return (self.record(payload),)
        for key, value in payload.items():
            if key != "choices" and (value is not None or key not in held):
                held[key] = value
        return ()

    def _folded(self, accumulator: Any) -> Dict[str, Any]:
        for data in self._seen:
            accumulator.feed(json.loads(data))
        result: Dict[str, Any] = accumulator.completion()
        return result


class ChatChunks(ChunkReader[ChatCompletionChunk]):
    """The chunks of ``chat_completion_stream``."""

    record = ChatCompletionChunk
    empty = {"index": 0, "delta": {}, "finish_reason": None}

    def adapt(self, payload: Dict[str, Any], data: str) -> None:
        """Mirror the names of reasoning."""
        if '"reasoning' in data:
            normalise_chunk(payload)

    def partial(self) -> ChatCompletion:
        """Return what has arrived so far as a chat completion."""
        return ChatCompletion(self._folded(ChatAccumulator()))


class CompletionChunks(ChunkReader[Completion]):
    """The chunks of ``text_completion_stream``."""

    record = Completion
    empty = {"index": 0, "text": "", "finish_reason": None}

    def partial(self) -> Completion:
        """Return what has arrived so far as a completion."""
        return Completion(self._folded(CompletionAccumulator()))


class ResponsesReader:
    """The events of a server's own Responses stream, as they are.

    vLLM 0.32 ends a failed one by closing the socket, without an event of its own (WIRE.md §1.3), and a good one after
    its terminal event, without ``[DONE]``.
    """

    def __init__(self) -> None:
        self.finished = False
        self._response: Optional[Dict[str, Any]] = None

    def feed(self, event: Event) -> Sequence[ResponseEvent]:
        """Return the event; raise an error that stands where an event should."""
        if not event.data:
            return ()
        payload = payload_of(event)
        if type(payload.get("response")) is dict:
            self._response = payload["response"]
        if payload.get("type") in _TERMINAL:
            self.finished = True
        return (ResponseEvent(payload),)

    def finish(self) -> Sequence[ResponseEvent]:
        """Return nothing: no event is held back."""
        return ()

    def partial(self) -> Optional[Response]:
        """Return the Response as the last event told it."""
        return None if self._response is None else Response(self._response)


class TranscriptionReader:
    """The events of ``transcription_stream``: deltas, then one ``transcript.text.done``.

    A finish reason ends one audio segment of 30 s, not the stream (audio_65s_stream), so only the end mark counts.
    """

    def __init__(self) -> None:
        self.finished = False
        self._events = TranscriptionEvents()

    def feed(self, event: Event) -> Sequence[TranscriptionEvent]:
        """Return the events that go out now; raise an error that the server reports inside the stream."""
        if not event.data:
            return ()
        return [TranscriptionEvent(item) for item in self._events.feed(payload_of(event))]

    def finish(self) -> Sequence[TranscriptionEvent]:
        """Return the closing event."""
        return [TranscriptionEvent(item) for item in self._events.finish()]

    def partial(self) -> Dict[str, Any]:
        """Return the text that has arrived so far as a transcription."""
        return {"text": self._events.text}
