"""Every error of the bridge, and the two ways between an error and its wire form.

BridgeError
├── APIConnectionError          no reply: refused, reset, unresolved (also ConnectionError)
│   └── APITimeoutError         no reply in time (also TimeoutError)
├── APIStatusError              the server answered with an error
│   ├── BadRequestError         400
│   ├── AuthenticationError     401
│   ├── PermissionDeniedError   403
│   ├── NotFoundError           404
│   ├── UnprocessableEntityError 422
│   ├── RateLimitError          429
│   └── InternalServerError     500 and above
├── ResponseDecodeError         the server answered something that is not its API (also ValueError)
├── IncompleteStreamError       a stream stopped before its end; ``partial`` keeps what arrived
├── RequestCancelledError       the call was cancelled from another thread
├── ConfigError                 a setting is wrong (also ValueError)
└── UnsupportedOperationError   vLLM cannot do this (also NotImplementedError)
"""

import json
import math
import re
from typing import Any, Dict, Optional, Tuple, Type

from .nesting import loads

__all__ = [
    "APIConnectionError", "APIStatusError", "APITimeoutError", "AuthenticationError", "BadRequestError", "BridgeError",
    "ConfigError", "IncompleteStreamError", "InternalServerError", "NotFoundError", "PermissionDeniedError",
    "RateLimitError", "RequestCancelledError", "ResponseDecodeError", "UnprocessableEntityError",
    "UnsupportedOperationError",
]

_CONTENT = ("choices", "data", "results", "text", "output")  # what the replies of the operations carry
_BODY_SHOWN = 500  # characters of an unreadable body that are worth showing,
_ANSWER_SHOWN = 200  # and of an answer that is not what it should be
_LONGEST = 65536  # of either that are kept: no key is cut that the first characters might show


class BridgeError(Exception):
    """Base of all errors of vllm_bridge.

    ``message``, ``type``, ``code`` and ``param`` are the server's own where it sent them.
    ``status_code`` is the HTTP status, or the one an error inside a 200 body stood for;
    ``payload`` is the decoded error body; ``url`` is where the request went, without credentials.
    ``quoted`` is how many characters of the message are to be shown: whoever knows the keys masks them first.
    """

    default_type: Optional[str] = None
    default_code: Any = None
    default_status: Optional[int] = None

    def __init__(
        self,
        message: str,
        *,
        type: Optional[str] = None,
        code: Any = None,
        param: Optional[str] = None,
        status_code: Optional[int] = None,
        request_id: Optional[str] = None,
        payload: Any = None,
        url: Optional[str] = None,
        quoted: int = 2000,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = self.default_type if type is None else type
        self.code = self.default_code if code is None else code
        self.param = param
        self.status_code = self.default_status if status_code is None else status_code
        self.request_id = request_id
        self.payload = payload
        self.url = url
        self.quoted = quoted
        self.retry_after: Optional[float] = None  # seconds, where the server asked for a pause

    def __str__(self) -> str:
        if self.url is None:
            return self.message
        status = "" if self.status_code is None else "%d from " % self.status_code
        return "%s [%s%s]" % (self.message, status, self.url)

    def __reduce__(self) -> Tuple[Any, ...]:
        # Exception's own way would call the class with the message alone and lose the keywords.
        return _restore, (self.__class__, self.args, self.__dict__.copy())


def _restore(cls: Type[BridgeError], args: Tuple[Any, ...], state: Dict[str, Any]) -> BridgeError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class APIConnectionError(BridgeError, ConnectionError):
    """The server could not be reached, or hung up without an answer."""

    default_type = "provider_connection_failed"


class APITimeoutError(APIConnectionError, TimeoutError):
    """A time limit passed; the message says which one and how to raise it."""

    default_type = "request_timed_out"


class APIStatusError(BridgeError):
    """The server answered with an error; ``status_code`` says which."""


class BadRequestError(APIStatusError):
    """400: the server, or the bridge before it, refused the request."""

    default_type = "BadRequestError"
    default_status = 400


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""

    default_status = 401


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this."""

    default_status = 403


class NotFoundError(APIStatusError):
    """404: no such model, or no such route on this server."""

    default_status = 404


class UnprocessableEntityError(APIStatusError):
    """422: the request was read but makes no sense to the server."""

    default_status = 422


class RateLimitError(APIStatusError):
    """429: too many requests."""

    default_status = 429


class InternalServerError(APIStatusError):
    """500 and above: the server failed."""

    default_status = 500


class ResponseDecodeError(BridgeError, ValueError):
    """The answer is not what the API promises: not JSON, the wrong type, a field missing."""

    default_code = "invalid_response"


class IncompleteStreamError(BridgeError):
    """A stream stopped without ``[DONE]`` or a finish reason.

    ``partial`` is what had arrived, folded into the shape of the complete reply.
    """

    default_type = "provider_connection_failed"
    partial: Any = None

    def __init__(self, message: str, *, partial: Any = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.partial = partial


class RequestCancelledError(BridgeError):
    """The call was cancelled from another thread, and its connection closed."""

    default_type = "request_cancelled"


class ConfigError(BridgeError, ValueError):
    """A setting is wrong; the message starts with its path."""

    default_type = "config_error"


class UnsupportedOperationError(BridgeError, NotImplementedError):
    """vLLM does not offer this operation; no request was made."""

    default_type = "unsupported_operation"
    default_code = "unsupported_operation"


_BY_STATUS: Dict[int, Type[APIStatusError]] = {
    cls.default_status or 0: cls for cls in (
        BadRequestError, AuthenticationError, PermissionDeniedError, NotFoundError, UnprocessableEntityError,
        RateLimitError,
    )
}

# What to say when the server said nothing.
_SILENT: Dict[int, str] = {
    401: "authentication failed: unauthorized (401) - check your API key",
    403: "access forbidden (403) - your API key may not have permission for this operation",
    404: "resource not found (404)",
    429: "rate limit exceeded (429)",
}


def class_for_status(status: int) -> Type[APIStatusError]:
    """Return the error class that stands for an HTTP status of 400 to 599."""
    if status >= 500:
        return InternalServerError
    return _BY_STATUS.get(status, APIStatusError)


# ---------------------------------------------------------------- payload → error


def error_from_payload(payload: Any, status: int = 200, **fields: Any) -> APIStatusError:
    """Turn any decoded error body into an error: OpenAI's shape, vLLM's older flat one, FastAPI's ``detail``.

    `status` is the HTTP status. Below 400 the status comes from the numeric code in the body, else
    500. `fields` (``request_id``, ``url``) are set on the error.
    """
    inner = _inner(payload)
    message = _message(payload, inner)
    code = _code(inner.get("code"))
    if status < 400:
        status = _status_of_code(code) or 500
    if message is None:
        message = _SILENT.get(status) or "provider API error (status %d)" % status
        if payload:
            fields["quoted"] = len(message) + 2 + _BODY_SHOWN
            message += ": %s" % _json(payload)
    return class_for_status(status)(
        message, type=_text(inner.get("type")), code=code, param=_text(inner.get("param")), status_code=status,
        payload=payload, **fields,
    )


def payload_error(payload: Any, **fields: Any) -> Optional[APIStatusError]:
    """Return the error that a payload under a success status stands for, or ``None``.

    A Responses object keeps its own ``error`` field: it is a reply that tells of a failure. In a reply with content
    an ``error`` field counts only if it says something.
    """
    if not isinstance(payload, dict):
        return None
    error = payload.get("error")
    if error:
        if payload.get("object") == "response":
            return None
        says = isinstance(error, str) or (isinstance(error, dict) and (error.get("message") or error.get("code")))
        if says or not any(payload.get(name) is not None for name in _CONTENT):
            return error_from_payload(payload, **fields)
    elif payload.get("object") == "error" or (len(payload) == 1 and "detail" in payload):
        return error_from_payload(payload, **fields)
    return None


def error_from_body(status: int, content_type: str, body: bytes, **fields: Any) -> APIStatusError:
    """Turn the body of an error reply, whatever it is, into an error.

    It may be JSON, an HTML page of a proxy in between, plain text, nothing at all.
    """
    text = body.decode("utf-8-sig", "replace").strip()
    try:
        payload = loads(text) if text else None
    except (ValueError, RecursionError):
        payload = None
    if isinstance(payload, dict) or (isinstance(payload, list) and payload):
        return error_from_payload(payload, status, **fields)
    if not text:
        empty = "provider server error (%d)" if status >= 500 else "empty response received from provider (HTTP %d)"
        message = _SILENT.get(status) or empty % status
    elif is_html(content_type, text):
        message = "HTML response received from provider" + _title(text)
    else:
        message = "provider API error: "
        fields["quoted"] = len(message) + _BODY_SHOWN
        message += text[:_LONGEST]
    return class_for_status(status)(message, status_code=status, payload=text or None, **fields)


def undecodable(problem: str, text: str, **fields: Any) -> ResponseDecodeError:
    """Return the error for an answer that is not what it should be; `text`, the answer, is quoted and its payload."""
    message = "%s: " % problem
    payload = text if len(text) <= _LONGEST else None
    fields = {"payload": payload, "quoted": len(message) + _ANSWER_SHOWN, **fields}
    return ResponseDecodeError(message + (text[:_LONGEST] or "an empty body"), **fields)


def is_html(content_type: str, text: str) -> bool:
    """Tell whether a body is an HTML page, by its type or its first tag."""
    if content_type.lower().startswith("text/html"):
        return True
    return re.match(r"\s*<(!doctype html|html|head|body)\b", text, re.IGNORECASE) is not None


def _inner(payload: Any) -> Dict[str, Any]:
    if not isinstance(payload, dict):
        return {}
    error = payload.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str):
        return {key: payload[key] for key in ("type", "code", "param") if key in payload}
    return payload


def _message(payload: Any, inner: Dict[str, Any]) -> Optional[str]:
    outer = payload if isinstance(payload, dict) else {}
    error = outer.get("error")
    said = (inner.get("message"), error if isinstance(error, str) else None, outer.get("message"), inner.get("detail"))
    for value in said + (outer.get("detail"),):
        text = ""
        if isinstance(value, str):
            text = value
        elif isinstance(value, list):  # FastAPI's own validation errors
            text = "; ".join(_detail(item) for item in value)
        elif isinstance(value, dict) and value:
            text = _detail(value)
        if text.strip():
            return text
    return None


def _detail(item: Any) -> str:
    if isinstance(item, dict):
        for name in ("msg", "message"):
            if isinstance(item.get(name), str) and item[name]:
                loc = item.get("loc")
                where = ".".join(str(part) for part in loc if isinstance(part, (str, int))) if type(loc) is list else ""
                return "%s: %s" % (where, item[name]) if where else str(item[name])
    return item if isinstance(item, str) else _json(item)


def _json(value: Any) -> str:
    try:
        return json.dumps(value)[:_LONGEST]
    except RecursionError:
        return "nested too deeply to be shown"


def _code(value: Any) -> Any:
    """Return a code that can be handed on as JSON; an error keeps any other in its payload."""
    if isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None


def _status_of_code(code: Any) -> Optional[int]:
    if isinstance(code, str) and len(code) > 10:
        return None
    try:
        number = int(code)
    except (TypeError, ValueError):
        return None
    return number if 400 <= number <= 599 else None


def _text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) else None


def _title(text: str) -> str:
    match = re.search(r"<title[^>]{0,200}>(.{1,200}?)</title>", text[:20000], re.IGNORECASE | re.DOTALL)
    return ": " + " ".join(match.group(1).split()) if match else ""


# What servers say when a prompt, with the answer that was asked for, does not fit the model: vLLM in its versions
# (tests/data/vllm-0.32.0/err_context_too_long.json), SGLang, llama.cpp, and OpenAI's own code.
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum model length|prompt is too long", re.IGNORECASE
)


def exceeds_context(error: BridgeError) -> bool:
    """Tell whether a server refused a request because it is longer than the model's context."""
    if error.code == "context_length_exceeded":
        return True
    return error.status_code in (400, 413, 422) and _TOO_LONG.search(error.message) is not None


# ---------------------------------------------------------------- error → payload


def error_to_payload(error: BridgeError) -> Dict[str, Any]:
    """Return the error in OpenAI's wire form, ``{"error": {message, type, param, code}}``.

    The server's own words are kept; the URL it lives at is not among them.
    """
    kind = error.type or _TYPES.get(http_status(error), "api_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def http_status(error: BridgeError) -> int:
    """Return the HTTP status with which a gateway answers for this error."""
    if error.status_code is not None and 400 <= error.status_code <= 599:
        return error.status_code
    return next((status for kind, status in _ANSWERED_WITH if isinstance(error, kind)), 500)


_ANSWERED_WITH = (
    (APITimeoutError, 504),
    ((APIConnectionError, IncompleteStreamError, ResponseDecodeError), 502),
    (RequestCancelledError, 499),
    (UnsupportedOperationError, 400),
)


_TYPES: Dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
