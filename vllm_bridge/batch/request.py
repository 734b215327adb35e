"""One request of a batch: a line of OpenAI's batch format, a request body, or a prompt."""

import json
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

from ..api.body import read_object
from ..errors import BadRequestError

__all__ = ["OPERATIONS", "Defaults", "Request", "invalid"]

# What may be asked, by the ``url`` of a line; vLLM's own batch runner knows the second and third way to rerank too.
OPERATIONS = {
    "/v1/chat/completions": "chat_completion",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/score": "score",
    "/score": "score",
    "/classify": "classify",
    "/pooling": "pooling",
}

Given = Union[bytes, str, Mapping[str, Any]]


class Request:
    """What was given, and what is made of it once its turn has come.

    `number` is its line's, from 1; `key` its ``custom_id`` in UTF-8, if it has one; `error` says what is wrong with it
    that was seen before it was read.
    """

    __slots__ = ("number", "key", "given", "operation", "body", "error")

    def __init__(
        self, number: int, given: Given, key: Optional[bytes] = None, error: Optional[BadRequestError] = None
    ) -> None:
        self.number = number
        self.given = given
        self.key = key
        self.operation = ""
        self.body: Dict[str, Any] = {}
        self.error = error

    @property
    def size(self) -> int:
        """The bytes that it holds, where they are bytes."""
        return len(self.given) if isinstance(self.given, (bytes, str)) else 1000


class Defaults(NamedTuple):
    """What fills in what requests leave out; with `text` a line is a prompt and no JSON."""

    model: Optional[str] = None
    url: Optional[str] = None
    parameters: Mapping[str, Any] = {}
    text: bool = False

    def read(self, request: Request) -> None:
        """Make operation and body of what was given; raise `BadRequestError` for what is no request."""
        if request.error is not None:
            raise request.error
        given = request.given
        if type(given) is bytes and not self.text:
            body = _object(given, request.number)
        elif isinstance(given, (bytes, str)):
            body = self._prompted(given, request.number)
        elif isinstance(given, Mapping):
            body = dict(given)
        else:
            raise invalid(request.number, "is no request: expected an object or a text, got %s" % type(given).__name__)
        url = self.url
        if "body" in body and ("url" in body or "custom_id" in body or "method" in body):
            body, url = _unwrapped(body, request.number, url)
        elif "custom_id" in body:
            del body["custom_id"]  # ours, and no parameter
        for name, value in self.parameters.items():
            body.setdefault(name, value)
        if self.model is not None and body.get("model") is None:
            body["model"] = self.model
        known = OPERATIONS.get(url) if isinstance(url, str) else None
        request.operation = known or _operation(url, body, request.number)
        request.body = body

    def _prompted(self, given: Union[bytes, str], number: int) -> Dict[str, Any]:
        try:
            text = given.decode("utf-8") if isinstance(given, bytes) else given
        except UnicodeDecodeError as error:
            raise invalid(number, "is no UTF-8 text (byte %d)" % error.start) from None
        operation = OPERATIONS.get(self.url or "/v1/chat/completions")
        if operation == "chat_completion":
            return {"messages": [{"role": "user", "content": text}]}
        if operation == "rerank":
            raise invalid(number, "is a text, and a rerank request has a query and documents: give JSON")
        return {"prompt" if operation == "text_completion" else "input": text}


def invalid(number: int, reason: str, code: str = "invalid_line") -> BadRequestError:
    """Return the error of a line that is no request."""
    return BadRequestError("line %d %s" % (number, reason), type="invalid_request_error", code=code)


def _object(line: bytes, number: int) -> Dict[str, Any]:
    if b"\0" in line:
        raise invalid(number, "holds a NUL byte; JSON has none, and a file in UTF-16 is to be converted to UTF-8")
    try:
        return read_object(line)
    except BadRequestError as error:
        raise invalid(number, "is no request: %s" % error.message.partition(": ")[2]) from None


def _unwrapped(line: Dict[str, Any], number: int, url: Optional[str]) -> Tuple[Dict[str, Any], Optional[str]]:
    """Return the body and the url of a line in OpenAI's batch format."""
    body = line["body"]
    if type(body) is not dict and not isinstance(body, Mapping):
        raise invalid(number, "has a body that is no object, but %s" % _shown(body))
    if line.get("method") not in (None, "POST"):
        raise invalid(number, "has the method %s, and only POST is offered" % _shown(line["method"]))
    return dict(body), url if line.get("url") is None else line["url"]


def _operation(url: Any, body: Dict[str, Any], number: int) -> str:
    if url is not None:
        raise invalid(number, "has the url %s, which is not offered; there are %s" % (
            _shown(url), ", ".join(OPERATIONS)), "url_not_offered")
    if "messages" in body:
        return "chat_completion"
    if "query" in body and "documents" in body:
        return "rerank"
    if "prompt" in body:
        return "text_completion"
    if "input" in body:
        return "embedding"
    raise invalid(number, "holds neither messages, prompt, input, nor query and documents")


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:100]
