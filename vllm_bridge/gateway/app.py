"""The gateway as an application: who asks, for what, of which model; the provider does the rest."""

from functools import partial
from typing import Any, Callable, Container, Dict, Iterable, List, Optional

from ..api.body import read_object, replaced, stands_once, to_json
from ..config.redaction import Redaction
from ..config.settings import Key
from ..errors import APIStatusError, BadRequestError, NotFoundError, UnsupportedOperationError
from ..http1.head import ProtocolError
from ..operations.calls import MESSAGES
from ..provider import BaseOpenAIProvider
from ..server.request import Answer, Request
from ..server.wsgi import respond
from ..vllm import VLLMProvider
from . import metrics
from .addresses import Addresses
from .authentication import Authentication
from .bodies import check_coding, of_query, unread, unwrapped
from .cors import Cors
from .errors import Errors, invalid, not_served, refusal
from .headers import Headers
from .hosts import Hosts
from .journal import Entry, Journal
from .operations import OPERATIONS, Asked, Operation
from .proxies import Proxies
from .routes import Found, find, meant
from .settings import Settings, read
from .status import Status
from .streams import LEFT, Models, Streamed

__all__ = ["Gateway", "create_app"]

_PREFIX = "vllm/"  # is taken off a model's name, whatever ids are listed with
_SAFE = [("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY")]
_STREAM = [
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # nginx holds a stream back without it
]
_JSON = [("Content-Type", "application/json")]
_SPOOLED = 1024 * 1024  # bytes of an uploaded file that stay in memory
_LISTED_WITHIN = 1.8  # seconds that the servers have to name their models
_READY_WITHIN = 2.0  # seconds that a server has to say that it is there
_FALSE = frozenset(("", "0", "f", "false", "n", "no", "off"))
_MOST_FALLBACKS = 10
_HEARD = frozenset(("transcription", "translation"))
_COUNTED = frozenset(OPERATIONS) | {"list_models"}
_PINS = {"x-bf-api-key-id": "key_id", "x-bf-api-key": "key_name"}  # headers by which a client chooses a server's key


class Gateway:
    """Answer OpenAI's API in front of the servers of one provider; an application for `server` and for WSGI.

    Give `provider` to use one that there is; `settings` then say only who may come in. `journal` is that of the gateway
    whose place this one takes.
    """

    # They are answered however much there is.
    probes: Container[str] = frozenset(("/health", "/ready", "/metrics", "/version", "/load"))

    def __init__(
        self, settings: Settings, provider: Optional[BaseOpenAIProvider] = None, journal: Optional[Journal] = None
    ) -> None:
        self.settings = settings
        self.provider = VLLMProvider(config=settings.provider) if provider is None else provider
        if settings.max_queued is not None:
            self.provider.limit(-(-settings.max_queued // settings.workers))  # each process counts its own
        self._provider = self.provider.with_options(
            direct=True, verbatim=True, keep_alive_interval=settings.sse_keep_alive_interval
        )
        if journal is None:
            journal = Journal(metrics.Metrics(settings.workers), self.provider, settings.log_format)
        self.journal = journal
        self._authentication = Authentication(settings.api_keys)
        self._hosts = Hosts((settings.host, *settings.allowed_hosts))
        self._cors = Cors(settings.allowed_origins)
        self._proxies = Proxies(settings.forwarded_allow_ips) if settings.forwarded_allow_ips else None
        self._redaction = Redaction(self.provider.config)
        servers = [str(key.url) for key in self.provider.config.resolved_keys()]
        extra = self.provider.config.network_config.extra_headers
        self._headers = Headers(extra, settings.allowed_headers, settings.passed_headers)
        self._errors = Errors(self._redaction, self.provider.name, servers)
        self._addresses = Addresses(self.provider.config.resolved_keys(plain=False), self._moved)
        status = Status(self.provider, self._errors, self.journal)
        self._handlers: Dict[str, Callable[[Request, Entry], Answer]] = {
            "operation": self._operation, "form": self._form, "models": self._models, "model": self._model,
            "query": self._query, "elsewhere": self._elsewhere, "load": status.load, "health": status.health,
            "ready": status.ready, "metrics": status.metrics, "version": status.version,
            "unsupported": self._unsupported,
        }

    def begin(self) -> None:
        """Begin what goes on beside the requests; without that it begins with the first of them."""
        self._addresses.begin()

    def close(self) -> None:
        """End the gateway's threads and close idle connections to the servers."""
        self._addresses.close()
        self.journal.close()
        self.provider.close()

    def succeeded_by(self, settings: Settings) -> "Gateway":
        """Return a gateway with other settings that goes on counting; what this one has begun it finishes.

        Raises `ConfigError`, and then all is as it was.
        """
        successor = Gateway(settings, journal=self.journal)
        self._addresses.close()
        successor._addresses.succeed(self._addresses)
        successor.provider.succeed(self.provider)
        self.journal.provider = successor.provider
        self.provider.close()  # what is in use is closed by its last user
        return successor

    def _moved(self, keys: List[Key]) -> None:
        """Take the keys that the addresses of names make."""
        self._redaction.hide([str(key.url) for key in keys], "the vLLM server")
        self.provider.set_keys(keys)

    def __call__(self, environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return respond(self, environ, start_response)

    # ------------------------------------------------------------ what a server calls

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        entry = request.account = Entry(request)
        fields = request.fields
        if self._addresses.names:
            self._addresses.begin()
        try:
            found = find(request.method, request.path)
            route = found.route
            if "upgrade" in fields:
                self._refuse_websocket(request)
            if route is None:
                answer = self._no_route(request, entry, found)
            else:
                if not route.public:
                    self._let_in(fields)
                entry.operation = route.operation
                if route.operation in _COUNTED:
                    self.journal.begin(entry)
                answer = self._handlers[route.handler](request, entry)
                if self._redaction.secrets:
                    self._errors.check(entry, answer)
        except ProtocolError as error:
            answer = self._errors.answer(entry, refusal(error.status, error.message))
        except Exception as error:
            answer = self._errors.answer(entry, self._errors.ours(entry, error, request.stopping()))
        answer.fields[:0] = [("X-Request-Id", entry.id), *_SAFE]
        if entry.operation in MESSAGES or "anthropic-version" in fields:
            answer.fields.append(("Request-Id", entry.id))  # as Anthropic's clients look for it
        if "origin" in fields:
            self._cors.mark(answer, fields["origin"])
        return answer

    def refuse(self, request: Request, status: int, message: str) -> Answer:
        """Word what the server itself refuses."""
        entry = request.account = Entry(request)
        route = find(request.method, request.path).route
        if route is not None and route.operation in _COUNTED:
            entry.operation = route.operation
        self.journal.begin(entry)
        answer = self._errors.answer(entry, refusal(status, message))
        answer.fields[:0] = [("X-Request-Id", entry.id), *_SAFE]
        if "origin" in request.fields:
            self._cors.mark(answer, request.fields["origin"])
        return answer

    def ended(self, request: Request, answer: Answer, complete: bool) -> None:
        """Count and log a request, now that its answer has left or broken off."""
        entry: Entry = request.account
        if not entry.status:
            entry.status = answer.status if complete else LEFT
        if entry.status == LEFT and request.stopping():
            entry.status = 503
        if self._proxies is not None and "x-forwarded-for" in request.fields:
            entry.client = self._proxies.client(entry.client, request.fields["x-forwarded-for"])
        self.journal.end(entry)

    # ------------------------------------------------------------ routes

    def _let_in(self, fields: Dict[str, str]) -> None:
        if self._authentication.required:
            self._authentication.check(fields)
            return
        self._hosts.check(fields)
        if "origin" in fields:
            self._cors.check(fields["origin"])

    def _refuse_websocket(self, request: Request) -> None:
        """Raise what a handshake (RFC 6455 §4.1) gets; another Upgrade may be passed over."""
        offered = [name.strip(" \t") for name in request.fields["upgrade"].lower().split(",")]
        if request.method == "GET" and "websocket" in offered:
            self._let_in(request.fields)
            raise not_served(426, "websocket_not_offered", "this gateway has no WebSockets; ask by HTTP")

    def _no_route(self, request: Request, entry: Entry, found: Found) -> Answer:
        if request.method == "OPTIONS":
            preflight = self._cors.preflight(request.fields)
            if preflight is not None:
                return preflight  # whatever the path: the page is to read the 404
        self._let_in(request.fields)
        if request.method == "OPTIONS" and found.methods:
            return Answer(204, [("Allow", ", ".join(found.methods))])
        if found.methods:
            allow = ", ".join(found.methods)
            message = "%s does not take %s; it takes %s" % (request.path, request.method, allow)
            answer = self._errors.answer(entry, not_served(405, "method_not_allowed", message))
            answer.fields.append(("Allow", allow))
            return answer
        message = "Route not found: %s" % request.path
        other = meant(request.method, request.path)
        if other is not None:
            message += "; did you mean %s?" % other
        raise NotFoundError(message, type="invalid_request_error", code="route_not_found")

    # ------------------------------------------------------------ operations

    def _operation(self, request: Request, entry: Entry) -> Answer:
        if "content-encoding" in request.fields:
            check_coding(request)
        data = request.body.read(self.settings.max_body)
        operation = OPERATIONS[entry.operation]
        try:
            body = read_object(data, self.settings.max_parsed)
        except APIStatusError as error:
            known = unread(operation, data) if error.status_code == 413 else None
            if known is None:
                raise
            body = known
        if "extra_params" in body:
            return self._carry_out(request, entry, operation, unwrapped(body), None)
        return self._carry_out(request, entry, operation, body, data)

    def _elsewhere(self, request: Request, entry: Entry) -> Answer:
        """Carry out what only other servers than vLLM have; a request that cannot be sent gets vLLM's answer."""
        try:
            return self._operation(request, entry)
        except BadRequestError as error:
            if error.url is not None:
                raise
        return self._unsupported(request, entry)

    def _query(self, request: Request, entry: Entry) -> Answer:
        return self._carry_out(request, entry, OPERATIONS[entry.operation], of_query(request.query), None)

    def _form(self, request: Request, entry: Entry) -> Answer:
        if "content-encoding" in request.fields:
            check_coding(request)
        from ..api import audio  # a gateway that is asked for chats alone does without these
        from ..http1.multipart import MultipartReader
        from ..http1.spool import spool

        reader = MultipartReader(request.fields.get("content-type", ""), spool=lambda: spool(_SPOOLED))
        try:
            for block in request.body.blocks(self.settings.max_body):
                reader.feed(block)
            return self._carry_out(
                request, entry, OPERATIONS[entry.operation], audio.from_form(reader.finish()), None)
        finally:
            reader.close()

    def _carry_out(
        self, request: Request, entry: Entry, operation: Operation, body: Dict[str, Any], data: Optional[bytes]
    ) -> Answer:
        asked_for = body.get("model")
        if asked_for is not None and not isinstance(asked_for, str):
            raise invalid("model must be a string", "model")
        model = self._bare(asked_for or "") or self._only_model(operation)
        operation.check(body, request.fields)
        body["model"] = entry.model = model
        others: List[str] = []
        if "fallbacks" in body:
            others, data = self._fallbacks(body.pop("fallbacks")), None
        if data is not None and model != asked_for:
            data = replaced(data, model)
        elif data is not None and not stands_once(data):
            data = None  # two readers might find two models in it
        if isinstance(body.get("stream"), str):
            body["stream"], data = body["stream"].strip().lower() not in _FALSE, None  # as vLLM reads it
        asked = Asked(
            self._provider_for(request, entry), body, data, entry.trace, partial(self._errors.words, entry)
        )
        if body.get("stream") and operation.stream is not None:
            models = Models(entry, asked, others, self._errors, request.gone)
            return Answer(200, _STREAM, Streamed(request, entry, self._errors, models, operation.stream))
        if others:
            answer = Models(entry, asked, others, self._errors, request.gone).carry_out(operation.answer)
        else:
            answer = operation.answer(asked)
        answer.fields = self._redaction.fields(self._headers.down(answer.fields))
        if operation.name in _HEARD and body.get("response_format") in ("text", "srt", "vtt"):
            return _transcript(answer)
        return answer

    def _only_model(self, operation: Operation) -> str:
        """Return the model that is meant where none is named, as vLLM's clients of some operations do."""
        if operation.without_model:
            found = self.provider.with_options(timeout=_READY_WITHIN).list_models()
            names = [str(model.get("id")) for model in found["data"]]
            if len(names) == 1 or (names and "key_statuses" not in found):
                return names[0]
        raise invalid("model is required", "model")

    def _provider_for(self, request: Request, entry: Entry) -> BaseOpenAIProvider:
        """Return the provider for one request: who waits for it, where it is noted, the headers that are passed on."""
        fields = request.fields
        headers: Dict[str, str] = {}
        self._headers.up(fields, headers)
        provider = self._provider
        if not _PINS.keys().isdisjoint(fields):
            pins: Dict[str, Any] = {_PINS[name]: fields[name] for name in _PINS if name in fields}
            provider = provider.with_options(**pins)
        return provider.for_request(request.gone, entry.trace, entry.id, headers)

    # ------------------------------------------------------------ models

    def _bare(self, name: str) -> str:
        """Return a model's name without one literal prefix before it: ``vllm//data/x`` is ``/data/x``."""
        for prefix in (self.settings.model_prefix, _PREFIX):
            if prefix and name.startswith(prefix):
                return name[len(prefix):]
        return name

    def _fallbacks(self, given: Any) -> List[str]:
        """Return the models to fall back to; what is none is passed over."""
        names = [self._bare(name) for name in given if isinstance(name, str)] if isinstance(given, list) else []
        return [name for name in names if name][:_MOST_FALLBACKS]

    def _listed(self, request: Request, entry: Entry) -> Dict[str, Any]:
        found = self._provider_for(request, entry).with_options(deadline=_LISTED_WITHIN).list_models()
        for model in found["data"]:
            model["id"] = self.settings.model_prefix + str(model.get("id"))
        for status in found.get("key_statuses") or ():
            if "error" in status:
                self._errors.reword(entry, status)
        return found

    def _models(self, request: Request, entry: Entry) -> Answer:
        found = self._listed(request, entry)
        if entry.anthropic:
            from ..api import messages

            return _json(200, messages.models(found["data"], of_query(request.query)))
        return _json(200, found)

    def _model(self, request: Request, entry: Entry) -> Answer:
        asked_for = find(request.method, request.path).rest
        names = [self.settings.model_prefix + self._bare(asked_for)]
        if asked_for.endswith("/"):
            names.append(names[0][:-1])
        listed = {model["id"]: model for model in reversed(self._listed(request, entry)["data"])}
        for name in names:
            model = listed.get(name)
            if model is not None:
                if entry.anthropic:
                    from ..api import messages

                    model = messages.model(model)
                return _json(200, model)
        raise NotFoundError(
            "The model `%s` does not exist." % asked_for, type="NotFoundError", param="model", code="model_not_found"
        )

    # ------------------------------------------------------------ the gateway itself

    def _unsupported(self, request: Request, entry: Entry) -> Answer:
        raise UnsupportedOperationError("%s is not supported by %s provider" % (entry.operation, self.provider.name))


def _json(status: int, payload: Dict[str, Any]) -> Answer:
    return Answer(status, _JSON, to_json(payload))


def _transcript(answer: Answer) -> Answer:
    """Return a transcript in a text format as OpenAI does, as text."""
    import json

    text = str(json.loads(answer.body).get("text", ""))  # type: ignore[arg-type]
    return Answer(200, [("Content-Type", "text/plain; charset=utf-8")], text.encode("utf-8", "replace"))


def create_app(settings: Optional[Settings] = None) -> Gateway:
    """Return the application for another WSGI server, by default set up by the environment and the config file.

    Raises `ConfigError`.
    """
    if settings is None:
        settings = read()
    return Gateway(settings)
