"""A provider: its settings, its operations, and a server's own bytes for a gateway."""

import os
from typing import (
    TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, NoReturn, Optional, Set, Tuple, TypeVar, Union,
)

from .api import completions
from .api.body import Written, as_written, object_of, to_json
from .api.decoding import TokenUsage
from .api.forwarding import Forwarding
from .api.records import ModelList, Record
from .client.authorization import Auth, Bearer, checked
from .client.call import Caller
from .client.cancellation import Cancellation
from .client.options import Options, Trace, joined
from .client.reply import Reply
from .client.stream import Stream
from .config.file import provider_config
from .config.settings import Key, NetworkConfig, ProviderConfig
from .config.validate import number, text
from .errors import BadRequestError, BridgeError, ConfigError, ResponseDecodeError
from .http1.wait import Client
from .operations.anthropic import Messages
from .operations.anything import Anything
from .operations.audio import Audio
from .operations.calls import MESSAGES, USUAL
from .operations.described import described
from .operations.generation import Generation
from .operations.pooling import Pooling
from .operations.tokens import Tokenizing
from .operations.unsupported import Unsupported

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .api.parameters import CallSettings

__all__ = ["BaseOpenAIProvider"]

Self = TypeVar("Self", bound="BaseOpenAIProvider")
Timeout = Union[float, Tuple[Optional[float], Optional[float]], None]


_NUMBERS = ("application/octet-stream", "audio/", "image/")  # vectors, speech
_USAGE = {"include_usage": True}
_CHECKED = 64 * 1024  # bytes of a reply up to which it costs little to see that it is one before it is handed on


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


class BaseOpenAIProvider(Generation, Messages, Pooling, Audio, Tokenizing, Anything, Unsupported):
    """Every operation over HTTP as OpenAI's API has it; the ones that it lacks raise `UnsupportedOperationError`.

    Each keyword of an operation is a field of the request body: ``None`` means omit, ``extra_body={...}`` is merged
    into the body, and nothing is dropped. What is no field goes through `with_options`.

    All operations raise `APIConnectionError`, `APITimeoutError`, `APIStatusError` and its subclasses,
    `ResponseDecodeError`, and `BadRequestError` for what cannot be sent. Providers may be shared by threads.
    """

    name = "openai"

    # The bytes of a request in which nothing has to be done hold none of these: fields that are merged or left out.
    _marks: Tuple[bytes, ...] = (b'"extra_', b"null")

    def __init__(
        self,
        base_url: Optional[str] = None,
        *others: str,
        api_key: Union[str, Callable[[], Optional[str]], None] = None,
        timeout: Union[Timeout, _Unset] = UNSET,
        max_retries: Optional[int] = None,
        headers: Optional[Mapping[str, str]] = None,
        auth: Auth = None,
        cert: Union[str, Tuple[str, str], None] = None,
        verify: Union[bool, str, None] = None,
        session: Optional[Any] = None,
        config: Union[ProviderConfig, Mapping[str, Any], None] = None,
    ) -> None:
        """Give the addresses of servers, or `config`; `timeout` and what follows fit both.

        A callable `api_key` is asked for the key before each attempt. `timeout` is seconds of silence, or (connect,
        read); ``None`` waits for ever. `auth`, `cert` and `verify` are what they are in requests: (user, password) or
        what changes a request; a client certificate's file, or (certificate, key); False, or the path of a bundle.
        `session` is a ``requests.Session`` of the caller's, used as it is; threads may share it as far as its
        adapters, hooks and auth allow, for requests promises nothing. Raises `ConfigError`.
        """
        if session is not None and (auth, cert, verify) != (None, None, None):
            raise ConfigError("session: has auth, cert and verify of its own; set them there")
        if callable(api_key) and auth is not None:
            raise ConfigError("api_key: give a callable, or auth, not both")
        if config is None:
            keys = [Key(api_key, path="api_key")] if api_key is not None and not callable(api_key) else []
            if others:
                base_url = ",".join([text(url, "VLLMProvider.base_url") for url in (base_url, *others)])
            config = ProviderConfig(NetworkConfig(base_url, path="VLLMProvider"), keys=keys)
        elif base_url is not None or api_key is not None:
            raise ConfigError("config: give base_url and api_key, or a config, not both")
        config = _secured(provider_config(config), cert, verify)
        network = config.network_config
        self.config = config
        self._shows_raw = config.send_back_raw_request or config.send_back_raw_response
        self._auth = Bearer(api_key) if callable(api_key) else checked(auth)
        self._caller = Caller(config, self._auth)
        self._looked_at: Set[str] = set(USUAL)
        self._options = Options(
            timeout=(network.connect_timeout_in_seconds, network.default_request_timeout_in_seconds),
            headers={},
            max_retries=network.max_retries,
            stream_idle_timeout=network.stream_idle_timeout_in_seconds,
        )
        given = {} if isinstance(timeout, _Unset) else {"timeout": timeout}
        self._options = self._options.changed(max_retries=max_retries, headers=headers, session=session, **given)

    def with_options(
        self: Self,
        /,
        *,
        timeout: Union[Timeout, _Unset] = UNSET,
        stream_idle_timeout: Union[float, None, _Unset] = UNSET,
        deadline: Union[float, None, _Unset] = UNSET,
        max_retries: Union[int, None, _Unset] = UNSET,
        headers: Union[Mapping[str, str], None, _Unset] = UNSET,
        query: Union[Mapping[str, object], None, _Unset] = UNSET,
        cancel: Union[Cancellation, None, _Unset] = UNSET,
        trace: Union[Trace, None, _Unset] = UNSET,
        key_id: Union[str, None, _Unset] = UNSET,
        key_name: Union[str, None, _Unset] = UNSET,
        session: Any = UNSET,
        client: Union[Client, _Unset] = UNSET,
        direct: Union[bool, _Unset] = UNSET,
        verbatim: Union[bool, _Unset] = UNSET,
        keep_alive_interval: Union[float, None, _Unset] = UNSET,
        **unknown: NoReturn,
    ) -> Self:
        """Return a copy with other settings for its calls; connections and cooled servers are shared.

        `timeout`: seconds of silence between two bytes, or (connect, read). `stream_idle_timeout`: seconds between two
        events. `deadline`: seconds for a call in all, retries included. ``None`` lifts these limits. `max_retries`.
        `headers`, and `query` of the URL: added to those there are. `cancel`: a `Cancellation`. `key_id`, `key_name`:
        use that key. `trace`: a `Trace` to fill in. `session`: a ``requests.Session`` to send by. For a gateway
        `client`, who must still be there (a socket, or a function that says who has left), `keep_alive_interval`:
        streams give comments, as bytes; after so many seconds of silence one of our own, with 0 the server's alone;
        `direct`: what needs no proxy goes past requests; and `verbatim`: ``extra_body`` is a field like any other.
        Raises `ConfigError`.
        """
        given = locals()
        del given["self"]
        given.update(given.pop("unknown"))
        return self._with({name: value for name, value in given.items() if value is not UNSET})

    def for_request(self: Self, client: Client, trace: Trace, request_id: str, headers: Dict[str, str]) -> Self:
        """Return a copy for one request of a gateway; its `headers` are such as HTTP allows, the provider's own win.

        `client` and `trace` are those of `with_options`; `request_id` is the ``X-Request-Id``.
        """
        other = object.__new__(type(self))
        other.__dict__ = dict(self.__dict__)
        if headers:
            headers = joined(headers, self._options.headers)
        other._options = self._options.replaced({
            "client": client, "trace": trace, "request_id": request_id, "headers": headers or self._options.headers,
        })
        return other

    def __copy__(self: Self) -> Self:
        return self._with({})

    def __getstate__(self) -> Dict[str, Any]:
        # Connections, and what is known of the servers, stay in their process.
        return {name: value for name, value in self.__dict__.items() if name != "_caller"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._caller = Caller(self.config, self._auth)

    def server_states(self) -> List[Dict[str, Any]]:
        """Ask every server, all at once and within two seconds, and return how each key stands.

        Each has ``key``; ``state`` (ready, away or sleeping); ``models``, the objects that are known of it, ``None`` if
        it has never named any; ``error``, why it did not name them now.
        """
        from .client.models import states

        return states(self._caller, self._options)

    def wait_ready(
        self, model: Optional[str] = None, *, timeout: Optional[float] = 600.0,
        tell: Optional[Callable[[str], Any]] = None,
    ) -> ModelList:
        """Wait until a server has `model`, or without one until every server is there; return the models there are.

        Asks once a second, for at most `timeout` seconds (``None``: for ever); `tell` is called with what is missing,
        in words, each time that this changes. Raises `APITimeoutError`, which says what was missing to the end, and at
        once `AuthenticationError` and `PermissionDeniedError`: waiting does not help against those.
        """
        from .client.readiness import wait_ready

        if timeout is not None:
            timeout = number(timeout, "wait_ready: timeout")
        return wait_ready(self._caller, self._options, model, timeout, tell)

    def loads(self) -> Dict[str, Optional[Dict[str, int]]]:
        """Return how many requests are ``running`` and ``queued`` at each server, by its URL (its ``/metrics``)."""
        from .client.each import loads

        return loads(self._caller, self._options)

    def limit(self, most: Optional[int]) -> None:
        """Give each server at most so many requests at once; beyond that calls raise `RateLimitError` at once."""
        self._caller.fleet.most = most

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Put others in the place of the keys, while calls run; each has a URL. What is known of servers stays."""
        self._caller.set_keys(keys)

    def succeed(self, before: "BaseOpenAIProvider") -> None:
        """Go on with what another provider knows of the servers, in its place; calls that it has begun may end."""
        self._caller.succeed(before._caller)

    def cooling(self) -> List[Key]:
        """Return the keys whose server could not be reached and has not answered since."""
        return [key for key, _ in self._caller.fleet.cooling()]

    def changes(self) -> Dict[Tuple[str, str], int]:
        """Return how often something has happened to a server, by its URL and what it was: away, back, ..."""
        return dict(self._caller.fleet.changes)

    def share(self) -> None:
        """Share what several servers have seen with the processes that are forked from this one from now on."""
        self._caller.fleet.share()

    def tidy(self) -> None:
        """Close the idle connections that are too old or have ended, as calls do; ask what several servers have now."""
        self._caller.tidy(self._options)

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        self._caller.transport.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        urls = ", ".join(sorted({str(key.url) for key in self._caller.fleet.keys}))
        return "%s(%s)" % (type(self).__name__, urls)

    @described()
    def list_models(self, /, **wire: "Unpack[CallSettings]") -> ModelList:
        """List the models of all servers, without their duplicates.

        >>> [model.id for model in vllm.list_models().data]
        ['echo']
        """
        from .client.models import collect

        call, fields = self._asked("list_models", wire)
        if fields:
            raise BadRequestError("list_models takes no fields, got: %s" % ", ".join(fields), param=min(fields))
        return collect(call._caller, call._options)

    def of_each(self, path: str) -> Dict[str, Any]:
        """GET a path of every server, all at once: the JSON of its answer, or the error, by the name of its key."""
        from .client.each import of_each

        return of_each(self._caller, path, self._options)

    # ------------------------------------------------------------ for a gateway: the server's own bytes

    def forward(self, operation: str, body: Mapping[str, Any], data: Optional[bytes] = None) -> Reply:
        """Carry out an operation that sends JSON; return bytes to hand on.

        They are the server's own unless something had to change. `data` is `body` as JSON, if there is that: it is
        sent as it is unless something has to change. Errors are raised like those of the operation itself.
        """
        wire = self._written(operation, body, data)
        reply = self._reply(operation, wire, wire.get("model"))
        content, tokens = reply.body, self._options.trace or TokenUsage()
        if reply.content_type.lower().startswith(_NUMBERS):
            return reply
        if self._shows_raw or self._needs_reading(operation, content):
            return reply.read(lambda: self._rewritten(operation, wire, reply))
        if len(content) > _CHECKED and content[:1] == b"{" and content[-1:] == b"}":
            tokens.read(content)
            return reply
        try:
            tokens.take(object_of(content).get("usage"))
        except BridgeError as error:
            reply.tell(error)
            raise
        return reply

    def _rewritten(self, operation: str, wire: Dict[str, Any], reply: Reply) -> Reply:
        """Return a reply as its readers expect it; the same if that changes nothing."""
        adapt = self._adapt.get(operation, dict)
        try:
            after = self._finished(Record(adapt(object_of(reply.body))), wire, reply)
            return reply if after == object_of(reply.body) else reply._replace(body=to_json(after))
        except (BadRequestError, RecursionError) as error:  # nested deeply, or with a NaN, which JSON lacks
            raise ResponseDecodeError("the server's answer cannot be handed on: %s" % error) from None

    def forward_stream(self, operation: str, body: Mapping[str, Any], data: Optional[bytes] = None) -> Stream[bytes]:
        """Carry out ``chat_completion``, ``text_completion`` or ``messages`` as a stream of bytes to hand on.

        Each item is whole events, the last of which is ``data: [DONE]``, or ``message_stop``. The usage chunk goes out
        only if the body asks for it. `data`: see `forward`.
        """
        if operation == "messages":
            return self._forwarded_messages(self._written("messages_stream", body, data))
        asked = body.get("stream_options")
        usage = isinstance(asked, dict) and bool(asked.get("include_usage"))
        wire = self._written(operation + "_stream", body, data)
        if asked and not usage and isinstance(wire.get("stream_options"), dict):
            wire = {**wire, "stream_options": {**wire["stream_options"], "include_usage": True}}
        count = completions.expected_choices(wire)
        tokens = self._options.trace or TokenUsage()
        return self._stream(operation, wire, wire.get("model"), lambda: Forwarding(count, usage, tokens))

    def _forwarded_messages(self, wire: Dict[str, Any]) -> Stream[bytes]:
        from .api.messages import MessageForwarding

        tokens = self._options.trace or TokenUsage()
        return self._stream("messages", wire, wire.get("model"), lambda: MessageForwarding(tokens))

    def _written(self, operation: str, body: Mapping[str, Any], data: Optional[bytes]) -> Dict[str, Any]:
        """Return the request body of an operation, with `data` in its place if that says the same."""
        streams = operation.endswith("_stream")
        if data is None or data[:1] != b"{" or data[1:2] == b"\0" or body.get("stream", False) is not streams:  # UTF-16
            return self._body(operation, dict(body))
        if operation in MESSAGES:
            return as_written(self._body(operation, dict(body)), body, data)
        if streams and "stream_options" not in body:
            body = {**body, "stream_options": _USAGE}
            data = b'{"stream_options":{"include_usage":true},' + data[1:]
        if max(map(data.rfind, self._marks)) < 0 and (not streams or body["stream_options"] == _USAGE):
            return Written(body, data)
        return as_written(self._body(operation, dict(body)), body, data)

    def _needs_reading(self, operation: str, body: bytes) -> bool:
        """Tell whether a reply may have to change, or to be refused, before it is handed on."""
        return False


def _secured(config: ProviderConfig, cert: Any, verify: Union[bool, str, None]) -> ProviderConfig:
    """Return the settings with a client certificate, and with how servers are checked."""
    changes: Dict[str, Any] = {} if cert is None else {"client_cert": cert}
    if verify is False:
        changes["insecure_skip_verify"] = True
    elif verify is not True and verify is not None:
        changes["ca_cert_pem"] = verify if isinstance(verify, str) else os.fspath(verify)
    return config.replace(network_config=config.network_config.replace(**changes)) if changes else config
