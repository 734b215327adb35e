"""One request and its reply as the transport's callers see them: the call, the way to break it off, what comes back."""

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Protocol, Tuple, TypeVar

from .cancellation import Cancellation
from .failures import cause_of
from .retry import parse_retry_after
from ..api.attributes import Came
from ..errors import (
    APIConnectionError,
    APIStatusError,
    BridgeError,
    ResponseDecodeError,
    error_from_body,
    undecodable,
)
from ..config.redaction import credentials, mask, shortened
from ..http1.coding import decoded
from ..http1.connection import BLOCK, Exchange, HungUp
from ..http1.head import ProtocolError
from ..http1.limits import TimedOut
from ..http1.wait import Client

__all__ = ["Call", "MAX_BODY", "OpenReply", "Reply", "with_origin"]

T = TypeVar("T")

MAX_BODY = 256 * 1024 * 1024  # bytes of a reply, decompressed; 5,000 vectors of 4,096 floats are half of it
_ERROR_BODY = 1024 * 1024  # bytes of an error's body that are read
_ERROR_SECONDS = 5.0  # and how long that may take
_END = 0.01  # seconds that the end of a body may come after its last event
_CLOSED = "the stream was closed"


class Call(Exchange):
    """One request as the transport takes it, to be sent once, and the exchange that it becomes.

    `body` is bytes, or an object with read(n) and __len__, or None. `timeout` is (connect, read) in seconds, `deadline`
    an instant of time.monotonic. `client` is who must still be there while the transport waits (see `http1.wait`),
    `session` a caller's own. With `direct` what needs no proxy goes past requests. `secrets` are what no error may
    show, beside the credentials among the headers. `server` is its URL as the provider knows it.
    """

    __slots__ = (
        "method", "url", "headers", "body", "timeout", "cancellation", "secrets", "session", "direct", "server",
        "request_id", "started",
    )

    def __init__(
        self,
        method: str,
        url: str,
        headers: Dict[str, str],
        body: Any,
        timeout: Tuple[Optional[float], Optional[float]],
        deadline: Optional[float] = None,
        cancellation: Optional[Cancellation] = None,
        secrets: Tuple[str, ...] = (),
        client: Client = None,
        session: Any = None,
        direct: bool = False,
        server: Optional[str] = None,
    ) -> None:
        super().__init__(timeout[0], timeout[1], deadline, client)
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.timeout = timeout
        self.cancellation = cancellation
        self.secrets = secrets
        self.session = session
        self.direct = direct
        self.server = server
        self.request_id = headers.get("X-Request-Id")  # under which the server logs the request
        self.started = time.monotonic()

    def __repr__(self) -> str:
        return "Call(%s %s)" % (self.method, self.url)  # the headers hold the key


class Reply(NamedTuple):
    """A complete reply with a success status."""

    status: int
    headers: Dict[str, str]  # by names in lower case
    body: bytes
    url: str
    request_id: Optional[str]
    call: Optional[Call] = None
    came: Came = (None, {}, None, None, None)  # for the record that is made of it

    def __repr__(self) -> str:
        return "Reply(%d, %d bytes from %s)" % (self.status, len(self.body), self.url)

    @property
    def content_type(self) -> str:
        """The media type and its parameters, or ``""``."""
        return self.headers.get("content-type") or ""

    def read(self, convert: Callable[[], T]) -> T:
        """Return what `convert` makes of the body; its errors then tell where the body is from, and no secret."""
        try:
            return convert()
        except BridgeError as error:
            self.tell(error)
            raise

    def tell(self, error: BridgeError) -> None:
        """Complete an error that came out of the body."""
        if self.call is not None:
            with_origin(error, self.call, self.request_id)


def with_origin(error: BridgeError, call: Call, request_id: Optional[str] = None) -> None:
    """Complete an error: where it is from, no secret in what it quotes, and no more of that than is to be shown."""
    if error.url is None:
        error.url = call.url
    if error.request_id is None:
        error.request_id = request_id or call.request_id
    mask(error, credentials(call.headers) + call.secrets)
    error.message = shortened(error.message, error.quoted)
    error.args = tuple(shortened(arg, error.quoted) if isinstance(arg, str) else arg for arg in error.args)


class Body(Protocol):
    """Where the body of an open reply comes from: `http1.pool.Response`, or `raw.RawBody`."""

    ended: bool

    def read1(self, size: int = BLOCK) -> bytes:
        """Return what is there of the body, waiting for it; ``b""`` at its end."""

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""


class OpenReply:
    """A reply whose head has arrived and whose body has not. Also the `Source` of a stream.

    ``headers`` are by their names in lower case. `failure` returns our error for one raised while the body is read, or
    ``None`` for what has nothing to do with it.
    """

    def __init__(
        self,
        status: int,
        headers: Dict[str, str],
        body: Body,
        call: Call,
        failure: Callable[[BaseException, Call], Optional[BaseException]],
    ) -> None:
        self.status = status
        self.headers = headers
        self.url = call.url
        self.request_id = headers.get("x-request-id") or call.request_id
        self.server = call.server
        self._call = call
        self._ended: Optional[float] = None
        self._body = body
        self._failure = failure
        self._content: Callable[[], bytes] = body.read1
        self._plain = True  # no Content-Encoding
        self.resumes = True  # a read that took too long may be tried again
        self._closed = False
        self._reading = False

    @property
    def elapsed(self) -> float:
        """The seconds from the call until now, or until the reply was closed."""
        return (time.monotonic() if self._ended is None else self._ended) - self._call.started

    def decode(self, encoding: str) -> None:
        """Read what is below a Content-Encoding; raises ProtocolError for one that is not known here."""
        try:
            self._content = decoded(self._body.read1, encoding)
        except ProtocolError:
            self._body.close()
            raise
        self._plain = False

    def listen(self, heard: Callable[[bytes], object]) -> None:
        """Let somebody see each block of the body that is read."""
        content = self._content

        def read() -> bytes:
            block = content()
            heard(block)
            return block

        self._content = read

    def read(self) -> bytes:
        """Return some bytes of the body as soon as there are any, ``b""`` at its end.

        After an `APITimeoutError` without a code it may be read on.
        """
        self._reading = True
        try:
            if self._closed:
                raise HungUp(_CLOSED)
            block = self._content()
        except BaseException as error:
            raise self._failed(error)
        finally:
            self._reading = False
            if self._closed:
                self._body.close()
        if not block and self._call.cancelled is not None:
            raise self._failed(HungUp(self._call.cancelled))
        return block

    def complete(self) -> "Reply":
        """Read the rest of the body, close, and return it all; more than `MAX_BODY` bytes are an error."""
        call, body = self._call, self._body
        blocks: List[bytes] = []
        size = 0
        try:
            while True:
                block = self._content()
                if not block:
                    if call.cancelled is not None:
                        raise HungUp(call.cancelled)
                    break
                blocks.append(block)
                size += len(block)
                if size > MAX_BODY:
                    raise ProtocolError(400, "it is longer than %d bytes" % MAX_BODY)
                if self._plain and body.ended:
                    break
        except BaseException as error:
            raise self._failed(error)
        finally:
            if not body.ended or call.cancellation is not None:
                self.close()
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        came = self.request_id, self.headers, call.server, time.monotonic() - call.started, None
        return Reply(self.status, self.headers, data, self.url, self.request_id, call, came)

    def error(self) -> BridgeError:
        """Read the body of an error status, within bounds of bytes and time, and return the error."""
        fields: Dict[str, Any] = {"request_id": self.request_id, "url": self.url}
        if 300 <= self.status < 400:
            return APIStatusError(
                "the server redirects to %s, and redirects are not followed; set base_url to the final address"
                % (self.headers.get("location") or "nowhere"),
                status_code=self.status,
                **fields,
            )
        body = self._error_body()
        if not 400 <= self.status <= 599:
            problem = "the server answered with status %d, which HTTP does not have" % self.status
            return undecodable(problem, body.decode("utf-8", "replace"), **fields)
        error = error_from_body(self.status, self.headers.get("content-type") or "", body, **fields)
        error.retry_after = parse_retry_after(
            self.headers.get("retry-after"), time.time(), self.headers.get("retry-after-ms")
        )
        return error

    def _error_body(self) -> bytes:
        limits = self._call
        deadline, end = limits.deadline, time.monotonic() + _ERROR_SECONDS
        limits.deadline = end if deadline is None else min(end, deadline)
        blocks: List[bytes] = []
        size = 0
        try:
            while size < _ERROR_BODY:
                block = self.read()
                if not block:
                    break
                blocks.append(block)
                size += len(block)
        except (APIConnectionError, ResponseDecodeError) as broken:
            if broken.code == "deadline" and deadline is not None and time.monotonic() >= deadline:
                raise
            # The status says enough, and what has come of the body.
        return b"".join(blocks)

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit how long the next reads may wait for a byte."""
        self._call.silence = seconds

    def finish(self) -> None:
        """Give the connection back to the pool if the end of the body is there; else close it.

        The end mark of a stream comes before the last chunk of HTTP's own framing, in the same packet or right after.
        """
        if not self._closed and not self._body.ended:
            self._call.silence = _END
            try:
                self.read()
            except BridgeError:
                pass  # not there yet
        self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; any thread and signal handler may call this."""
        if self._closed:
            return
        self._closed = True
        self._ended = time.monotonic()
        if not self._body.ended:
            self._call.cancel(_CLOSED)  # wakes a thread that reads, which then closes
            if not self._reading:
                self._body.close()
        if self._call.cancellation is not None:
            self._call.cancellation.discard(self._call)

    def _failed(self, error: BaseException) -> BaseException:
        """Return the error to raise; unless a silence may still end, the connection is closed."""
        if not (isinstance(error, TimedOut) and error.which == "silence"):
            self._body.close()
        failure = self._failure(error, self._call)
        if failure is None:
            return error
        failure.__cause__ = cause_of(error, self._call)
        return failure
