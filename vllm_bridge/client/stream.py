"""A streamed reply as an iterator that can be closed; closing it closes the socket, so vLLM stops generating."""

import time
from itertools import chain
from typing import Any, Callable, Generator, Generic, Iterator, List, Optional, Protocol, Sequence, TypeVar, Union

from ..errors import APIConnectionError, APITimeoutError, BridgeError, IncompleteStreamError
from ..sse import Event, EventDecoder

__all__ = ["GRACE", "Limits", "Reader", "Source", "Stream"]

Item = TypeVar("Item")
Other = TypeVar("Other")
Item_co = TypeVar("Item_co", covariant=True)

# Seconds that a stream may stay without an event after its finish reason before it counts as ended (SPEC §4.3).
GRACE = 2.0
_MOMENT = 0.01  # seconds in which what has come already is read


class Source(Protocol):
    """Where a stream's bytes come from: an open reply of the transport."""

    url: str
    request_id: Optional[str]

    def read(self) -> bytes:
        """Return the bytes that are there, ``b""`` at the end of the body."""

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit the wait of the next reads."""

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the body is still to come."""

    def close(self) -> None:
        """Close the connection, from any thread; does nothing after `finish`."""

    def tell(self, error: BridgeError) -> None:
        """Complete an error that came out of the bytes: where they are from, and no secret in what they quote."""


class Reader(Protocol[Item_co]):
    """What a stream's events mean: the pure half of a stream, one class for each kind of reply."""

    finished: bool  # the reply is complete; only usage and the end mark may still come

    def feed(self, event: Event) -> Sequence[Item_co]:
        """Return the items that an event completes; raise the error that it carries."""

    def finish(self) -> Sequence[Item_co]:
        """Return the items held back until the end."""

    def partial(self) -> Any:
        """Return what has arrived so far, in the shape of the complete reply."""


class Limits:
    """How long a stream may keep its reader waiting, in seconds; ``None`` is for ever.

    `first` counts until the first event, `idle` between two events; comments are no events. `grace` counts after the
    finish reason.
    """

    def __init__(self, first: Optional[float], idle: Optional[float], grace: float = GRACE) -> None:
        self.first = first
        self.idle = idle if first is None else first if idle is None else min(first, idle)
        self.grace = grace if self.idle is None else min(grace, self.idle)


class Stream(Generic[Item]):
    """Iterate over a streamed reply; leaving a ``with`` block, or `close`, ends the generation early.

    The first item has been read and checked when a stream is handed out, so an error that the server reports at once
    is raised by the call, with its status. While iterating: `IncompleteStreamError` when the reply stops without an
    end, `APITimeoutError` when it falls silent, `APIStatusError` when the server reports an error.
    """

    def __init__(
        self, source: Source, items: Generator[Item, None, None], batches: Optional["_Batches"] = None
    ) -> None:
        self.request_id = source.request_id
        self._source = source
        self.passing = batches  # what can be asked, between two items, for bytes to hand on
        self._rest = items
        # Reading the first item starts the generator, so that its `finally` runs even if nobody iterates.
        self._items: Iterator[Item] = chain(list(_first(items)), items)

    @classmethod
    def over(cls, source: Source, reader: Reader[Item], limits: Limits) -> "Stream[Item]":
        """Return the stream of an open reply."""
        batches = _Batches(source, limits, getattr(reader, "passes", None))
        return cls(source, _items(source, reader, batches), batches)

    def converted(self, convert: Callable[[Iterator[Item]], Iterator[Other]]) -> "Stream[Other]":
        """Return a stream of what `convert` makes of this one's items; closing it closes this one."""
        return Stream(self._source, _converted(self, convert))

    def __iter__(self) -> Iterator[Item]:
        return self._items

    def __next__(self) -> Item:
        return next(self._items)

    def __enter__(self) -> "Stream[Item]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, so that the server stops generating; a closed stream has no more items.

        Another thread may close a stream; the one that waits for its next item gets `RequestCancelledError`.
        """
        self._items = iter(())
        self._source.close()
        try:
            self._rest.close()
        except ValueError:
            pass  # another thread is waiting in it, and has just been woken up


def _first(items: Iterator[Item]) -> Iterator[Item]:
    for item in items:
        yield item
        return


def _converted(
    stream: Stream[Item], convert: Callable[[Iterator[Item]], Iterator[Other]]
) -> Generator[Other, None, None]:
    with stream:
        yield from convert(iter(stream))


def _items(source: Source, reader: Reader[Item], batches: "_Batches") -> Generator[Item, None, None]:
    try:
        if not hasattr(reader, "passes"):
            ended = yield from _each(source, reader, batches)
        else:
            ended = yield from _joined(source, reader, batches)  # type: ignore[arg-type, misc]
        if not ended:
            raise _incomplete("the stream ended without a finish reason or [DONE]", reader, source)
    except APITimeoutError:
        raise
    except APIConnectionError as error:
        raise _incomplete("the stream broke off: %s" % error.message, reader, source) from error
    except BridgeError as error:
        source.tell(error)
        raise
    finally:
        source.close()


def _each(source: Source, reader: Reader[Item], batches: "_Batches") -> Generator[Item, None, bool]:
    """Yield item by item; return whether the stream came to an end of its own."""
    events = batches.next(False)
    while events is not None:
        for event in events:
            if event.data == "[DONE]":
                source.finish()
                yield from reader.finish()
                return True
            yield from reader.feed(event)
        events = batches.next(reader.finished)
    if not reader.finished:
        return False
    source.finish()
    yield from reader.finish()
    return True


def _joined(source: Source, reader: Reader[bytes], batches: "_Batches") -> Generator[bytes, None, bool]:
    """The same, but all that one read completes is one item, so that it leaves in one write."""
    events = batches.next(False)
    while events is not None:
        if type(events) is bytes:
            yield events
            events = batches.next(reader.finished)
            continue
        out: List[bytes] = []
        try:
            for event in events:
                if type(event) is bytes:
                    out.append(event)
                elif event.data == "[DONE]":
                    source.finish()
                    out.extend(reader.finish())
                    yield b"".join(out)
                    return True
                else:
                    out.extend(reader.feed(event))
        except BridgeError:
            if out:
                yield b"".join(out)
            raise
        if out:
            yield b"".join(out)
        events = batches.next(reader.finished)
    if not reader.finished:
        return False
    source.finish()
    yield from reader.finish()
    return True


def _incomplete(message: str, reader: Reader[Any], source: Source) -> IncompleteStreamError:
    return IncompleteStreamError(message, partial=reader.partial(), request_id=source.request_id, url=source.url)


class _Batches:
    """The events of a source, as many at a time as one read completes, within the time limits."""

    def __init__(self, source: Source, limits: Limits, passes: Optional[Callable[[bytes], int]] = None) -> None:
        self._source = source
        self._limits = limits
        self._passes = passes  # how much of a block that begins with an event may go on as it is
        self._decoder = EventDecoder()
        self._clear = False  # the decoder is between two events, and stays so while all blocks pass it by
        self._limit: Optional[float] = None
        self._on_socket: Optional[float] = None
        self._seen = False
        self._since = 0.0
        self._arrived: Optional[Callable[[], Optional[bytes]]] = None  # of the source
        self._held = b""  # has arrived and needs a look
        self._last = 0.0  # when `arrived` was told of an event last

    def fileno(self) -> int:
        """Return the number of the socket that the events come from, -1 where `arrived` cannot be asked."""
        ask = getattr(self._source, "fileno", None)
        number: int = -1 if ask is None or self._passes is None else ask()
        if number >= 0:
            self._arrived = self._source.arrived  # type: ignore[attr-defined]
        return number

    def arrived(self) -> Optional[bytes]:
        """Return events that are there and pass; ``b""`` if there are none, ``None`` where `next` has to look.

        For a stream of bytes to hand on, between two of its items, by a caller that has asked for `fileno`.
        """
        if not self._clear or self._held or self._passes is None or self._arrived is None:
            return None
        block = self._arrived()
        if not block:
            return block
        if b"\r" in block or self._passes(block) != len(block):
            self._held = block
            return None
        self._last = time.monotonic()
        return block

    def next(self, finished: bool) -> Any:
        """Return the next events, and before them what passes unread, as bytes; bytes alone if all of it passes.

        ``None`` is the end of the body, or of the patience after the finish.
        """
        limits = self._limits
        self._limit = limits.grace if finished else limits.idle if self._seen else limits.first
        self._since = time.monotonic()  # what the caller does between two items is no silence of the server
        self._set_timeout(self._limit)
        if self._last:  # but what it has waited for in vain is
            self._since, self._last = self._last, 0.0
            if self._limit is not None:  # a moment at least: the caller may have been busy while something came
                self._set_timeout(max(_MOMENT, self._since + self._limit - time.monotonic()))
        try:
            while True:
                chunk = self._held or self._source.read()
                self._held = b""
                if not chunk:
                    return None
                events = self._events(chunk)
                if events:
                    self._seen = True
                    return events
                self._still_waiting()
        except APITimeoutError as error:
            if finished:
                return None
            if error.code == "deadline":
                raise
            raise self._silent() from None
        except APIConnectionError:
            if finished:
                return None
            raise

    def _events(self, chunk: bytes) -> Union[List[Any], bytes]:
        decoder = self._decoder
        passes = self._passes
        if passes is not None and ((self._clear and b"\r" not in chunk) or decoder.stands_aside(chunk)):
            end = passes(chunk)
            if end == len(chunk):
                self._clear = True
                return chunk
            if end:
                self._clear = False
                return [chunk[:end], *decoder.feed(chunk[end:])]
        self._clear = False
        return decoder.feed(chunk)

    def _set_timeout(self, seconds: Optional[float]) -> None:
        if seconds != self._on_socket:
            self._on_socket = seconds
            self._source.set_timeout(seconds)

    def _still_waiting(self) -> None:
        """Count the time of comments and of unfinished events: only an event is a sign of life."""
        if self._limit is not None:
            left = self._since + self._limit - time.monotonic()
            if left <= 0:
                raise self._silent()
            self._set_timeout(left)

    def _silent(self) -> APITimeoutError:
        if self._seen:
            which = "no event came for %g s (stream_idle_timeout_in_seconds or the read timeout, whichever is shorter)"
            raised = "raise them with NetworkConfig(stream_idle_timeout_in_seconds=...) and timeout=(connect, read)"
        else:
            which = "no first event came for %g s (read timeout)"
            raised = "raise it with timeout=(connect, read)"
        return APITimeoutError(
            (which + "; " + raised) % (self._limit or 0), request_id=self._source.request_id, url=self._source.url
        )
