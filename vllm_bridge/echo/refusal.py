"""The error bodies that vLLM 0.32.0 sends, as exceptions that carry a status and a body."""

import json
from http import HTTPStatus
from typing import Any, Dict, Optional, Sequence

BUSY = ("The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.")
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."

# Where vLLM's type is not the status's own phrase, as it is in err_queue_full and audio_err_file_is_string.
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
_MESSAGES = {500: DEAD, 503: BUSY}


class Refusal(Exception):
    """A request that is answered with an error.

    ``late`` marks what vLLM finds out only after it has sent the head of a stream: a stream then answers
    200 and carries the error as its only event (wire ``s_err_top_logprobs_too_big``).
    """

    def __init__(self, status: int, payload: Any, late: bool = False,
                 headers: Optional[Dict[str, str]] = None) -> None:
        super().__init__(status)
        self.status = status
        self.payload = payload
        self.late = late
        self.headers = dict(headers or {})


def error_payload(status: int, message: str, kind: str, param: Optional[str] = None) -> Dict[str, Any]:
    """Return ``{"error": {...}}`` in vLLM's key order."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def bad_request(message: str, param: Optional[str] = None, value: Any = None, late: bool = False) -> Refusal:
    """Refuse a value; ``param`` and ``value`` are repeated at the end of the message as vLLM does."""
    if param is not None:
        message += " (parameter=%s%s)" % (param, "" if value is None else ", value=%s" % (value,))
    return plain_bad_request(message, param, late)


def plain_bad_request(message: str, param: Optional[str] = None, late: bool = False) -> Refusal:
    """Refuse a value where vLLM does not repeat the parameter in the message."""
    return Refusal(400, error_payload(400, message, "BadRequestError", param), late)


def invalid(*problems: Dict[str, Any]) -> Refusal:
    """Refuse a body that pydantic would refuse: 400, with the Python repr of each problem in the message."""
    lines = ["%d validation error%s:" % (len(problems), "" if len(problems) == 1 else "s")]
    lines += ["  %r" % (problem,) for problem in problems]
    return Refusal(400, error_payload(400, "\n".join(lines), "Bad Request", problems[0]["loc"]))


def problem(kind: str, where: str, message: str, value: Any, **context: Any) -> Dict[str, Any]:
    """Describe one pydantic problem."""
    found: Dict[str, Any] = {"type": kind, "loc": where, "msg": message, "input": _describe(value)}
    if context:
        found["ctx"] = context
    return found


def missing(where: str, inside: Any) -> Dict[str, Any]:
    """Describe a required field that is not there."""
    return problem("missing", where, "Field required", inside)


def _describe(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "<%s of %d items>" % (type(value).__name__, len(value))
    return str(value)


def unknown_model(name: Any, models: Sequence[str], pooling: bool) -> Refusal:
    """Refuse a model that is not served; pooling routes name no aliases and no ``param`` (embed_err_unknown_model)."""
    message = "The model `%s` does not exist." % (name,)
    if not pooling:
        message += " Valid aliases: %s." % ", ".join(models)
    return Refusal(404, error_payload(404, message, "NotFoundError", None if pooling else "model"))


def detail(status: int, text: str, headers: Optional[Dict[str, str]] = None) -> Refusal:
    """Refuse in FastAPI's shape: route misses, wrong methods, unreadable bodies."""
    return Refusal(status, {"detail": text}, headers=headers)


def unauthorized() -> Refusal:
    """Refuse a missing or wrong key: here ``error`` is a string (auth_missing)."""
    return Refusal(401, {"error": "Unauthorized"})


def on_demand(status: int) -> Refusal:
    """Return the error that ``!error STATUS`` asks for."""
    if status == 401:
        return unauthorized()
    message = _MESSAGES.get(status, "Asked for with !error %d." % status)
    return Refusal(status, error_payload(status, message, _TYPES.get(status) or phrase(status), None))


def as_anthropic(payload: Any) -> Any:
    """Return an error as /v1/messages words it; what its body's check refuses stays OpenAI's (messages_server_tool)."""
    error = payload.get("error")
    if not isinstance(error, dict) or error["type"] == "Bad Request":
        return payload
    return {"type": "error", "error": {"type": error["type"], "message": error["message"]}}


def phrase(status: int) -> str:
    """Return the reason phrase of a status, ``Error`` for one that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def unreadable(body: bytes) -> Refusal:
    """Say why ``body`` is no JSON, the way FastAPI does."""
    if not body:
        return invalid(missing("body", None))
    try:
        json.loads(body)
    except json.JSONDecodeError as failure:
        return invalid(problem("json_invalid", "body.%d" % failure.pos, "JSON decode error", {}, error=failure.msg))
    except (UnicodeDecodeError, RecursionError):
        pass
    return detail(400, "There was an error parsing the body")
