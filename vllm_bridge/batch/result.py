"""What became of one request of a batch."""

from typing import Any, Dict, Optional, Type

from ..api.records import ChatCompletion, Completion, EmbeddingList, Record, Rerank, Response
from ..errors import BridgeError
from .request import Request

__all__ = ["Result"]

_KINDS: Dict[str, Type[Record]] = {
    "chat_completion": ChatCompletion, "text_completion": Completion, "embedding": EmbeddingList, "rerank": Rerank,
    "responses": Response,
}


class Result:
    """A request as it was given (`request`) with its `reply`, a record like that of the operation, or its `error`.

    `number` counts requests from 1, `attempts` how often it was asked; `seconds` is how long that took in all.
    `data` is the reply as JSON.
    """

    __slots__ = (
        "request", "number", "key", "operation", "error", "attempts", "seconds", "status_code", "request_id", "data",
        "_payload",
    )

    def __init__(self, request: Request, attempts: int, seconds: float, error: Optional[BridgeError] = None) -> None:
        self.request = request.given
        self.number = request.number
        self.key = request.key
        self.operation = request.operation
        self.attempts = attempts
        self.seconds = seconds
        self.error = error
        self.status_code: Optional[int] = None if error is None else error.status_code
        self.request_id: Optional[str] = None if error is None else error.request_id
        self.data = b""
        self._payload: Optional[Dict[str, Any]] = None

    def answered(self, status: int, request_id: Optional[str], data: bytes, payload: Dict[str, Any]) -> "Result":
        """Fill in the reply."""
        self.status_code, self.request_id, self.data, self._payload = status, request_id, data, payload
        return self

    @property
    def reply(self) -> Any:
        """The answer as a record; ``None`` where there is an error."""
        if self._payload is None:
            return None
        if type(self._payload) is dict:
            self._payload = _KINDS.get(self.operation, Record)(self._payload)
        return self._payload

    @property
    def payload(self) -> Dict[str, Any]:
        """The answer as the object that it is, empty where there is an error."""
        return self._payload or {}

    @property
    def custom_id(self) -> Optional[str]:
        """The ``custom_id`` that the request was given with."""
        return None if self.key is None else self.key.decode("utf-8")

    def __repr__(self) -> str:
        return "Result(%d, %s)" % (self.number, "answered" if self.error is None else repr(self.error))
