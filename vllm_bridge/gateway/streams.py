"""Streamed answers, and the models that a request falls back to."""

import time
from typing import Callable, Generator, Iterator, List, Optional, TypeVar

from ..errors import BridgeError, RequestCancelledError
from ..http1.wait import Client, has_left
from ..server.request import Request
from .errors import Errors
from .journal import Entry
from .operations import Asked, Opened

__all__ = ["Models", "Streamed"]

T = TypeVar("T")

LEFT = 499  # nginx's status for a client that did not wait for its answer


class Models:
    """The models of a request, tried in their order; if none of them works, the error of the first one stands."""

    def __init__(
        self, entry: Entry, asked: Asked, fallbacks: List[str], errors: Errors, client: Client = None
    ) -> None:
        self._entry = entry
        self._client = client
        self._errors = errors
        self._asked = asked
        self._left = fallbacks
        self._first_error: Optional[BridgeError] = None

    def carry_out(self, way: Callable[[Asked], T]) -> T:
        """Return what `way` makes of the first model with which it works."""
        while True:
            try:
                found = way(self._asked)
            except RequestCancelledError:
                raise
            except BridgeError as error:
                self.next(error)
            else:
                self._entry.model = self._asked.body["model"]
                return found

    def next(self, error: BridgeError) -> None:
        """Go on to the next model because of an error, or raise the first error if there is none."""
        self._errors.note(self._entry, error)
        self._first_error = self._first_error or error
        if not self._left:
            raise self._first_error
        if has_left(self._client):
            raise RequestCancelledError("the client left")
        self._asked.body["model"] = self._left.pop(0)
        self._entry.fallbacks += 1


class Streamed:
    """The blocks of a streamed answer; what goes wrong in it is an event of its API.

    Comments may come before the first event. Until that has come the request may still go elsewhere: to another
    server, which is the stream's own matter, or to another model.
    """

    def __init__(
        self, request: Request, entry: Entry, errors: Errors, models: Models, way: Callable[[Asked], Opened]
    ) -> None:
        self._request = request
        self._entry = entry
        self._errors = errors
        self._models = models
        self._way = way
        self._opened = models.carry_out(way)
        entry.status = LEFT  # unless it comes to an end
        self._blocks = self._all()

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        """End the generation if it has not ended."""
        self._blocks.close()
        self._opened.stream.close()  # a generator that was not begun does nothing when it is closed
        entry = self._entry
        trace = entry.trace
        if entry.status != 200 and not trace.completion_tokens:  # the server had no time to count them
            deltas = self._opened.deltas
            trace.completion_tokens = trace.events if deltas is None else deltas

    def _all(self) -> Generator[bytes, None, None]:
        while True:
            opened = self._opened
            try:
                for block in opened.blocks:
                    if opened.stream.begun:
                        self._entry.first = time.monotonic() - self._entry.started
                        yield block
                        break
                    yield block
                yield from opened.blocks
            except Exception as error:
                opened.stream.close()
                event = self._after(opened, error)
                if event is None:
                    continue
                if event:
                    yield event
            else:
                self._entry.status = self._failed() if opened.failed else 200
            return

    def _failed(self) -> int:
        """Return the status for a stream that has told of a failure itself."""
        status = self._entry.trace.status
        return status if status is not None and status >= 400 else 502

    def _after(self, opened: Opened, error: Exception) -> Optional[bytes]:
        """Return the last event of a stream that an error has ended, ``None`` if it goes on with another model."""
        try:
            if opened.stream.begun or not isinstance(error, BridgeError) or isinstance(error, RequestCancelledError):
                raise error
            self._models.next(error)
            self._opened = self._models.carry_out(self._way)
            return None
        except Exception as final:
            told = self._errors.ours(self._entry, final, self._request.stopping())
            if isinstance(told, RequestCancelledError):
                return b""
            self._entry.status, payload = self._errors.payload(self._entry, told)
            return self._opened.failure(payload["error"])
