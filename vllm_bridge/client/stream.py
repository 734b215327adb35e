"""A streamed reply as an iterator that can be closed; closing it closes the socket, so vLLM stops generating."""

import time
from itertools import chain
from typing import (
    TYPE_CHECKING,
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
    overload,
)

from ..api.attributes import Whole
from ..api.decoding import AnyEvents
from ..api.forwarding import Forwarding
from ..errors import (
    APIConnectionError,
    APITimeoutError,
    BridgeError,
    IncompleteStreamError,
)
from ..sse import Event, EventDecoder, iter_lines
from .source import Source as Source, first_block

if TYPE_CHECKING:
    from ..api.records import ChatCompletion, ChatCompletionChunk, Completion, Response, ResponseEvent, Transcription
    from ..api.records import TranscriptionEvent
    from ..api.replies import Message, MessageEvent

__all__ = ["GRACE", "KEEP_ALIVE", "Limits", "Progress", "Reader", "Source", "Stream", "items_of"]

Item = TypeVar("Item")
Other = TypeVar("Other")
Item_co = TypeVar("Item_co", covariant=True)

# Seconds that a stream may stay without an event after its finish reason before it counts as ended: the usage and the
# end mark follow at once, where there are any.
GRACE = 2.0
KEEP_ALIVE = b": keep-alive\n\n"  # as vLLM writes it with --sse-keep-alive-interval
_BLANK = (b"\n\n", b"\r\n\r\n", b"\r\r")


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
        self.reader: Any = None  # of that reply
        self.begun = False
        self.events = 0  # where they are handed on as bytes

    def whole(self) -> Any:
        """Return what has arrived so far, in the shape of the complete reply."""
        return None if self.reader is None else self.reader.partial()


class Stream(Generic[Item]):
    """Iterate over a streamed reply; leaving a ``with`` block, or `close`, ends the generation early.

    The first item has been read and checked when a stream is handed out, so an error that the server reports at once
    is raised by the call, with its status. While iterating: `IncompleteStreamError` when the reply stops without an
    end, `APITimeoutError` when it falls silent, `APIStatusError` when the server reports an error.
    """

    def __init__(
        self, progress: Progress, items: Generator[Item, None, None], whole: Optional[Callable[[], Any]] = None
    ) -> None:
        self._progress = progress
        self._rest = items
        self._whole = whole or progress.whole
        self.wanted: Any = None  # what the whole is to be read as: see `api.structured`
        # Reading the first item starts the generator, so that its `finally` runs even if nobody iterates.
        self._items: Iterator[Item] = chain(list(_first(items)), items)

    @property
    def request_id(self) -> Optional[str]:
        """The id under which the server logs the request."""
        source = self._progress.source
        return None if source is None else source.request_id

    @property
    def headers(self) -> Dict[str, str]:
        """The headers of the reply, by their names in lower case."""
        return {} if self._progress.source is None else dict(self._progress.source.headers)

    @property
    def server(self) -> Optional[str]:
        """The URL of the server that answers."""
        return None if self._progress.source is None else self._progress.source.server

    def partial(self) -> Any:
        """Return what has arrived so far, in the shape of the complete reply."""
        return self._progress.whole()

    @property
    def text(self) -> str:
        """The text that has arrived so far, of the first choice; after the last item all of it."""
        partial = self.partial()
        return getattr(partial, "output_text", None) or getattr(partial, "text", None) or ""

    if TYPE_CHECKING:
        @overload
        def completion(self: "Stream[ChatCompletionChunk]") -> ChatCompletion: ...
        @overload
        def completion(self: "Stream[Completion]") -> Completion: ...
        @overload
        def completion(self: "Stream[ResponseEvent]") -> Response: ...
        @overload
        def completion(self: "Stream[MessageEvent]") -> Message: ...
        @overload
        def completion(self: "Stream[TranscriptionEvent]") -> Transcription: ...

    def completion(self) -> Any:
        """Read what is left, and return the reply that the same request gives without streaming.

        Of a stream that was closed it is what had arrived. Raises what iterating raises.
        """
        for _ in self:
            pass
        whole = self._whole()
        source = self._progress.source
        if isinstance(whole, Whole) and source is not None:
            whole.came((source.request_id, self.headers, source.server, source.elapsed, self.wanted))
        return whole

    @property
    def begun(self) -> bool:
        """Whether an event has come; before that, a gateway's stream may give comments, as bytes."""
        return self._progress.begun

    def converted(
        self, convert: Callable[[Iterator[Item]], Iterator[Other]], whole: Optional[Callable[[], Any]] = None
    ) -> "Stream[Other]":
        """Return a stream of what `convert` makes of this one's items; closing it closes this one.

        `whole` returns what its items come to.
        """
        return Stream(self._progress, _converted(self, convert), whole)

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
    progress.source, progress.reader = source, reader
    try:
        blocks = _Blocks(source, reader, limits, first_block(source))
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
        if not reader.finished and not isinstance(reader, AnyEvents):
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
