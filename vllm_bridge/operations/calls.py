"""How an operation becomes a call: its keywords the body of a request, the reply a record or a stream."""

from typing import Any, Callable, Dict, Mapping, Optional, Set, Tuple, Type, TypeVar, Union

from ..api.attributes import Whole, note
from ..api.body import merged, object_of
from ..api.forwarding import Forwarding
from ..api.records import Record
from ..client.call import Caller, Wire
from ..client.options import Options
from ..client.reply import Reply
from ..client.stream import Reader, Stream
from ..config.settings import ProviderConfig
from ..errors import APIStatusError, BadRequestError, BridgeError, ConfigError

__all__ = ["Calls", "ELSEWHERE", "MESSAGES", "OTHER_PATHS", "PATHS", "USUAL"]

PATHS = {
    "chat_completion": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "transcription": "/v1/audio/transcriptions",
    "responses": "/v1/responses",
    "chat_completion_batch": "/v1/chat/completions/batch",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "decision": "/v1/systemone",
    "generative_scoring": "/generative_scoring",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "tokenizer_info": "/tokenizer_info",
    "score": "/v1/score",
    "classify": "/classify",
    "pooling": "/pooling",
    "embed": "/v2/embed",
    "translation": "/v1/audio/translations",
    "speech": "/v1/audio/speech",
    "image_generation": "/v1/images/generations",
}
ELSEWHERE = frozenset(("speech", "image_generation"))  # routes of servers such as vLLM-Omni
MESSAGES = frozenset(("messages", "messages_stream", "count_tokens"))
# Where other servers, or other versions of vLLM, have the same.
OTHER_PATHS = {"rerank": "/rerank", "score": "/score", "decision": "/v1/decisions"}

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Self = TypeVar("Self", bound="Calls")

_ALSO_STREAMED = frozenset((
    "chat_completion", "text_completion", "responses", "transcription", "translation", "messages",
))

# Names that need no look: those of most calls.
USUAL = frozenset((
    "model", "messages", "prompt", "input", "query", "documents", "file", "max_tokens", "temperature", "seed", "tools",
    "extra_body", "extra_params",
))


class Calls:
    """What all operations of a provider share."""

    name: str
    config: ProviderConfig
    _caller: Caller
    _options: Options
    _shows_raw: bool
    _looked_at: Set[str]  # names of fields that need no look: see `USUAL`

    # What has to be done to a request body before it goes up, and to a reply before it is read, by operation.
    _prepare: Mapping[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}
    _adapt: Mapping[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}

    def _asked(self: Self, operation: str, wire: Any) -> Tuple[Self, Dict[str, Any]]:
        """Return who carries out an operation, and the request body of its keywords.

        That is this provider, or a copy with the settings of the call that are among them.
        """
        ours = self._looked_at.issuperset(wire) or self._options.verbatim  # a client sends fields, no settings
        call = self if ours else self._with_settings(operation, wire)
        return call, call._body(operation, wire)

    def _with_settings(self: Self, operation: str, wire: Dict[str, Any]) -> Self:
        """Take the settings out of an operation's keywords; warn of a name that is nearly that of a field."""
        from .described import fields_of
        from .fields import NO_FIELDS, settings_in, warn_of

        settings = settings_in(wire)
        new = wire.keys() - self._looked_at
        if new:
            warn_of(operation, new, fields_of(getattr(type(self), operation)))
            self._looked_at |= new - NO_FIELDS
        try:
            return self._with(settings) if settings else self
        except ConfigError as error:
            name = "extra_" if error.message.startswith(("headers", "query")) else ""  # as it is called here
            raise BadRequestError("%s: %s%s" % (operation, name, error.message)) from None

    def _with(self: Self, options: Dict[str, Any]) -> Self:
        """Return a copy with other settings for its calls."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = self._options.changed(**options)
        return other

    def _body(self, operation: str, wire: Dict[str, Any]) -> Dict[str, Any]:
        """Return the request body of an operation's fields."""
        if self._options.verbatim:
            body = {name: value for name, value in wire.items() if value is not None}
        else:
            body = merged(wire)
        if body.get("model", "") is None:  # a null in extra_body says nothing
            del body["model"]
            if wire.get("model") is not None:
                body["model"] = wire["model"]
        if operation == "messages_stream":
            body["stream"] = True
        elif operation in ("chat_completion_stream", "text_completion_stream"):
            body["stream"] = True
            options = body.get("stream_options", {})
            if type(options) is dict or isinstance(options, Mapping):  # the second is slow
                body["stream_options"] = {"include_usage": True, **options}
        elif body.get("stream") and operation in _ALSO_STREAMED:
            raise BadRequestError("%s cannot stream; call %s_stream" % (operation, operation), param="stream")
        prepare = self._prepare.get(operation)
        return body if prepare is None else prepare(body)

    def _record(self, record: Type[R], operation: str, body: Dict[str, Any]) -> R:
        reply = self._reply(operation, body, body.get("model"))
        try:
            payload = object_of(reply.body, operation)
            adapt = self._adapt.get(operation)
            result = record(payload if adapt is None else adapt(payload))
        except BridgeError as error:
            reply.tell(error)
            raise
        if self._options.trace is not None or self._shows_raw:
            return self._finished(result, body, reply)
        if isinstance(result, Whole):
            note(result, reply.came)
        return result

    def _reply(self, operation: str, body: Wire, model: Optional[str]) -> Reply:
        try:
            return self._caller.reply("POST", PATHS[operation], body, model, self._options)
        except APIStatusError as error:
            raise self._explained(operation, error) from None

    def _stream(
        self, operation: str, body: Wire, model: Optional[str], reader: Callable[[], Union[Reader[T], Forwarding]]
    ) -> Stream[T]:
        try:
            return self._caller.stream(PATHS[operation], body, model, self._options, reader)
        except APIStatusError as error:
            raise self._explained(operation, error) from None

    def _explained(self, operation: str, error: APIStatusError) -> BridgeError:
        """Return an error with what this kind of server means by it."""
        return error

    def _finished(self, record: R, body: Dict[str, Any], reply: Reply) -> R:
        if isinstance(record, Whole):
            note(record, reply.came)
        config, trace = self.config, self._options.trace
        if trace is not None:
            trace.take(record.get("usage"))
        if self._shows_raw:
            extra = record.setdefault("extra_fields", {})
            if not isinstance(extra, dict):
                return record  # the server has a field of that name itself
            if config.send_back_raw_request:
                extra["raw_request"] = body
            if config.send_back_raw_response:
                extra["raw_response"] = reply.body.decode("utf-8", "replace")
        return record
