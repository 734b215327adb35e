"""A stream on its way to the client."""

import logging
from typing import Any, Callable, Dict, Iterator, Tuple

from ..errors import BridgeError, InternalServerError, RequestCancelledError
from .operations import Opened
from .request import Request

__all__ = ["Relay", "internal_error"]

logger = logging.getLogger("vllm_bridge.gateway")

_LEFT = 499  # what the log says of a client that did not wait for the end


class Relay:
    """The frames of a stream, as WSGI wants them: the server closes it, also when the client is gone.

    `told` makes status and payload of an error; `ended` is called with the status at the end. ``passing`` is what
    the own server may ask for events to pass on itself, between two frames (see pump.py).
    """

    def __init__(
        self,
        request: Request,
        opened: Opened,
        told: Callable[[Request, BridgeError], Tuple[int, Dict[str, Any]]],
        ended: Callable[[Request, int], None],
    ) -> None:
        self._request = request
        self._opened = opened
        self._told = told
        self._ended = ended
        self.passing = None
        self._status = _LEFT

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._opened.frames
        except RequestCancelledError:  # the client has left
            pass
        except Exception as error:
            yield self._broken(error)
        else:
            self._status = 200

    def _broken(self, error: Exception) -> bytes:
        """Return the last event: what went wrong, in the form of this API."""
        if not isinstance(error, BridgeError):
            logger.error("the stream of request %s failed", self._request.id, exc_info=True)
            error = internal_error()
        self._status, payload = self._told(self._request, error)
        return self._opened.failure(payload["error"])

    def close(self) -> None:
        """End the generation if it has not ended, and the request's account."""
        self._opened.stream.close()
        self._ended(self._request, self._status)


def internal_error() -> BridgeError:
    """Return what a client is told of a failure of ours."""
    return InternalServerError(
        "the gateway failed on this request; its log says more", type="server_error", code="internal_error"
    )
