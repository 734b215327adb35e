"""What is known of a request at its end: counted, and written to the access log."""

import logging
import time
from typing import Any, Dict, Tuple

from ..provider import BaseOpenAIProvider
from . import access_log
from .disconnect import Watcher
from .metrics import Metrics
from .operations import OPERATIONS
from .request import Request

__all__ = ["Accounts"]

_COUNTED = frozenset(OPERATIONS) | {"list_models"}


class Accounts:
    """Open and close the account of each request."""

    def __init__(self, metrics: Metrics, watcher: Watcher, provider: BaseOpenAIProvider, log_format: str) -> None:
        self._metrics = metrics
        self._watcher = watcher
        self._provider = provider
        self._log_format = log_format

    def begin(self, request: Request) -> None:
        """Count a request as running, now that its operation is known."""
        if request.operation in _COUNTED:
            self._metrics.begin(request.operation)

    def end(self, request: Request, status: int) -> None:
        """Close a request's account, once."""
        if request.ended:
            return
        request.ended = True
        self._watcher.discard(request.watched)
        seconds = time.monotonic() - request.started
        trace = request.trace
        if request.operation in _COUNTED:
            self._metrics.end(
                request.operation, request.model, status, seconds, request.first,
                (trace.prompt_tokens, trace.completion_tokens),
                max(0, trace.attempts - 1 - request.fallbacks), request.fallbacks,
            )
            if trace.attempts != 1 or status >= 500 or self._metrics.cooling:
                self._metrics.cooled(len(self._provider.cooling()))
        if access_log.logger.isEnabledFor(logging.INFO):
            access_log.write(access_log.line(_entry(request, status, seconds), self._log_format))


_clock: Tuple[int, str] = (0, "")  # the second that was written last, and how


def _now() -> str:
    global _clock
    second, text = _clock
    now = int(time.time())
    if now != second:
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        _clock = (now, text)
    return text


def _entry(request: Request, status: int, seconds: float) -> Dict[str, Any]:
    trace = request.trace
    return {
        "time": _now(),
        "client": request.environ.get("REMOTE_ADDR"),
        "method": request.method,
        "path": request.path,
        "status": status,
        "model": request.model,
        "server": None if trace.key is None else trace.key.url,
        "first_token_ms": None if request.first is None else round(request.first * 1000, 1),
        "total_ms": round(seconds * 1000, 1),
        "tokens_in": trace.prompt_tokens or None,
        "tokens_out": trace.completion_tokens or None,
        "request_id": request.id,
    }
