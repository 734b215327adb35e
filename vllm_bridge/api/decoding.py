"""What the events of a stream mean: chunks of chat and text completions, events of a transcription."""

import copy
import re
from typing import Any, Dict, Generic, List, Optional, Sequence, Set, Type, TypeVar, Union

from .chat import ChatAccumulator, normalise_chunk
from .folding import index_of, is_finish, joined, without_empty_ends
from ..errors import IncompleteStreamError, error_from_payload, payload_error, undecodable
from ..nesting import loads
from .body import decode
from .records import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Record,
    Response,
    ResponseEvent,
    Transcription,
    TranscriptionEvent,
)
from ..sse import Event
from .completions import CompletionAccumulator

__all__ = [
    "AnyEvents",
    "ChatChunks",
    "ChunkReader",
    "CompletionChunks",
    "Ends",
    "ResponsesReader",
    "TokenUsage",
    "TranscriptionReader",
    "aborted",
    "payload_of",
]

R = TypeVar("R", bound=Record)

_FOLDED_AT = 4 * 1024 * 1024  # characters of events that a reader keeps before it folds them

_COUNT = re.compile(rb'"((?:prompt|completion|cached|input|output)_tokens)": ?([0-9]{1,15})')
_TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")


def payload_of(event: Event) -> Dict[str, Any]:
    """Return the JSON object of an event; raise the error that it is, or `ResponseDecodeError` if it is none."""
    data = event.data
    payload = decode(data)
    if type(payload) is not dict:
        raise undecodable("an event of the stream is no JSON object", data)
    choices = payload.get("choices")
    if choices is None or "error" in payload:
        error = payload_error(payload)
        if error is None and event.event == "error":
            error = error_from_payload(payload)
        if error is not None:
            raise error
    if choices is not None and type(choices) is not list:
        raise undecodable("the choices of a chunk are no list", data)
    return payload


class ChunkReader(Generic[R]):
    """Turn events into chunks of which each has a choice and the last one the usage.

    vLLM sends usage in a chunk of its own without choices. So a chunk with a finish reason is held back until the
    next one, and takes that usage on. `choices` is how many choices the request asked for.
    """

    record: Type[R]
    whole: Type[Record]
    accumulator: Type[Union[ChatAccumulator, CompletionAccumulator]]
    empty: Dict[str, Any]

    def __init__(self, choices: int = 1) -> None:
        self.finished = False
        self._ends = Ends(choices)
        self._held: Optional[Dict[str, Any]] = None
        self._seen: List[str] = []  # the text of every event: folded only when somebody asks, or when it grows long
        self._size = 0
        self._folded = self.accumulator()

    def feed(self, event: Event) -> Sequence[R]:
        """Return the chunks that go out now; raise an error that the server reports inside the stream."""
        data = event.data
        if not data:
            return ()
        payload = payload_of(event)
        self._seen.append(data)
        self._size += len(data)
        if self._size > _FOLDED_AT:
            self._fold()
        choices = payload.get("choices")
        if not choices:
            return self._without_choices(payload)
        self.adapt(payload, data)
        finishes = False
        for choice in choices:
            if type(choice) is not dict or choice.get("finish_reason") is choice.get("stop_reason") is None:
                continue
            without_empty_ends(choice)
            if is_finish(choice.get("finish_reason")):
                finishes = True
                if self._ends.note(choice):
                    raise aborted(choice, payload, self.partial())
                self.finished = self._ends.all
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

    def partial(self) -> Record:
        """Return what has arrived so far as a complete reply."""
        return self.whole(self._fold())

    def adapt(self, payload: Dict[str, Any], data: str) -> None:
        """Change a chunk in place before it goes out."""

    def _without_choices(self, payload: Dict[str, Any]) -> Sequence[R]:
        held = self._held
        if held is None or not payload.get("usage"):
            payload["choices"] = [copy.deepcopy(self.empty)]
            return (self.record(payload),)
        for key, value in payload.items():
            if key != "choices" and (value is not None or key not in held):
                held[key] = value
        return ()

    def _fold(self) -> Dict[str, Any]:
        for data in self._seen:
            try:
                self._folded.feed(loads(data))
            except RecursionError:
                pass  # nested so deeply that it could be read only from a frame further up
        self._seen = []
        self._size = 0
        return self._folded.completion()


class Ends:
    """Which of a stream's choices have come to their end; `all` is whether each of those asked for has."""

    def __init__(self, choices: int) -> None:
        self.all = False
        self._asked = choices
        self._indexes: Set[int] = set()

    def note(self, choice: Dict[str, Any]) -> bool:
        """Note a choice with a finish reason; tell whether it is the server's own failure."""
        self._indexes.add(index_of(choice))
        self.all = len(self._indexes) >= self._asked
        return choice["finish_reason"] in ("abort", "error")


def aborted(choice: Dict[str, Any], payload: Dict[str, Any], partial: Any) -> IncompleteStreamError:
    """Return the error for a choice that the server's own failure has ended."""
    return IncompleteStreamError(
        "the server aborted the generation (finish_reason %r)" % choice["finish_reason"],
        partial=partial,
        type="aborted",
        code="abort",
        payload=payload,
    )


class ChatChunks(ChunkReader[ChatCompletionChunk]):
    """The chunks of ``chat_completion_stream``."""

    record = ChatCompletionChunk
    whole = ChatCompletion
    accumulator = ChatAccumulator
    empty = {"index": 0, "delta": {}, "finish_reason": None}

    def adapt(self, payload: Dict[str, Any], data: str) -> None:
        """Mirror the names of reasoning."""
        if '"reasoning' in data:
            normalise_chunk(payload)


class CompletionChunks(ChunkReader[Completion]):
    """The chunks of ``text_completion_stream``."""

    record = Completion
    whole = Completion
    accumulator = CompletionAccumulator
    empty = {"index": 0, "text": "", "finish_reason": None}


class ResponsesReader:
    """The events of a server's own Responses stream, as they are.

    vLLM 0.32 ends a failed one by closing the socket, without an event of its own, and a good one after its terminal
    event, without ``[DONE]``.
    """

    def __init__(self) -> None:
        from .responses import PartialResponse

        self.finished = False
        self._so_far = PartialResponse()

    def feed(self, event: Event) -> Sequence[ResponseEvent]:
        """Return the event; raise an error that stands where an event should."""
        if not event.data:
            return ()
        payload = payload_of(event)
        self._so_far.feed(payload)
        if payload.get("type") in _TERMINAL:
            self.finished = True
        return (ResponseEvent(payload),)

    def finish(self) -> Sequence[ResponseEvent]:
        """Return nothing: no event is held back."""
        return ()

    def partial(self) -> Optional[Response]:
        """Return the Response as far as the events tell it."""
        response = self._so_far.response()
        return None if response is None else Response(response)


class AnyEvents:
    """The events of any stream, as JSON where they are that; it ends with ``[DONE]`` or where its body ends."""

    finished = False

    def feed(self, event: Event) -> Sequence[Any]:
        """Return the event; raise an error that the server reports inside the stream."""
        if not event.data:
            return ()
        try:
            found = loads(event.data)
        except (ValueError, RecursionError):
            return (event.data,)
        return (Record(payload_of(event)),) if isinstance(found, dict) else (found,)

    def finish(self) -> Sequence[Any]:
        """Return nothing: no event is held back."""
        return ()

    def partial(self) -> None:
        """Return nothing: what arrived has been handed out."""


class TranscriptionReader:
    """The events of ``transcription_stream``: ``transcript.text.delta``, then one ``transcript.text.done``.

    They are made of vLLM's chunks (``choices[].delta.content``), or are those of a server that speaks OpenAI's way.
    What else a chunk carries (``id``, ``model``, ``usage``, ``logprobs``, ...) stands on its delta event; the last
    value of each field of the chunk stands on the done event.

    A finish reason ends one audio segment of 30 s, not the stream (audio_65s_stream). The end mark, the usage chunk, or
    the done event of such a server does.
    """

    def __init__(self) -> None:
        self.finished = False
        self._deltas: List[str] = []
        self._done: List[str] = []  # texts of the server's own done events
        self._rest: Dict[str, Any] = {}
        self._reason: Dict[str, Any] = {}
        self._closed = False

    def feed(self, event: Event) -> Sequence[TranscriptionEvent]:
        """Return the events that go out now; raise an error that the server reports inside the stream."""
        if not event.data:
            return ()
        chunk = payload_of(event)
        kind = chunk.get("type")
        if not isinstance(kind, str) or not kind.startswith("transcript."):
            return self._chunk(chunk, event.data)
        if kind == "transcript.text.done":
            self._done.append(_string(chunk, "text", event.data))
            self._rest.update(_without(chunk, "type", "text"))
            self.finished = True
            return ()
        if kind == "transcript.text.delta":
            self._deltas.append(_string(chunk, "delta", event.data))
        return (TranscriptionEvent(chunk),)

    def finish(self) -> Sequence[TranscriptionEvent]:
        """Return the closing event, once."""
        if self._closed:
            return ()
        self._closed = True
        text = self._done[0] if len(self._done) == 1 and self._done[0] else self.partial().text
        return (TranscriptionEvent({**self._rest, **self._reason, "type": "transcript.text.done", "text": text}),)

    def partial(self) -> Transcription:
        """Return the text that has arrived so far as a transcription."""
        usage = {"usage": self._rest["usage"]} if self._rest.get("usage") else {}
        return Transcription(text=joined(self._deltas) or joined(self._done), **usage)

    def _chunk(self, chunk: Dict[str, Any], text: str) -> Sequence[TranscriptionEvent]:
        choices = chunk.get("choices") or ()
        fields = _without(chunk, "object", "choices", "type")
        self._rest.update(fields)
        self.finished = self.finished or bool(not choices and chunk.get("usage"))
        events = []
        for choice in choices:
            delta = (choice.get("delta") or {}) if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                raise undecodable("a choice of a transcription, or its delta, is no object", text)
            content = _string(delta, "content", text)
            extras = {**_without(choice, "delta", "index"), **_without(delta, "content")}
            without_empty_ends(extras)
            self._deltas.append(content)
            self._note_end(extras)
            if content:
                event = {**fields, **extras, "type": "transcript.text.delta", "delta": content}
                events.append(TranscriptionEvent(event))
            else:
                self._rest.update(_without(extras, "finish_reason", "stop_reason", "role"))
        return events

    def _note_end(self, choice: Dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason in ("abort", "error"):
            raise aborted(choice, choice, self.partial())
        # A segment that was cut short ("length") is not hidden by the stop of the next one.
        if is_finish(reason) and self._reason.get("finish_reason", "stop") == "stop":
            self._reason = {name: choice[name] for name in ("finish_reason", "stop_reason") if name in choice}


def _without(fields: Dict[str, Any], *names: str) -> Dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _string(fields: Dict[str, Any], name: str, text: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise undecodable("the %s of a transcription is no string" % name, text)
    return value or ""


class TokenUsage:
    """What a call's reply said of itself: the tokens counted by the server."""

    prompt_tokens = 0
    completion_tokens = 0
    cached_tokens = 0  # of the prompt's; vLLM tells them with --enable-prompt-tokens-details

    def take(self, usage: Any) -> None:
        """Note the counts of a ``usage`` object, of chat's or of the Responses' naming."""
        if isinstance(usage, dict):
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            completion = usage.get("completion_tokens", usage.get("output_tokens"))
            if isinstance(prompt, int) and prompt > self.prompt_tokens:
                self.prompt_tokens = prompt
            if isinstance(completion, int) and completion > self.completion_tokens:
                self.completion_tokens = completion
            details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, dict) else None
            if isinstance(cached, int) and cached > self.cached_tokens:
                self.cached_tokens = cached

    def read(self, body: bytes) -> None:
        """Note the counts of a reply's bytes; inside a string its quotes would be escaped."""
        at = max(body.rfind(b'"usage":{'), body.rfind(b'"usage": {'))
        if at >= 0:
            found = {name.decode("ascii"): int(digits) for name, digits in _COUNT.findall(body, at, at + 1000)}
            self.take({**found, "prompt_tokens_details": found})
