"""A stream's blocks as the bytes to hand on: read only where something has to change or to be known.

Parsing and printing every chunk costs five to eight times what handing on its bytes costs. So events in which nothing
can be of interest go out as they came; any other is read like a chunk.
"""

import json
import re
from typing import Any, List, Optional, Tuple

from .chat import normalise_chunk
from .decoding import Ends, TokenUsage, aborted, payload_of
from .folding import is_finish
from ..errors import BridgeError, ResponseDecodeError
from ..sse import MAX_EVENT, Event, EventDecoder, LineDecoder, encode

__all__ = ["Forwarding", "TokenUsage"]

DONE = b"data: [DONE]\n\n"

# A delta of reasoning as vLLM writes it (tests/data/vllm-0.32.0: think_stream_reasoning). Within a JSON string these
# quotes would be escaped.
_REASONING = re.compile(r'"delta":\{"reasoning":("[^"\\]*(?:\\.[^"\\]*)*")\}')

_COMMENTS = re.compile(rb"(:[^\n]*\n)+")

# SGLang and Ollama write "" for null, and some clients take any string for a finish.
_EMPTY_END = re.compile(r'"(finish_reason|stop_reason)": ?""')

# What needs a look at its event, as vLLM writes it; within a JSON string the quotes would be escaped.
_MARKS = (b'"finish_reason":"', b"data: [", b'"usage"', b'"error"', b'"reasoning')
_LONG = 4096  # bytes: more than a few events, among which are marks more often than not


def plain(block: bytes, unmarked: bool = False) -> int:
    """Return how many events a block is if each is one line with one choice that goes on, which needs no look.

    `unmarked` says that none of `_MARKS` stands in it.
    """
    count, find = block.count, block.find
    lines = count(b"\n")
    events = lines // 2
    alike = (
        block.startswith(b"data: {")
        and block.endswith(b"}\n\n")
        and count(b'"finish_reason":null') == events
        and count(b'"finish_reason"') == events
        and count(b'"choices":[{') == events
        and (lines == 2 or count(b"}\n\ndata: {") * 2 == lines - 2)
        and (unmarked or (find(b'"usage"') < 0 and find(b'"error"') < 0 and find(b'"reasoning') < 0))
    )
    return events if alike else 0


def _clear(block: bytes) -> Tuple[int, int]:
    """Return how many bytes at the beginning of a block are plain events, those before any mark, and how many events.

    From the end, where the marks of a burst stand; and to find nothing takes ``rfind`` a third of the time of ``find``.
    """
    rfind = block.rfind
    end = rfind(b"\n\n") + 2
    for mark in _MARKS:
        at = rfind(mark, 0, end)
        while at >= 0:
            end = rfind(b"\n\n", 0, at) + 2
            at = rfind(mark, 0, end)
    events = plain(block[:end], True)
    return (end, events) if events else (0, 0)


class Forwarding:
    """Read a stream that is handed on: blocks go in, cut anywhere, and whole events and comments come out.

    `choices` is how many choices were asked for. Where the client did not ask for `usage`, the chunk that carries
    nothing else is kept from it: it was asked for to count tokens. The ``system_fingerprint`` in it goes where vLLM has
    it then, on the chunk that ends the choices (tests/data/vllm-0.32.0: chat_stream_count, chat_stream_usage).
    """

    _plain = staticmethod(plain)
    _clear = staticmethod(_clear)

    def __init__(self, choices: int, usage: bool, tokens: TokenUsage) -> None:
        self.finished = False  # all choices have come to their end
        self.ended = False  # [DONE] has come
        self.failure: Optional[BridgeError] = None
        self.events = 0  # how many have come
        self._ends = Ends(choices)
        self._usage = usage
        self._tokens = tokens
        self._held = bytearray()  # an event that is not whole yet
        self._last = ""  # the event that ended the choices, until the usage tells the server's fingerprint
        self._lines = LineDecoder()
        self._events = EventDecoder()
        self._decodes = False  # from the first CR on the decoders alone say where an event ends

    def feed(self, block: bytes) -> bytes:
        """Return what a block completes; an error that an event carries is put into `failure`, to be raised then."""
        if len(block) < _LONG and not self._held and not self._decodes and not self._last:
            events = self._plain(block)
            if events:
                self.events += events
                return block
        end = 0
        self._decodes = self._decodes or b"\r" in block
        if self._decodes:
            block, self._held = bytes(self._held) + block, bytearray()
        else:
            block = self._whole(block)
            end, events = self._clear(block)
            self.events += events
            if end == len(block) and not self._last:
                return block
        out: List[bytes] = [self._released(), block[:end]] if end else []
        try:
            for event in self._events.fold(self._lines.feed(block[end:]), comments=True):
                if type(event) is bytes:
                    out.append(event + b"\n\n")
                    continue
                out.append(self._handed_on(event))
                if self.ended:
                    break
                self.events += 1
        except BridgeError as error:
            out.append(self._released())
            self.failure = error
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the end mark."""
        return self._released() + DONE

    def partial(self) -> None:
        """Return nothing: what arrived has been handed on."""

    def _whole(self, block: bytes) -> bytes:
        """Return the whole events that are there now, and hold what follows them."""
        held = self._held
        if not held and block.endswith(b"\n\n"):
            return block
        start = max(0, len(held) - 1)
        held += block
        end = held.rfind(b"\n\n", start) + 2
        if end < 2 and _COMMENTS.fullmatch(held):
            end = len(held)
        elif end < 2:
            if len(held) > MAX_EVENT:
                raise ResponseDecodeError(
                    "an event of the stream is longer than %d bytes; this is no event stream of vLLM" % MAX_EVENT
                )
            return b""
        whole = bytes(held[:end])
        del held[:end]
        return whole

    def _released(self, fingerprint: Any = None) -> bytes:
        """Return the event that was kept back, if there is one."""
        last, self._last = self._last, ""
        if last and isinstance(fingerprint, str):
            last = '%s,"system_fingerprint":%s}' % (last[:-1], json.dumps(fingerprint))
        return encode(last) if last else b""

    def _handed_on(self, event: Event) -> bytes:
        """Return the bytes for an event: the server's own words where nothing has to change."""
        data = event.data
        if data.strip() == "[DONE]":
            self.ended = True
            return self._released() + DONE
        if not data:
            return b""
        if '_reason":' in data:
            event.data = data = _EMPTY_END.sub(r'"\1":null', data)
        if self._last:
            after = self._read(event)
            return self._released() + after
        if (
            data.count('"finish_reason":null') == data.count('"finish_reason"') == 1
            and '"error"' not in data
            and '"usage"' not in data
            and data[0] == "{"
            and data[-1] == "}"
        ):
            if '"reasoning' not in data:
                return encode(data)
            found = _REASONING.search(data)
            if found is not None and data.count('"reasoning') == 1:
                end = found.end(1)
                return encode('%s,"reasoning_content":%s%s' % (data[:end], found.group(1), data[end:]))
        return self._read(event)

    def _read(self, event: Event) -> bytes:
        payload = payload_of(event)
        choices = payload.get("choices") or ()
        for choice in choices:
            if type(choice) is dict and is_finish(choice.get("finish_reason")):
                if self._ends.note(choice):
                    raise aborted(choice, payload, None)
                self.finished = self._ends.all
        usage = payload.get("usage")
        if usage:
            self._tokens.take(usage)
            if not choices and not self._usage:
                return self._released(payload.get("system_fingerprint"))
        text = event.data
        if '"reasoning' in text and normalise_chunk(payload):
            text = json.dumps(payload, separators=(",", ":"))
        waits = self.finished and not self._usage and not self._last
        if waits and "system_fingerprint" not in payload and text[-1] == "}":
            self._last = text
            return b""
        return encode(text)
