"""A streamed reply as an iterator that can be closed; closing it closes the socket, so vLLM stops generating."""

import time
from itertools import chain
from typing import (
    Any,
    Callable,
    Dict,
    Generator,
    Generic,
    Iterator,
    NoReturn,
    Optional,
    Protocol,
    Sequence,
    TypeVar,
    Union,
)

from ..api.body import decode
from ..api.forwarding import Forwarding
from ..errors import (
    APIConnectionError,
    APITimeoutError,
    BridgeError,
    IncompleteStreamError,
    ResponseDecodeError,
    payload_error,
)
from ..sse import Event, EventDecoder, iter_lines

__all__ = ["GRACE", "KEEP_ALIVE", "Limits", "Progress", "Reader", "Source", "Stream", "items_of"]

Item = TypeVar("Item")
Other = TypeVar("Other")
Item_co = TypeVar("Item_co", covariant=True)

# Seconds that a stream may stay without an event after its finish reason before it counts as ended: the usage and the
# end mark follow at once, where there are any.
GRACE = 2.0
KEEP_ALIVE = b": keep-alive\n\n"  # as vLLM writes it with --sse-keep-alive-interval
_BLANK = (b"\n\n", b"\r\n\r\n", b"\r\r")
_NO_STREAM = 1024 * 1024, 5.0  # bytes and seconds that are read of a JSON body where a stream should be
_QUOTED = 65536, 0.2  # and of anything else


class Source(Protocol):
    """Where a stream's bytes come from: an open reply of the transport."""

    url: str
    request_id: Optional[str]
    headers: Any
    resumes: bool  # a read that took too long may be tried again

    def read(self) -> bytes:
        """Return the bytes that are there, ``b""`` at the end of the body."""

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit the wait of the next reads."""

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the body is still to come."""

    def close(self) -> None:
        """Close the connection, from any thread; does nothing after `finish`."""


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

    `first` counts until the first event, or until a comment before it; `idle` between two events, whatever comments
    come meanwhile; `grace` after the finish reason. With `keep_alive` comments are items: the server's if it is 0, else
    after so many seconds of silence between two events our own as well.
    """

    def __init__(
        self, first: Optional[float], idle: Optional[float], keep_alive: Optional[float] = None, grace: float = GRACE
    ) -> None:
        self.first = first
        self.idle = idle if first is None else first if idle is None else min(first, idle)
        self.grace = grace if self.idle is None else min(grace, self.idle)
        self.keep_alive = keep_alive


class Progress:
    """How far a stream has come: the reply that is read now, whether an event has been an item, and how many have."""

    def __init__(self, source: Optional[Source] = None) -> None:
        self.source = source
        self.begun = False
        self.events = 0  # where they are handed on as bytes


class Stream(Generic[Item]):
    """Iterate over a streamed reply; leaving a ``with`` block, or `close`, ends the generation early.

    The first item has been read and checked when a stream is handed out, so an error that the server reports at once
    is raised by the call, with its status. While iterating: `IncompleteStreamError` when the reply stops without an
    end, `APITimeoutError` when it falls silent, `APIStatusError` when the server reports an error.
    """

    def __init__(self, progress: Progress, items: Generator[Item, None, None]) -> None:
        self._progress = progress
        self._rest = items
        # Reading the first item starts the generator, so that its `finally` runs even if nobody iterates.
        self._items: Iterator[Item] = chain(list(_first(items)), items)

    @property
    def request_id(self) -> Optional[str]:
        """The id under which the server logs the request."""
        source = self._progress.source
        return None if source is None else source.request_id

    @property
    def begun(self) -> bool:
        """Whether an event has come; before that, a gateway's stream may give comments, as bytes."""
        return self._progress.begun

    def converted(self, convert: Callable[[Iterator[Item]], Iterator[Other]]) -> "Stream[Other]":
        """Return a stream of what `convert` makes of this one's items; closing it closes this one."""
        return Stream(self._progress, _converted(self, convert))

    def __iter__(self) -> Iterator[Item]:
        return self._items

    def __next__(self) -> Item:
        return next(self._items)

    def __enter__(self) -> "Stream[Item]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled or copied: it reads from an open connection")

    def close(self) -> None:
        """Close the connection, so that the server stops generating; a closed stream has no more items.

        Another thread may close a stream; the one that waits for its next item gets `RequestCancelledError`.
        """
        self._items = iter(())
        if self._progress.source is not None:
            self._progress.source.close()
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


def items_of(
    source: Source,
    reader: Union[Reader[Any], Forwarding],
    limits: Limits,
    progress: Progress,
    complete: Callable[[BridgeError], object],
) -> Generator[Any, None, None]:
    """Yield the items of an open reply, and as `bytes` the comments between them where `limits` ask for them.

    Raises the error that the body tells of at once if it is no event stream. `complete` says where an error is from.
    """
    progress.source = source
    try:
        blocks = _Blocks(source, reader, limits, _first_block(source))
        if isinstance(reader, Forwarding):
            ended = yield from _handed_on(source, reader, blocks, progress)
        else:
            ended = yield from _parsed(source, reader, blocks, progress)
        if not ended:
            raise _incomplete("the stream ended without a finish reason or [DONE]", reader, source)
    except APIConnectionError as error:
        complete(error)
        if isinstance(error, APITimeoutError):
            raise
        raise _incomplete("the stream broke off: %s" % error.message, reader, source) from error
    except BridgeError as error:
        complete(error)
        raise
    finally:
        source.close()


def _parsed(
    source: Source, reader: Reader[Item], blocks: "_Blocks", progress: Progress
) -> Generator[Union[Item, bytes], None, bool]:
    """Yield what the events mean; return whether the stream came to an end of its own."""
    for event in EventDecoder().fold(iter_lines(blocks.read()), comments=True):
        if isinstance(event, bytes):
            if blocks.comment():
                yield event + b"\n\n"
            continue
        blocks.event()
        if event.data.strip() == "[DONE]":
            break
        for item in reader.feed(event):
            progress.begun = True
            yield item
    else:
        if not reader.finished:
            return False
    source.finish()
    progress.begun = True
    yield from reader.finish()
    return True


def _handed_on(
    source: Source, reader: Forwarding, blocks: "_Blocks", progress: Progress
) -> Generator[bytes, None, bool]:
    """The same for events that are handed on as bytes: what one block completes is one item."""
    events = 0
    for block in blocks.read():
        out = reader.feed(block)
        if reader.events > events or reader.ended:
            progress.events = events = reader.events
            progress.begun = blocks.seen = True
            blocks.since = None
        elif out and not blocks.comment():
            continue
        if reader.ended:
            source.finish()
        if out:
            yield out
        if reader.failure is not None:
            raise reader.failure
        if reader.ended:
            return True
    if not reader.finished:
        return False
    source.finish()
    yield reader.finish()
    return True


def _incomplete(message: str, reader: Any, source: Source) -> IncompleteStreamError:
    return IncompleteStreamError(message, partial=reader.partial(), request_id=source.request_id, url=source.url)


class _Blocks:
    """The blocks of a stream as they come, within the time limits."""

    def __init__(self, source: Source, reader: Any, limits: Limits, first: bytes = b"") -> None:
        self.since: Optional[float] = None  # when the wait for an event began; set to None with each that came
        self.seen = False  # an event has come
        self._source = source
        self._reader = reader
        self._limits = limits
        self._first = first
        self._on_socket: Any = self

    def event(self) -> None:
        """Note that an event has come."""
        self.since = None
        self.seen = True

    def comment(self) -> bool:
        """Note that a comment has come; tell whether it is to be an item."""
        if not self.seen:
            self.since = None
        return self._limits.keep_alive is not None

    def read(self) -> Iterator[bytes]:
        """Yield the blocks, and between two events, after a silence, comments of our own."""
        source, reader, limits = self._source, self._reader, self._limits
        between = True
        if self._first:
            yield self._first
        while True:
            limit = limits.grace if reader.finished else limits.idle if self.seen else limits.first
            now = time.monotonic()
            if self.since is None:
                self.since = now  # what the caller does between two items is no silence of the server
            elif limit is not None:
                limit = self.since + limit - now
            ours = limits.keep_alive if between and source.resumes and not reader.finished else None
            commented = ours is not None and 0 < ours < (ours + 1 if limit is None else limit)
            try:
                if limit is not None and limit <= 0:
                    raise self._silent()
                self._set_timeout(ours if commented else limit)
                block = source.read()
            except APIConnectionError as error:
                if reader.finished:
                    return
                if not isinstance(error, APITimeoutError) or error.code is not None:
                    raise
                if not commented:
                    raise self._silent() from None
                since = self.since
                yield KEEP_ALIVE
                self.since = since  # it is no sign of life of the server
                continue
            if not block:
                return
            between = block.endswith(_BLANK)
            yield block

    def _set_timeout(self, seconds: Optional[float]) -> None:
        if seconds != self._on_socket:
            self._on_socket = seconds
            self._source.set_timeout(seconds)

    def _silent(self) -> APITimeoutError:
        limits = self._limits
        if self.seen:
            which = "no event came for %g s (stream_idle_timeout_in_seconds or the read timeout, whichever is shorter)"
            raised = "raise them with NetworkConfig(stream_idle_timeout_in_seconds=...) and timeout=(connect, read)"
        else:
            which = "no first event came for %g s (read timeout)"
            raised = "raise it with timeout=(connect, read)"
        seconds = limits.idle if self.seen else limits.first
        return APITimeoutError(
            (which + "; " + raised) % (seconds or 0), request_id=self._source.request_id, url=self._source.url
        )


# ---------------------------------------------------------------- what is no event stream


def _first_block(source: Source) -> bytes:
    """Return what had to be read to know that a body without a type is an event stream, as a rule nothing.

    Raises the error that a body of another type tells of, without waiting for a generation to end.
    """
    content_type = source.headers.get("content-type") or ""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return b""
    body = b"" if kind else source.read()
    if body.lstrip()[:1] not in (b"", b"{", b"[", b"<"):
        return body
    body += _beginning(source, *(_NO_STREAM if kind.endswith(("/json", "+json")) else _QUOTED))
    source.finish()
    fields: Dict[str, Any] = {"request_id": source.request_id, "url": source.url}
    try:
        error: Optional[BridgeError] = payload_error(decode(body), **fields)
    except ResponseDecodeError:
        error = None
    text = body.decode("utf-8", "replace")
    raise error or ResponseDecodeError(
        "the server answered a streaming request with %s instead of text/event-stream: %s"
        % (content_type or "no content type", text),
        payload=text,
        **fields,
    )


def _beginning(source: Source, size: int, seconds: float) -> bytes:
    """Return what comes of a body within so many bytes and seconds."""
    blocks = []
    end = time.monotonic() + seconds
    while size > 0 and time.monotonic() < end:
        source.set_timeout(max(0.001, end - time.monotonic()))
        try:
            block = source.read()
        except (APIConnectionError, ResponseDecodeError) as error:
            if error.code == "deadline":
                raise
            break
        if not block:
            break
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)
