"""A stream's events as the bytes to forward: parsed only where something has to change or to be known.

Parsing and printing every chunk costs five to eight times what forwarding its bytes costs. So an event in which
nothing can be of interest goes out as it came; any other is read like a chunk.
"""

import json
from typing import Any, Dict, Sequence

from .chat import normalise_chunk
from .chunks import payload_of
from .errors import IncompleteStreamError
from .sse import Event, encode

__all__ = ["Frames", "Tally"]

DONE = b"data: [DONE]\n\n"


class Tally:
    """What a call's reply said of itself: the tokens counted by the server."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def take(self, usage: Any) -> None:
        """Note the counts of a ``usage`` object, of chat's or of the Responses' naming."""
        if isinstance(usage, dict):
            for ours, theirs in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
                count = usage.get(ours, usage.get(theirs))
                if isinstance(count, int):
                    setattr(self, ours, max(count, getattr(self, ours)))


class Frames:
    """The `Reader` of a stream that is forwarded: its items are whole events, as bytes.

    `choices` is how many choices were asked for. Where the client did not ask for `usage`, the chunk that carries
    nothing else is kept from it: it was asked for to count tokens.
    """

    def __init__(self, choices: int, usage: bool, tally: Tally) -> None:
        self.finished = False
        self._open = choices
        self._usage = usage
        self._tally = tally

    def feed(self, event: Event) -> Sequence[bytes]:
        """Return the event to forward, if it is one; raise the error that it carries."""
        data = event.data
        if not data:
            return ()
        plain = (
            data.count('"finish_reason":null') == data.count('"finish_reason"') == 1
            and '"error"' not in data
            and '"usage"' not in data
            and '"reasoning' not in data
        )
        return (encode(data),) if plain else self._read(event)

    def finish(self) -> Sequence[bytes]:
        """Return the end mark."""
        return (DONE,)

    def partial(self) -> None:
        """Return nothing: what arrived has been forwarded."""

    def _read(self, event: Event) -> Sequence[bytes]:
        payload = payload_of(event)
        choices = payload.get("choices") or ()
        for choice in choices:
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if reason is not None:
                self._finish(reason, payload)
        usage = payload.get("usage")
        if usage:
            self._tally.take(usage)
            if not choices and not self._usage:
                return ()
        if '"reasoning' in event.data:
            before = json.dumps(choices)
            normalise_chunk(payload)
            if json.dumps(choices) != before:
                return (encode(json.dumps(payload, separators=(",", ":"))),)
        return (encode(event.data),)

    def _finish(self, reason: str, payload: Dict[str, Any]) -> None:
        if reason in ("abort", "error"):
            raise IncompleteStreamError(
                "the server aborted the generation (finish_reason %r)" % reason,
                type="aborted",
                code="abort",
                payload=payload,
            )
        self._open -= 1
        self.finished = self._open <= 0
