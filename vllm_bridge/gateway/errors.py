"""An error as the clients of each API expect it; nowhere else is one worded for them."""

import errno
import logging
import math
import re
import time
from typing import Any, Dict, Iterable, List, Tuple

from ..client.failures import LACKING
from ..client.retry import TLS_ERROR
from ..config.redaction import Redaction, masked, one_line
from ..errors import (
    APIConnectionError,
    APIStatusError,
    BadRequestError,
    BridgeError,
    IncompleteStreamError,
    InternalServerError,
    RequestCancelledError,
    ResponseDecodeError,
    UnsupportedOperationError,
    error_to_payload,
    http_status,
)
from ..server.request import Answer
from ..api.body import to_json
from .journal import Entry

__all__ = ["Errors", "invalid", "not_served", "refusal"]

logger = logging.getLogger("vllm_bridge.gateway")

_REFUSED = {408: "request_timeout", 413: "request_too_large", 500: "internal_error", 503: "too_many_connections"}
_KEY_REFUSED = "upstream_authentication_error"
_NOT_OUR_KEY = "the vLLM server refused the gateway's own key; the gateway's log names the server"
_AGAIN = 60.0  # seconds after which the log tells again of a server that refuses the gateway's key
_PLACES = 1.0  # seconds after which a place may be free again
_READ = 65536  # characters of a server's message that are looked at
# What a client may know of a server's reply that cannot be read, and of others that say more than they should.
_UNREADABLE = "the vLLM server sent a reply that cannot be read; the gateway's log says more"
_NO_TLS = "no secure connection to the vLLM server; the gateway's log says more"
_INSIDE = "the vLLM server failed on this request; the gateway's log says more"
_KEPT = {ResponseDecodeError.default_code: _UNREADABLE, TLS_ERROR: _NO_TLS}
# The stack of Python, of C++ in PyTorch, of Rust, Go and Java or JavaScript; in JSON quotes and line ends are escaped.
_STACK = re.compile(
    r"\(most recent call (?:last|first)|File \\{0,3}\"[^\"\n]{1,500}\", line [0-9]|\bframe #[0-9]+: |stack backtrace:"
    r"|goroutine [0-9]+ \[|(?:\n|\\n|\")(?:[ \t]|\\t)+at [^\n]{1,300}:[0-9]"
)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))


def invalid(message: str, param: Any = None) -> BadRequestError:
    """Return the error for what a client got wrong."""
    return BadRequestError(message, param=param, type="invalid_request_error")


def not_served(status: int, code: str, message: str) -> APIStatusError:
    """Return the error for a request that is not served, whatever is in it."""
    return APIStatusError(message, type="invalid_request_error", code=code, status_code=status)


def refusal(status: int, message: str) -> BridgeError:
    """Return the error for what the HTTP server refuses."""
    error = APIStatusError(
        message, type="server_error" if status >= 500 else "invalid_request_error",
        code=_REFUSED.get(status, "invalid_http"), status_code=status,
    )
    if status == 503:
        error.retry_after = _PLACES
    return error


class Errors:
    """Make answers and events of errors, without the servers' addresses and secrets in them."""

    def __init__(self, redaction: Redaction, provider_name: str, servers: Iterable[str] = ()) -> None:
        self._redaction = redaction
        self._provider_name = provider_name
        self._servers = tuple(servers)  # their URLs
        self._told: Dict[str, float] = {}  # when the log has told last that a server refuses the gateway's key

    def words(self, entry: Entry, code: Any, message: str) -> str:
        """Return what a client is told of a failure: no addresses or secrets, and not what is for the log alone.

        `code` and `message` are the error's.
        """
        message = message[:_READ]
        instead = _KEPT.get(code) if isinstance(code, str) else None
        if instead is None and _STACK.search(message) is not None:
            instead = _INSIDE
        if instead is None:
            return self._redaction.clean(message)
        logger.warning("request %s: %s", entry.id, one_line(masked(message, self._redaction.secrets)))
        return instead

    def ours(self, entry: Entry, error: Exception, stopping: bool) -> BridgeError:
        """Return the error as which a client is told of any that came up; what is our own goes to the log."""
        if isinstance(error, RequestCancelledError) and stopping:
            return APIStatusError(
                "the gateway is being stopped and had no time left for this answer", type="server_error",
                code="gateway_stopping", status_code=503,
            )
        if isinstance(error, BridgeError):
            return error
        if isinstance(error, RecursionError):  # read in a frame further up than where it had to be printed
            return invalid("invalid request format: the JSON is nested too deeply")
        logger.error("request %s: %s %s failed", entry.id, entry.method, ascii(entry.path), exc_info=error)
        status = 507 if isinstance(error, OSError) and error.errno in _FULL else 500
        return InternalServerError(
            "the gateway failed on this request; its log says more", type="server_error", code="internal_error",
            status_code=status,
        )

    def note(self, entry: Entry, error: BridgeError) -> None:
        """Take a server's 401 or 403 for what it is: not the client's key was refused, but the gateway's own."""
        if error.url is None or error.status_code not in (401, 403) or error.code == _KEY_REFUSED:
            return
        server = next((url for url in self._servers if error.url.startswith(url + "/")), error.url)
        self._tell_of_key(entry, server, error.status_code, error.message)
        error.message, error.code, error.type, error.param = _NOT_OUR_KEY, _KEY_REFUSED, None, None

    def _tell_of_key(self, entry: Entry, server: str, status: int, message: str) -> None:
        entry.refused_by = server
        now = time.monotonic()
        if now - self._told.get(server, float("-inf")) >= _AGAIN:
            self._told[server] = now
            logger.warning("request %s: %s refused the gateway's key (%d): %s",
                           entry.id, server, status, one_line(message))

    def reword(self, entry: Entry, status: Dict[str, Any]) -> None:
        """Put what a client may read into one of the ``key_statuses`` of a list of models."""
        error = status["error"]
        code, message = error.get("code"), str(error.get("message"))
        if error.get("status_code") in (401, 403):
            self._tell_of_key(entry, "the server of key %s" % status["key_id"], error["status_code"], message)
            error.update(message=_NOT_OUR_KEY, code=_KEY_REFUSED)
        else:
            error["message"] = self.words(entry, code, message)

    def check(self, entry: Entry, answer: Answer) -> None:
        """Raise for an answer in which a server repeats one of the gateway's keys."""
        if type(answer.body) is bytes and self._redaction.stands_in(answer.body):
            logger.warning("request %s: the answer of %s holds a key of the gateway, and is kept back",
                           entry.id, entry.trace.server)
            raise InternalServerError("the vLLM server repeated a key of the gateway; its answer is kept back",
                                      type="server_error", code="key_in_reply", status_code=502)

    def answer(self, entry: Entry, error: BridgeError) -> Answer:
        """Return the answer that tells of an error."""
        status, payload = self.payload(entry, error)
        fields: List[Tuple[str, str]] = [("Content-Type", "application/json")]
        if error.retry_after is not None:
            fields.append(("Retry-After", "%d" % math.ceil(error.retry_after)))
        if status == 401 and error.code == "invalid_api_key":
            fields.append(("WWW-Authenticate", "Bearer"))
        if isinstance(error, UnsupportedOperationError):
            payload["extra_fields"] = {"provider": self._provider_name, "request_type": entry.operation}
        return Answer(status, fields, to_json(payload))

    def payload(self, entry: Entry, error: BridgeError) -> Tuple[int, Dict[str, Any]]:
        """Return the status and the payload that tell a client of an error, and log what the operator has to know."""
        status, payload = self._payload(entry, error)
        if entry.anthropic:
            from ..api.messages import error as as_anthropic

            payload = as_anthropic(status, payload["error"]["message"], entry.id)
        return status, payload

    def _payload(self, entry: Entry, error: BridgeError) -> Tuple[int, Dict[str, Any]]:
        self.note(entry, error)
        redirected = error.status_code is not None and 300 <= error.status_code < 400
        if redirected or isinstance(error, (APIConnectionError, IncompleteStreamError)) and error.code not in _KEPT:
            logger.warning("request %s: %s", entry.id, one_line(error.message))
        payload = error_to_payload(error)
        inner = payload["error"]
        if redirected:
            inner["message"] = "the vLLM server redirects, and redirects are not followed"
            return 502, payload
        inner["message"] = self.words(entry, error.code, error.message)
        # No descriptor or memory left is not the server's fault, as a 502 would say.
        return 500 if error.code == LACKING else http_status(error), payload
