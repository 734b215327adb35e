"""One request and its reply as the transport's callers see them: the call, the way to break it off, what comes back."""

import threading
import time
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Set, Tuple, TypeVar

import requests

from .adapter import Exchange
from ..errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BridgeError,
    RequestCancelledError,
    ResponseDecodeError,
    error_from_body,
)
from ..http1.header_lines import Fields
from ..http1.wait import Client
from ..config.redaction import credentials, mask, shortened
from .retry import parse_retry_after

__all__ = ["Call", "Cancellation", "MAX_BODY", "OpenReply", "Reply", "Watch", "cancelled_error", "told"]

T = TypeVar("T")

MAX_BODY = 256 * 1024 * 1024  # bytes of a reply, decompressed; 5,000 vectors of 4,096 floats are half of it
_BLOCK = 65536
_ERROR_BODY = 1024 * 1024  # bytes of an error's body that are read
_CLOSED = "the stream was closed"
_DEADLINE = "deadline"  # the reason that `Watch` gives when the total time is over


class Cancellation:
    """A handle that breaks calls off from another thread: pass it to ``with_options(cancel=...)``.

    `cancel` closes the connections of the calls under way, also while they wait for their first byte; they and all
    later calls with this handle raise `RequestCancelledError`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchanges: Set[Exchange] = set()
        self._why: Optional[str] = None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._why is not None

    @property
    def why(self) -> Optional[str]:
        """The reason given to `cancel`, or ``None``."""
        return self._why

    def cancel(self, why: str = "the call was cancelled") -> None:
        """Break off every call that uses this handle."""
        with self._lock:
            self._why = self._why or why
            for exchange in self._exchanges:
                exchange.cancel(why)

    def add(self, exchange: Exchange) -> None:
        """Cover an exchange; cancels it at once if `cancel` has been called."""
        with self._lock:
            self._exchanges.add(exchange)
            if self._why is not None:
                exchange.cancel(self._why)

    def discard(self, exchange: Exchange) -> None:
        """Stop covering an exchange."""
        with self._lock:
            self._exchanges.discard(exchange)


class Call(NamedTuple):
    """One request as the transport takes it.

    `timeout` is (connect, read) in seconds, `deadline` an instant of time.monotonic. `client` is who must still be
    there while the transport waits (see `http1.wait`), `session` a caller's own. `secrets` are what no error may show,
    beside the credentials among the headers.
    """

    method: str
    url: str
    headers: Dict[str, str]
    body: Any  # bytes, or an object with read(n) and __len__, or None
    timeout: Tuple[Optional[float], Optional[float]]
    deadline: Optional[float] = None
    cancel: Optional[Cancellation] = None
    secrets: Tuple[str, ...] = ()
    client: Client = None
    session: Optional[requests.Session] = None

    def __repr__(self) -> str:
        return "Call(%s %s)" % (self.method, self.url)  # the headers hold the key

    @property
    def request_id(self) -> Optional[str]:
        """The id under which the server logs the request."""
        return self.headers.get("X-Request-Id")


class Reply(NamedTuple):
    """A complete reply with a success status."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    request_id: Optional[str]
    call: Optional[Call] = None

    def __repr__(self) -> str:
        return "Reply(%d, %d bytes from %s)" % (self.status, len(self.body), self.url)

    @property
    def content_type(self) -> str:
        """The media type and its parameters, or ``""``."""
        return self.headers.get("Content-Type") or ""

    def read(self, convert: Callable[[], T]) -> T:
        """Return what `convert` makes of the body; its errors then tell where the body is from, and no secret."""
        try:
            return convert()
        except BridgeError as error:
            if self.call is not None:
                told(error, self.call, self.request_id)
            raise


def cancelled_error(why: str, call: Call) -> BridgeError:
    """Return the error for a call that was broken off from this side."""
    if why == _DEADLINE:
        return APITimeoutError(
            "the call was not complete within its total time; raise it with with_options(deadline=seconds)",
            code=_DEADLINE,
            request_id=call.request_id,
            url=call.url,
        )
    return RequestCancelledError(why, request_id=call.request_id, url=call.url)


def told(error: BridgeError, call: Call, request_id: Optional[str] = None) -> None:
    """Complete an error: where it is from, no secret in what it quotes, and no more of that than is to be shown."""
    if error.url is None:
        error.url = call.url
    if error.request_id is None:
        error.request_id = request_id or call.request_id
    mask(error, credentials(call.headers) + call.secrets)
    error.message = shortened(error.message, error.quoted)
    error.args = tuple(shortened(arg, error.quoted) if isinstance(arg, str) else arg for arg in error.args)


class Watch:
    """What can break an exchange off besides its own time limits: a cancellation, a deadline."""

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self._exchange = exchange
        self._cancel = call.cancel
        self._timer: Optional[threading.Timer] = None
        if call.deadline is not None:
            self._timer = threading.Timer(max(0.0, call.deadline - time.monotonic()), exchange.cancel, [_DEADLINE])
            self._timer.daemon = True
            self._timer.start()
        if call.cancel is not None:
            call.cancel.add(exchange)

    def stop(self) -> None:
        """Leave the exchange alone from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._cancel is not None:
            self._cancel.discard(self._exchange)
        self._exchange.detach()


class OpenReply:
    """A reply whose head has arrived and whose body has not. Also the `Source` of a stream."""

    def __init__(
        self,
        response: Any,
        exchange: Exchange,
        watch: Watch,
        call: Call,
        failure: Callable[[BaseException], BridgeError],
    ) -> None:
        self.status: int = response.status_code
        # The lean adapter's own view of its headers costs less than requests'.
        fields = getattr(response, "fields", None)
        self.headers: Mapping[str, str] = response.headers if fields is None else Fields(fields)
        self.url = call.url
        self.request_id = self.headers.get("x-request-id") or call.headers.get("X-Request-Id")
        self._response = response
        self._raw: Any = response.raw
        self._exchange = exchange
        self._watch = watch
        self._call = call
        self._failure_of = failure
        self._closed = False
        self._lock = threading.RLock()  # held while bytes are read: urllib3's replies are not to be closed meanwhile
        self._read1: Optional[Callable[[], bytes]] = None

    def read(self) -> bytes:
        """Return some bytes of the body as soon as there are any, ``b""`` at its end."""
        with self._lock:
            if self._closed:
                raise cancelled_error(self._exchange.cancelled or _CLOSED, self._call)
            try:
                block = (self._read1 or self._prepared_read1())()
            except Exception as error:
                raise self._failure(error) from error
        if not block and self._exchange.cancelled is not None:
            raise cancelled_error(self._exchange.cancelled, self._call)
        return block

    def fileno(self) -> int:
        """Return the number of the socket that the body comes from, -1 where `arrived` cannot be asked."""
        return self._raw.fileno() if hasattr(self._raw, "arrived") else -1

    @property
    def arrived(self) -> Callable[[], Optional[bytes]]:
        """The function that returns what is there of the body, ``b""`` if nothing is; ``None`` where `read` is due."""
        arrived: Callable[[], Optional[bytes]] = self._raw.arrived
        return arrived

    def read_all(self, enough: Optional[int] = None) -> bytes:
        """Return the rest of the body, or what there is after `enough` bytes of it; `MAX_BODY` is an error."""
        blocks: List[bytes] = []
        size = 0
        raw = self._raw
        size_read = getattr(raw, "long_block", 0)
        with self._lock:
            try:
                while enough is None or size < enough:
                    block = raw.read1(size_read) if size_read else _read_decoded(raw, _BLOCK)
                    if not block:
                        break
                    blocks.append(block)
                    size += len(block)
                    if size > MAX_BODY:
                        raise ValueError("it is longer than %d bytes" % MAX_BODY)
                    if size_read and raw.closed:
                        break
                else:
                    return b"".join(blocks)
            except Exception as error:
                raise self._failure(error) from error
            if self._exchange.cancelled is not None:
                raise cancelled_error(self._exchange.cancelled, self._call)
            self._release()
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def error(self) -> BridgeError:
        """Read the body of an error status and return the error."""
        fields: Dict[str, Any] = {"request_id": self.request_id, "url": self.url}
        if 300 <= self.status < 400:
            return APIStatusError(
                "the server redirects to %s, and redirects are not followed; set base_url to the final address"
                % (self.headers.get("location") or "nowhere"),
                status_code=self.status,
                **fields,
            )
        try:
            body = self.read_all(_ERROR_BODY)
        except (APIConnectionError, ResponseDecodeError) as broken:
            if broken.code == _DEADLINE:
                raise
            body = b""  # the status says enough
        error = error_from_body(self.status, self.headers.get("content-type") or "", body, **fields)
        error.retry_after = parse_retry_after(
            self.headers.get("retry-after"), time.time(), self.headers.get("retry-after-ms")
        )
        return error

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit how long the next reads may wait for a byte."""
        self._exchange.set_timeout(seconds)

    def finish(self) -> None:
        """Give the connection back to the pool if the end of the body is there; else close it.

        The end mark of a stream comes before the last chunk of HTTP's own framing, in the same packet or right after.
        """
        with self._lock:
            if self._closed:
                return
            if hasattr(self._raw, "long_block") and self._raw.closed and self._exchange.cancelled is None:
                self._release()
                return
            try:
                self._exchange.set_timeout(0.01)
                if not (self._read1 or self._prepared_read1())() and self._exchange.cancelled is None:
                    self._release()
            except Exception:
                pass  # not there yet: `close` drops the connection
        self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; any thread may call this."""
        if self._closed:
            return
        self._closed = True
        self._exchange.cancel(_CLOSED)  # wakes a thread that reads, so that the lock comes free
        self._watch.stop()
        with self._lock:
            self._response.close()

    def _prepared_read1(self) -> Callable[[], bytes]:
        read1 = self._read1 = _read1_of(self._response, self.headers)
        return read1

    def _release(self) -> None:
        self._closed = True
        self._watch.stop()
        self._raw.release_conn()

    def _failure(self, error: Exception) -> BridgeError:
        self._watch.stop()
        try:
            self._response.close()
        finally:
            if self._exchange.cancelled is not None:
                return cancelled_error(self._exchange.cancelled, self._call)
            self._exchange.connected = True
            return self._failure_of(error)


def _read1_of(response: Any, headers: Mapping[str, str]) -> Callable[[], bytes]:
    """Return the function that reads what is there, without waiting for a block to fill; ``b""`` at the end."""
    raw = response.raw
    if hasattr(raw, "long_block"):  # the lean adapter's
        return partial(raw.read1, _BLOCK)
    if hasattr(raw, "read1"):  # urllib3 2.2 and newer
        return partial(raw.read1, _BLOCK, decode_content=True)
    below: Any = getattr(raw, "_fp", None)
    if headers.get("content-encoding", "identity") != "identity" or not hasattr(below, "read1"):
        return partial(_read_decoded, raw, 1)
    # urllib3 1.26 waits for whole chunks; http.client under it gives what is there.
    return partial(_read_below, below)


def _read_below(below: Any) -> bytes:
    block: bytes = below.read1(_BLOCK)
    if not block:
        _check_complete(getattr(below, "length", None))
    return block


def _read_decoded(raw: Any, size: int) -> bytes:
    """Read by way of urllib3, of which 1.26 returns ``b""`` while a decoder has nothing to give yet."""
    while True:
        block: bytes = raw.read(size, decode_content=True)
        if block or raw.closed:
            break
    if not block and not hasattr(raw, "read1"):
        _check_complete(raw.length_remaining)  # urllib3 1.26 does not, unless told to when the reply was made
    return block


def _check_complete(left: Optional[int]) -> None:
    if left:
        raise ConnectionError("%d bytes are missing" % left)
