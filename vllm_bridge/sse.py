"""Server-sent events, both ways: bytes → lines → events, and events → bytes.

The rules are the WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html §9.2.5 and §9.2.6).
Nothing here reads a socket: what comes in is any iterable of ``bytes``, cut anywhere, and every line and
event goes out with the bytes that completed it.
"""

from typing import Any, Iterable, Iterator, List, Optional

from .errors import ResponseDecodeError

__all__ = ["Event", "EventDecoder", "LineDecoder", "MAX_EVENT", "MAX_LINE", "encode", "iter_events", "iter_lines"]

MAX_LINE = 10 * 1024 * 1024  # bytes
MAX_EVENT = 4 * MAX_LINE  # bytes of all data lines of one event

_BOM = b"\xef\xbb\xbf"


class Event:
    """One event: its type, its data lines joined by ``\\n``, the last id seen, its reconnection time in ms."""

    __slots__ = ("event", "data", "id", "retry")

    def __init__(
        self, event: str = "message", data: str = "", id: str = "", retry: Optional[int] = None
    ) -> None:
        self.event = event
        self.data = data
        self.id = id
        self.retry = retry

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Event(event=%r, data=%r, id=%r, retry=%r)" % (self.event, self.data, self.id, self.retry)


class LineDecoder:
    """Cut a byte stream into lines at CR, LF and CRLF, and drop a byte order mark at its start.

    The decoder works on bytes, so U+0085, U+2028 and U+2029 are ordinary characters to it.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._pending = bytearray()  # the unfinished line: grows in place, however finely it is cut
        self._after_cr = False
        self._start: Optional[bytes] = b""  # the first bytes, until they are known (not) to be the BOM

    def feed(self, chunk: bytes) -> List[bytes]:
        """Return the lines that `chunk` completes, without their ends.

        A line that ends in CR is returned at once; should the next chunk begin with LF, that LF belongs to it.
        Raises `ResponseDecodeError` when a line outgrows the limit.
        """
        if self._start is not None:
            chunk = self._without_bom(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if not chunk:
            return []
        lines = chunk.splitlines()
        last = chunk[-1]
        self._after_cr = last == 13
        unfinished = b"" if last == 10 or last == 13 else lines.pop()
        if lines and self._pending:
            self._pending += lines[0]
            lines[0] = bytes(self._pending)
            self._pending = bytearray()
        if unfinished:
            self._pending += unfinished
        longest = len(self._pending)
        if lines:  # a line within one chunk is no longer than the chunk; only the first may be older
            longest = max(longest, len(lines[0]))
            if len(chunk) > self._max_line:
                longest = max(longest, max(map(len, lines)))
        if longest > self._max_line:
            self._pending = bytearray()
            raise ResponseDecodeError(
                "a line of the event stream is longer than %d bytes; this is no event stream of vLLM"
                % self._max_line
            )
        return lines

    def rest(self) -> Optional[bytes]:
        """Return the unfinished last line, or ``None``."""
        if self._start:
            return self._start
        return bytes(self._pending) if self._pending else None

    def _without_bom(self, chunk: bytes) -> bytes:
        start = (self._start or b"") + chunk
        if len(start) < 3 and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start[3:] if start.startswith(_BOM) else start


class EventDecoder:
    """Fold lines into events."""

    def __init__(self, max_line: int = MAX_LINE, max_event: int = MAX_EVENT) -> None:
        self._lines = LineDecoder(max_line)
        self._max_event = max_event
        self._data: Optional[bytes] = None  # the data of the event so far
        self._more = bytearray()  # the same from its second line on: grows in place
        self._event = ""
        self._id = ""
        self._retry: Optional[int] = None

    def feed(self, chunk: bytes) -> List[Event]:
        """Return the events that `chunk` completes; bytes that are no UTF-8 become U+FFFD."""
        return list(self.fold(self._lines.feed(chunk)))

    def fold(self, lines: Iterable[bytes], comments: bool = False) -> Iterator[Any]:
        """Yield the events that `lines` complete, with `comments` their comment lines too, as `bytes`."""
        for line in lines:
            if line.startswith(b"data: ") and self._data is None:
                self._data = line[6:]
            elif line:
                if comments and line.startswith(b":"):
                    yield line
                else:
                    self._field(line)
            else:
                data = self._data
                if data is not None:
                    event = Event(
                        self._event or "message", (self._more or data).decode("utf-8", "replace"), self._id, self._retry
                    )
                    self._forget()
                    yield event
                self._event = ""
                self._retry = None

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry":
            if value.isdigit() and len(value) < 19:
                self._retry = int(value)

    def _add(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
            return
        more = self._more
        if not more:
            more += self._data
        more += b"\n"
        more += value
        if len(more) > self._max_event:
            self._forget()
            raise ResponseDecodeError(
                "an event of the stream is longer than %d bytes; this is no event stream of vLLM" % self._max_event
            )

    def _forget(self) -> None:
        self._data = None
        if self._more:
            self._more = bytearray()


def iter_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a byte stream as `bytes` without their ends, the unfinished last one included."""
    decoder = LineDecoder()
    for block in blocks:
        while len(block) > MAX_LINE:  # what precedes a line that is too long goes out however the bytes come
            yield from decoder.feed(block[:MAX_LINE])
            block = block[MAX_LINE:]
        yield from decoder.feed(block)
    rest = decoder.rest()
    if rest is not None:
        yield rest


def iter_events(blocks: Iterable[bytes]) -> Iterator[Event]:
    """Yield the events of a byte stream; an unfinished last event is none.

    Raises `ResponseDecodeError` when a line is longer than `MAX_LINE` or an event than `MAX_EVENT`.
    """
    return EventDecoder().fold(iter_lines(blocks))


def encode(data: str, event: Optional[str] = None) -> bytes:
    """Return the bytes of one event, ended by its blank line; a line end in `event` becomes a space."""
    text = "" if event is None else "event: %s\n" % event.replace("\r", " ").replace("\n", " ")
    if "\n" in data or "\r" in data:
        for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            text += "data: %s\n" % line
    else:
        text += "data: %s\n" % data
    return (text + "\n").encode("utf-8", "replace")
