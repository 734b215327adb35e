"""The gateway as a WSGI application: routes, doors, errors, accounts; the provider does the rest."""

import logging
import math
import tempfile
import time
from http.client import responses as _PHRASES
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, TypeVar

from ..api import audio
from ..errors import (
    APIConnectionError,
    APIStatusError,
    BadRequestError,
    BridgeError,
    ConfigError,
    IncompleteStreamError,
    NotFoundError,
    RequestCancelledError,
    UnsupportedOperationError,
    error_to_payload,
    http_status,
)
from ..http1.multipart import MultipartReader
from ..api.body import read_object, replaced, stands_once
from ..provider import BaseOpenAIProvider
from ..version import __version__
from ..vllm import VLLMProvider
from ..api.body import to_json
from . import metrics
from .accounts import Accounts
from ..server.body import BodyError
from .disconnect import Watcher
from .authentication import Doors
from .operations import OPERATIONS, Answer, Asked, Opened, Operation
from ..config.redaction import Redaction
from .relay import Relay, internal_error
from .request import PREFIX, Request, bare_model
from .routes import Found, find
from .settings import Settings, read

__all__ = ["Gateway", "create_app"]

logger = logging.getLogger("vllm_bridge.gateway")
T = TypeVar("T")

Environ = Dict[str, Any]
StartResponse = Callable[..., Any]
Headers = List[Tuple[str, str]]

_STATUS = {status: "%d %s" % (status, phrase) for status, phrase in _PHRASES.items()}
_STATUS[499] = "499 Client Closed Request"
_SAFE = (("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"))
_STREAM = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # nginx holds a stream back without it
)
_SPOOLED = 1024 * 1024  # bytes of an uploaded file that stay in memory
_READY_WITHIN = 2.0  # seconds that a server has to say that it is there
_FALSE = frozenset(("", "0", "f", "false", "n", "no", "off"))


_MOST_PARSED = 2 * 1024 * 1024  # bytes of a body outside its strings


class Gateway:
    """Answer OpenAI's API in front of the servers of one provider.

    Give `provider` to use one that there is; `settings` then say only who may come in.
    """

    def __init__(self, settings: Settings, provider: Optional[BaseOpenAIProvider] = None) -> None:
        self.settings = settings
        self.provider = VLLMProvider(config=settings.provider) if provider is None else provider
        self.metrics = metrics.Metrics(settings.workers)
        self._doors = Doors(settings.api_keys, settings.allowed_origins)
        self._redaction = Redaction(self.provider.config)
        self._watcher = Watcher()
        self._accounts = Accounts(self.metrics, self._watcher, self.provider, settings.log_format)
        self._handlers: Dict[str, Callable[[Request], Any]] = {
            "operation": self._operation, "form": self._form, "models": self._models, "model": self._model,
            "messages": self._messages, "health": self._health, "ready": self._ready, "metrics": self._metrics,
            "version": self._version, "unsupported": self._unsupported,
        }

    def close(self) -> None:
        """End the gateway's thread and close idle connections to the servers."""
        self._watcher.close()
        self.provider.close()
        self.metrics.close()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            try:
                answer = self._answer(request)
            except BridgeError as error:
                answer = self._failed(request, error)
        except BodyError as error:  # the server answers it
            self._accounts.end(request, error.status)
            raise
        except OSError:  # another server's: the client left inside its body
            self._accounts.end(request, 499)
            raise
        except Exception:
            logger.error("%s %r failed", request.method, request.path, exc_info=True)
            answer = self._failed(request, internal_error())
        if isinstance(answer, Opened):
            return self._streamed(request, answer, start_response)
        return self._sent(request, answer, start_response)

    # ------------------------------------------------------------ in and out

    def _answer(self, request: Request) -> Any:
        found = find(request.method, request.path)
        route = found.route
        if route is None:
            return self._no_route(request, found)
        if not route.public:
            refusal = self._doors.check(request.environ)
            if refusal is not None:
                raise refusal
        request.operation = route.operation
        request.rest = found.rest
        self._accounts.begin(request)
        return self._handlers[route.handler](request)

    def _no_route(self, request: Request, found: Found) -> Answer:
        if request.method == "OPTIONS" and found.methods:
            preflight = self._doors.preflight(request.environ)
            if preflight is not None:
                status, headers = preflight
                return Answer(status, b"", headers=tuple(headers))
            return Answer(204, b"", headers=(("Allow", ", ".join(found.methods)),))
        refusal = self._doors.check(request.environ)
        if refusal is not None:
            raise refusal
        if found.methods:
            allow = ", ".join(found.methods)
            error: BridgeError = APIStatusError(
                "%s does not take %s; it takes %s" % (request.path, request.method, allow),
                type="invalid_request_error", code="method_not_allowed", status_code=405,
            )
            return self._failed(request, error)._replace(headers=(("Allow", allow),))
        message = "Route not found: %s" % request.path
        meant = "/v1" + request.path
        if find(request.method, meant).route is not None:
            message += "; did you mean %s?" % meant
        raise NotFoundError(message, type="invalid_request_error", code="route_not_found")

    def _failed(self, request: Request, error: BridgeError) -> Answer:
        status, payload = self._told(request, error)
        headers: Tuple[Tuple[str, str], ...] = ()
        if error.retry_after is not None:
            headers = (("Retry-After", "%d" % math.ceil(error.retry_after)),)
        if status == 401 and error.code == "invalid_api_key":
            headers += (("WWW-Authenticate", "Bearer"),)
        if isinstance(error, UnsupportedOperationError):
            payload["extra_fields"] = {"provider": self.provider.name, "request_type": request.operation}
        if request.operation == "messages":
            payload["type"] = "error"  # as Anthropic's clients expect it
        return Answer(status, to_json(payload), headers=headers)

    def _told(self, request: Request, error: BridgeError) -> Tuple[int, Dict[str, Any]]:
        """Return the status and the payload that tell a client of an error, and log what the operator has to know."""
        if isinstance(error, (APIConnectionError, IncompleteStreamError)):
            logger.warning("request %s: %s", request.id, error.message)
        payload = error_to_payload(error)
        inner = payload["error"]
        status = http_status(error)
        if error.status_code is not None and 300 <= error.status_code < 400:
            logger.warning("request %s: %s", request.id, error.message)
            inner["message"], status = "the vLLM server redirects, and redirects are not followed", 502
        elif error.code == "tls_error":
            inner["message"] = "no secure connection to the vLLM server; the gateway's log says more"
        else:
            inner["message"] = self._redaction.clean(inner["message"])
        return status, payload

    def _sent(self, request: Request, answer: Answer, start_response: StartResponse) -> List[bytes]:
        headers = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        if answer.status == 204:
            headers = []
        self._accounts.end(request, answer.status)
        start_response(_STATUS.get(answer.status) or "%d Error" % answer.status,
                       headers + self._common(request, answer.headers))
        return [] if request.method == "HEAD" else [answer.body]

    def _streamed(self, request: Request, opened: Opened, start_response: StartResponse) -> "Iterable[bytes]":
        request.first = time.monotonic() - request.started
        request.streaming = True
        try:
            start_response("200 OK", self._common(request, _STREAM))
        except BaseException:
            opened.stream.close()
            self._accounts.end(request, 499)
            raise
        return Relay(request, opened, self._told, self._accounts.end)

    def _common(self, request: Request, headers: Iterable[Tuple[str, str]]) -> Headers:
        found = [("X-Request-Id", request.id), *_SAFE, *headers]
        if "HTTP_ORIGIN" in request.environ:
            taken = {name for name, _ in found}
            found += [pair for pair in self._doors.headers(request.environ) if pair[0] not in taken]
        return found

    # ------------------------------------------------------------ operations

    def _operation(self, request: Request) -> Any:
        data = request.body(self.settings.max_body)
        return self._carried_out(request, OPERATIONS[request.operation], read_object(data, _MOST_PARSED), data)

    def _form(self, request: Request) -> Any:
        reader = MultipartReader(
            request.environ.get("CONTENT_TYPE", ""),
            spool=lambda: tempfile.SpooledTemporaryFile(max_size=_SPOOLED),
        )
        try:
            for block in request.blocks(self.settings.max_body):
                reader.feed(block)
            body = audio.from_form(reader.finish())
            return self._carried_out(request, OPERATIONS[request.operation], body, None)
        finally:
            reader.close()

    def _carried_out(
        self, request: Request, operation: Operation, body: Dict[str, Any], data: Optional[bytes]
    ) -> Any:
        asked_for = body.get("model")
        if asked_for is not None and not isinstance(asked_for, str):
            raise BadRequestError("model must be a string", param="model", type="invalid_request_error")
        model = bare_model(asked_for) if asked_for else ""
        if not model:
            raise BadRequestError("model is required", param="model", type="invalid_request_error")
        operation.check(body)
        body["model"] = request.model = model
        others: List[str] = []
        if "fallbacks" in body:
            others, data = _fallbacks(body.pop("fallbacks")), None
        if data is not None and model != asked_for:
            data = replaced(data, model)
        elif data is not None and not stands_once(data):
            data = None  # two readers might find two models in it
        try:
            provider = self.provider.with_options(**request.options())
        except ConfigError as error:
            raise BadRequestError(error.message, type="invalid_request_error") from None
        request.watched = self._watcher.watch(request.environ, lambda: request.cancellation.cancel("the client left"))
        carry_out: Callable[[Asked], Any] = operation.answer
        if isinstance(body.get("stream"), str):
            body["stream"], data = body["stream"].strip().lower() not in _FALSE, None  # as vLLM reads it
        if body.get("stream") and operation.stream is not None:
            carry_out = operation.stream
        asked = Asked(provider, body, data, request.trace)
        answer = self._with_fallbacks(request, asked, others, carry_out) if others else carry_out(asked)
        if operation.name == "transcription" and isinstance(answer, Answer) and request.under_openai:
            return _raw_transcription(answer, body.get("response_format"))
        return answer

    @staticmethod
    def _with_fallbacks(request: Request, asked: Asked, others: List[str], carry_out: Callable[[Asked], T]) -> T:
        """Carry out the call with its model, else with the others in their order (SPEC §9.4)."""
        try:
            return carry_out(asked)
        except RequestCancelledError:
            raise
        except BridgeError as primary:
            for name in others:
                asked.body["model"] = name
                request.fallbacks += 1
                try:
                    answer = carry_out(asked)
                except RequestCancelledError:
                    raise
                except BridgeError:
                    continue
                request.model = name
                return answer
            raise primary

    # ------------------------------------------------------------ models

    def _listed(self, request: Request) -> Dict[str, Any]:
        request.watched = self._watcher.watch(request.environ, lambda: request.cancellation.cancel("the client left"))
        found = self.provider.with_options(**request.options()).list_models()
        for model in found["data"]:
            model["id"] = PREFIX + str(model.get("id"))
        for status in found.get("key_statuses") or ():
            if "error" in status:
                status["error"]["message"] = self._redaction.clean(str(status["error"].get("message")))
        return found

    def _models(self, request: Request) -> Answer:
        return Answer(200, to_json(self._listed(request)))

    def _model(self, request: Request) -> Answer:
        name = PREFIX + bare_model(request.rest)
        for model in self._listed(request)["data"]:
            if model["id"] == name:
                return Answer(200, to_json(model))
        raise NotFoundError(
            "The model `%s` does not exist." % request.rest, type="NotFoundError", param="model", code="model_not_found"
        )

    # ------------------------------------------------------------ the gateway itself

    def _health(self, request: Request) -> Answer:
        return Answer(200, b'{"status":"ok"}')

    def _ready(self, request: Request) -> Answer:
        try:
            self.provider.with_options(timeout=_READY_WITHIN, deadline=_READY_WITHIN, max_retries=0).list_models()
        except BridgeError as error:
            payload = {"status": "unavailable", "error": self._told(request, error)[1]["error"]}
            return Answer(503, to_json(payload))
        return Answer(200, b'{"status":"ready"}')

    def _metrics(self, request: Request) -> Answer:
        return Answer(200, self.metrics.text(), metrics.CONTENT_TYPE)

    def _version(self, request: Request) -> Answer:
        return Answer(200, to_json({"version": __version__}))

    def _unsupported(self, request: Request) -> Answer:
        getattr(self.provider, request.operation)()
        raise AssertionError("%s is not unsupported" % request.operation)

    def _messages(self, request: Request) -> Answer:
        raise UnsupportedOperationError(
            "this gateway does not translate Anthropic's API, and vLLM speaks it itself: set ANTHROPIC_BASE_URL to the "
            "address of the vLLM server"
        )


def _fallbacks(given: Any) -> List[str]:
    """Return the models to fall back to; what is none is passed over (SPEC §9.4)."""
    names = [bare_model(name) for name in given if isinstance(name, str)] if isinstance(given, list) else []
    return [name for name in names if name]


def _raw_transcription(answer: Answer, response_format: Any) -> Answer:
    """Return a transcript in a text format as OpenAI does, as text (SPEC §7)."""
    if response_format not in ("text", "srt", "vtt"):
        return answer
    import json

    text = str(json.loads(answer.body).get("text", ""))
    return answer._replace(body=text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8")


def create_app(settings: Optional[Settings] = None) -> Gateway:
    """Return the application for another WSGI server, by default set up by the environment and the config file.

    Raises `ConfigError`.
    """
    if settings is None:
        settings = read()
    return Gateway(settings)
