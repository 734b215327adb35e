"""A stream's events as the bytes to forward: parsed only where something has to change or to be known.

Parsing and printing every chunk costs five to eight times what forwarding its bytes costs. So an event in which
nothing can be of interest goes out as it came; any other is read like a chunk.
"""

import json
import re
from typing import Sequence

from .chat import normalise_chunk
from .folding import is_finish
from .decoding import Ends, Tally, aborted, payload_of
from ..sse import Event, encode

__all__ = ["Frames", "Tally"]

DONE = b"data: [DONE]\n\n"

# A delta of reasoning as vLLM writes it (think_stream_reasoning). Within a JSON string these quotes would be escaped.
_REASONING = re.compile(r'"delta":\{"reasoning":("[^"\\]*(?:\\.[^"\\]*)*")\}')

# What needs a look at its event, as vLLM writes it; within a JSON string the quotes would be escaped.
_MARKS = (b'"finish_reason":"', b'"usage"', b'"error"', b'"reasoning', b"data: [")


class Frames:
    """The `Reader` of a stream that is forwarded: its items are whole events, as bytes.

    `choices` is how many choices were asked for. Where the client did not ask for `usage`, the chunk that carries
    nothing else is kept from it: it was asked for to count tokens.
    """

    def __init__(self, choices: int, usage: bool, tally: Tally) -> None:
        self.finished = False
        self._ends = Ends(choices)
        self._usage = usage
        self._tally = tally
        self._before = b""  # of an event that passed: what stands before its text,
        self._after = b""  # and behind it

    def feed(self, event: Event) -> Sequence[bytes]:
        """Return the event to forward, if it is one; raise the error that it carries."""
        data = event.data
        if not data:
            return ()
        if (
            data.count('"finish_reason":null') == data.count('"finish_reason"') == 1
            and '"error"' not in data
            and '"usage"' not in data
            and data[0] == "{"
            and data[-1] == "}"
        ):
            if '"reasoning' not in data:
                return (encode(data),)
            found = _REASONING.search(data)
            if found is not None and data.count('"reasoning') == 1:
                end = found.end(1)
                return (encode('%s,"reasoning_content":%s%s' % (data[:end], found.group(1), data[end:])),)
        return self._read(event)

    def passes(self, block: bytes) -> int:
        """Return how many bytes of a block that begins with an event are whole events to be forwarded as they are.

        They are those before the first that needs a look, if each of them is one line with one choice that goes on.
        """
        before, after = self._before, self._after
        if before and block.startswith(before):  # most events are the one before with another text
            text = len(block) - len(after)
            if block.find(b'"', len(before)) == text and block.endswith(after) and block.find(b"\n") == len(block) - 2:
                return len(block)
        at = 0
        for _ in range(3):  # a burst: the role's event, one to know the others by, and those
            alike = self._alike(block, at)
            if not alike:
                end = block.find(b"\n\n", at) + 2
                event = block[at:end]
                if end < 2 or _plain(event) < len(event):
                    return at
                self._learn(event)
                alike = len(event)
            at += alike
            if at == len(block):
                return at
        return at + _plain(block[at:])

    def _alike(self, block: bytes, at: int) -> int:
        """Return how many bytes from `at` on are events that differ from the one learned in their text alone."""
        before, after = self._before, self._after
        last = block.rfind(after, at) if before and block.startswith(before, at) else -1
        start = at + len(before)
        if last < start:
            return 0
        joint = after + before
        texts = block[start:last].split(joint)
        joined = b"".join(texts)
        if b'"' not in joined and b"\n" not in joined:  # nothing but text: a quote in it would be escaped
            return last + len(after) - at
        end = start
        for text in texts:
            if b'"' in text or b"\n" in text:
                break
            end += len(text) + len(joint)
        return end - start

    def _learn(self, event: bytes) -> None:
        """Note what stands around the text of an event, to know the next one by it."""
        start = event.find(b'"delta":{"content":"') + 20
        end = event.find(b'"}', start)
        if start >= 20 and end >= 0 and b"\\" not in event[start:end] and b'"' not in event[start:end]:
            self._before, self._after = event[:start], event[end:]

    def finish(self) -> Sequence[bytes]:
        """Return the end mark."""
        return (DONE,)

    def partial(self) -> None:
        """Return nothing: what arrived has been forwarded."""

    def _read(self, event: Event) -> Sequence[bytes]:
        payload = payload_of(event)
        choices = payload.get("choices") or ()
        for choice in choices:
            if type(choice) is dict and is_finish(choice.get("finish_reason")):
                if self._ends.note(choice):
                    raise aborted(choice, payload, None)
                self.finished = self._ends.all
        usage = payload.get("usage")
        if usage:
            self._tally.take(usage)
            if not choices and not self._usage:
                return ()
        if '"reasoning' in event.data and normalise_chunk(payload):
            return (encode(json.dumps(payload, separators=(",", ":"))),)
        return (encode(event.data),)


def _plain(block: bytes) -> int:
    """Return how many bytes of a block are events that need no look, whatever they look like otherwise."""
    end = block.rfind(b"\n\n") + 2
    for mark in _MARKS:
        at = block.find(mark, 0, end)
        if at >= 0:
            end = block.rfind(b"\n\n", 0, at) + 2
    if end < 2:
        return 0
    count = block.count
    events = count(b"\n\n", 0, end)
    plain = (
        block.startswith(b"data: {")
        and count(b"}\n\ndata: {", 0, end) == events - 1
        and block.startswith(b"}", end - 3)
        and count(b"\n", 0, end) == 2 * events
        and count(b'"choices":[{', 0, end) == events
        and count(b'"finish_reason"', 0, end) == events
        and count(b'"finish_reason":null', 0, end) == events
    )
    return end if plain else 0
