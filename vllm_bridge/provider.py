"""The vocabulary of operations, and how a server with OpenAI's API carries them out."""

from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Tuple, Type, TypeVar, Union

from .api import completions
from .client.call import Caller, Wire
from .client.options import Options, Trace, joined
from .api.decoding import ChatChunks, CompletionChunks, ResponsesReader, TokenUsage, TranscriptionReader
from .api.forwarding import Forwarding
from .config.file import provider_config
from .config.settings import Key, NetworkConfig, ProviderConfig
from .errors import APIStatusError, BadRequestError, BridgeError, ConfigError
from .errors import ResponseDecodeError, UnsupportedOperationError
from .api.records import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    EmbeddingList,
    ModelList,
    Record,
    Rerank,
    Response,
    ResponseEvent,
    Transcription,
    TranscriptionEvent,
)
from .client.reply import Reply
from .http1.wait import Client
from .client.stream import Reader, Stream
from .api.body import Written, as_written, merged, object_of, to_json

__all__ = ["BaseOpenAIProvider", "unsupported"]

PATHS = {
    "chat_completion": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "transcription": "/v1/audio/transcriptions",
    "responses": "/v1/responses",
}

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Self = TypeVar("Self", bound="BaseOpenAIProvider")
Timeout = Union[float, Tuple[Optional[float], Optional[float]], None]


_USAGE = {"include_usage": True}


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


def unsupported(operation: str) -> Callable[..., NoReturn]:
    """Return a method for an operation that the server does not have; it never touches the network."""

    def refuse(self: "BaseOpenAIProvider", /, *args: Any, **wire: Any) -> NoReturn:
        raise UnsupportedOperationError("%s is not supported by %s provider" % (operation, self.name))

    refuse.__name__ = operation
    refuse.__doc__ = "Raise `UnsupportedOperationError`."
    return refuse


class BaseOpenAIProvider:
    """Every operation over HTTP as OpenAI's API has it; the ones that it lacks raise `UnsupportedOperationError`.

    Each keyword of an operation is a field of the request body: ``None`` means omit, ``extra_body={...}`` is merged
    into the body, and nothing is dropped. What is no field goes through `with_options`.

    All operations raise `APIConnectionError`, `APITimeoutError`, `APIStatusError` and its subclasses,
    `ResponseDecodeError`, and `BadRequestError` for what cannot be sent. Providers may be shared by threads.
    """

    name = "openai"

    # What has to be done to a request body before it goes up, and to a reply before it is read, by operation.
    _prepare: Mapping[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}
    _adapt: Mapping[str, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}
    # The bytes of a request in which nothing has to be done hold none of these: fields that are merged or left out.
    _marks: Tuple[bytes, ...] = (b'"extra_', b"null")

    def __init__(
        self,
        base_url: Optional[str] = None,
        *,
        api_key: Optional[str] = None,
        timeout: Union[Timeout, _Unset] = UNSET,
        max_retries: Optional[int] = None,
        headers: Optional[Mapping[str, str]] = None,
        session: Optional[Any] = None,
        config: Union[ProviderConfig, Mapping[str, Any], None] = None,
    ) -> None:
        """Give the short form, one server, or `config`, which can hold several; `timeout` and what follows fit both.

        `timeout` is seconds of silence, or (connect, read); ``None`` waits for ever. `session` is a
        ``requests.Session`` of the caller's, used as it is. Raises `ConfigError`.
        """
        if config is None:
            keys = [] if api_key is None else [Key(api_key, path="api_key")]
            config = ProviderConfig(NetworkConfig(base_url, path="VLLMProvider"), keys=keys)
        elif base_url is not None or api_key is not None:
            raise ConfigError("config: give base_url and api_key, or a config, not both")
        config = provider_config(config)
        network = config.network_config
        self.config = config
        self._shows_raw = config.send_back_raw_request or config.send_back_raw_response
        self._caller = Caller(config)
        self._options = Options(
            timeout=(network.connect_timeout_in_seconds, network.default_request_timeout_in_seconds),
            headers={},
            max_retries=network.max_retries,
            stream_idle_timeout=network.stream_idle_timeout_in_seconds,
        )
        given = {} if isinstance(timeout, _Unset) else {"timeout": timeout}
        self._options = self._options.changed(max_retries=max_retries, headers=headers, session=session, **given)

    def with_options(self: Self, **options: Any) -> Self:
        """Return a copy with other settings for its calls; connections and cooled servers are shared.

        `timeout`: seconds of silence between two bytes, or (connect, read). `stream_idle_timeout`: seconds between two
        events. `deadline`: seconds for a call in all, retries included. ``None`` lifts these limits. `max_retries`.
        `headers`: added to those there are. `cancel`: a `Cancellation`. `key_id`, `key_name`: use that key. `trace`: a
        `Trace` to fill in. `session`: a ``requests.Session`` to send by. For a gateway `client`, who must still be
        there (a socket, or a function that says who has left), `keep_alive_interval`: streams give comments, as bytes;
        after so many seconds of silence one of our own, with 0 the server's alone; and `direct`: what needs no proxy
        goes past requests.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options = self._options.changed(**options)
        return other

    def for_request(self: Self, client: Client, trace: Trace, headers: Dict[str, str]) -> Self:
        """Return a copy for one request of a gateway; its `headers` are such as HTTP allows, and win over all others.

        `client` and `trace` are those of `with_options`.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        if self._options.headers:
            headers = joined(self._options.headers, headers)
        other._options = self._options.replaced({"client": client, "trace": trace, "headers": headers})
        return other

    def __copy__(self: Self) -> Self:
        return self.with_options()

    def __getstate__(self) -> Dict[str, Any]:
        # Connections, and what is known of the servers, stay in their process.
        return {name: value for name, value in self.__dict__.items() if name != "_caller"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._caller = Caller(self.config)

    def cooling(self) -> List[Key]:
        """Return the keys whose server could not be reached and has not answered since."""
        return [key for key, _ in self._caller.fleet.cooling()]

    def tidy(self) -> None:
        """Close the idle connections that are too old or have ended; calls do so too."""
        self._caller.transport.tidy()

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

    # ------------------------------------------------------------ the operations there are

    def chat_completion(self, /, **wire: Any) -> ChatCompletion:
        """Complete a chat: ``messages``, ``model`` and any parameter of POST /v1/chat/completions."""
        return self._record(ChatCompletion, "chat_completion", self._body("chat_completion", wire))

    def chat_completion_stream(self, /, **wire: Any) -> Stream[ChatCompletionChunk]:
        """Complete a chat chunk by chunk; the last chunk carries ``usage``."""
        body = self._body("chat_completion_stream", wire)
        count = completions.expected_choices(body)
        return self._stream("chat_completion", body, body.get("model"), lambda: ChatChunks(count))

    def text_completion(self, /, **wire: Any) -> Completion:
        """Continue a text: ``prompt``, ``model`` and any parameter of POST /v1/completions."""
        return self._record(Completion, "text_completion", self._body("text_completion", wire))

    def text_completion_stream(self, /, **wire: Any) -> Stream[Completion]:
        """Continue a text chunk by chunk; the last chunk carries ``usage``."""
        body = self._body("text_completion_stream", wire)
        count = completions.expected_choices(body)
        return self._stream("text_completion", body, body.get("model"), lambda: CompletionChunks(count))

    def embedding(self, /, **wire: Any) -> EmbeddingList:
        """Embed ``input`` (a string, strings, token ids, lists of them) or ``messages``: POST /v1/embeddings."""
        return self._record(EmbeddingList, "embedding", self._body("embedding", wire))

    def rerank(self, /, **wire: Any) -> Rerank:
        """Score ``documents`` (strings, or objects with a ``text``) against ``query``, best first.

        With ``return_documents=True`` each result carries the caller's own document.
        """
        from .api.rerank import convert, prepare

        given = self._body("rerank", wire)
        body = prepare(given)
        reply = self._reranked(body)
        return self._finished(Rerank(reply.read(lambda: convert(object_of(reply.body), given))), body, reply)

    def _reranked(self, body: Dict[str, Any]) -> Reply:
        return self._reply("rerank", body, body.get("model"))

    def responses(self, /, **wire: Any) -> Response:
        """Answer ``input`` by the Responses API."""
        return self._record(Response, "responses", self._body("responses", wire))

    def responses_stream(self, /, **wire: Any) -> Stream[ResponseEvent]:
        """Answer ``input`` by the Responses API, event by event."""
        body = self._body("responses_stream", wire)
        body["stream"] = True
        return self._stream("responses", body, body.get("model"), ResponsesReader)

    def list_models(self, /) -> ModelList:
        """List the models of all servers, without their duplicates."""
        from .client.models import collect

        return collect(self._caller, self._options)

    def transcription(self, /, **wire: Any) -> Transcription:
        """Turn speech into text: ``file`` is a path, bytes, a binary file, or (filename, content, content type)."""
        from .api.audio import form, result

        given = self._body("transcription", wire)
        with form(given) as body:
            reply = self._reply("transcription", body, given.get("model"))
        style = given.get("response_format")
        payload = reply.read(lambda: result(reply.body, reply.content_type, style))
        return self._finished(Transcription(payload), {name: given[name] for name in given if name != "file"}, reply)

    def transcription_stream(self, /, **wire: Any) -> Stream[TranscriptionEvent]:
        """Turn speech into text piece by piece: ``transcript.text.delta`` events, then one ``transcript.text.done``."""
        from .api.audio import form

        given = self._body("transcription_stream", wire)
        given["stream"] = True
        with form(given) as body:
            return self._stream("transcription", body, given.get("model"), TranscriptionReader)

    # ------------------------------------------------------------ the operations there are not

    speech = unsupported("speech")
    speech_stream = unsupported("speech_stream")
    image_generation = unsupported("image_generation")
    image_generation_stream = unsupported("image_generation_stream")
    image_edit = unsupported("image_edit")
    image_edit_stream = unsupported("image_edit_stream")
    image_variation = unsupported("image_variation")
    video_generation = unsupported("video_generation")
    video_retrieve = unsupported("video_retrieve")
    video_download = unsupported("video_download")
    video_delete = unsupported("video_delete")
    video_list = unsupported("video_list")
    video_remix = unsupported("video_remix")
    ocr = unsupported("ocr")
    file_upload = unsupported("file_upload")
    file_list = unsupported("file_list")
    file_retrieve = unsupported("file_retrieve")
    file_delete = unsupported("file_delete")
    file_content = unsupported("file_content")
    batch_create = unsupported("batch_create")
    batch_list = unsupported("batch_list")
    batch_retrieve = unsupported("batch_retrieve")
    batch_cancel = unsupported("batch_cancel")
    batch_delete = unsupported("batch_delete")
    batch_results = unsupported("batch_results")
    container_create = unsupported("container_create")
    container_list = unsupported("container_list")
    container_retrieve = unsupported("container_retrieve")
    container_delete = unsupported("container_delete")
    container_file_create = unsupported("container_file_create")
    container_file_list = unsupported("container_file_list")
    container_file_retrieve = unsupported("container_file_retrieve")
    container_file_content = unsupported("container_file_content")
    container_file_delete = unsupported("container_file_delete")
    compaction = unsupported("compaction")
    count_tokens = unsupported("count_tokens")
    passthrough = unsupported("passthrough")
    passthrough_stream = unsupported("passthrough_stream")

    # ------------------------------------------------------------ for a gateway: the server's own bytes

    def forward(self, operation: str, body: Mapping[str, Any], data: Optional[bytes] = None) -> Reply:
        """Carry out ``chat_completion``, ``text_completion``, ``embedding`` or ``responses``; return bytes to hand on.

        They are the server's own unless something had to change. `data` is `body` as JSON, if there is that: it is
        sent as it is unless something has to change. Errors are raised like those of the operation itself.
        """
        wire = self._written(operation, body, data)
        reply = self._reply(operation, wire, wire.get("model"))
        is_object = reply.body[:1] == b"{" and reply.body[-1:] == b"}"
        if is_object and not self._shows_raw and not self._needs_reading(operation, reply.body):
            return reply
        return reply.read(lambda: self._rewritten(operation, wire, reply))

    def _rewritten(self, operation: str, wire: Dict[str, Any], reply: Reply) -> Reply:
        """Return a reply as its readers expect it; the same if that changes nothing."""
        adapt = self._adapt.get(operation, dict)
        try:
            after = self._finished(Record(adapt(object_of(reply.body))), wire, reply)
            return reply if after == object_of(reply.body) else reply._replace(body=to_json(after))
        except (BadRequestError, RecursionError) as error:  # nested deeply, or with a NaN, which JSON lacks
            raise ResponseDecodeError("the server's answer cannot be handed on: %s" % error) from None

    def forward_stream(self, operation: str, body: Mapping[str, Any], data: Optional[bytes] = None) -> Stream[bytes]:
        """Carry out a streaming ``chat_completion`` or ``text_completion``; the items are events as bytes to hand on.

        The last one is ``data: [DONE]``. The usage chunk goes out only if the body asks for it. `data`: see `forward`.
        """
        asked = body.get("stream_options")
        usage = isinstance(asked, Mapping) and bool(asked.get("include_usage"))
        wire = self._written(operation + "_stream", body, data)
        if asked and not usage and isinstance(wire.get("stream_options"), dict):
            wire = {**wire, "stream_options": {**wire["stream_options"], "include_usage": True}}
        count = completions.expected_choices(wire)
        tokens = self._options.trace or TokenUsage()
        return self._stream(operation, wire, wire.get("model"), lambda: Forwarding(count, usage, tokens))

    def _written(self, operation: str, body: Mapping[str, Any], data: Optional[bytes]) -> Dict[str, Any]:
        """Return the request body of an operation, with `data` in its place if that says the same."""
        streams = operation.endswith("_stream")
        if data is None or data[:1] != b"{" or data[1:2] == b"\0" or body.get("stream", False) is not streams:  # UTF-16
            return self._body(operation, dict(body))
        if streams and "stream_options" not in body:
            body = {**body, "stream_options": _USAGE}
            data = b'{"stream_options":{"include_usage":true},' + data[1:]
        if not any([mark in data for mark in self._marks]) and (not streams or body["stream_options"] == _USAGE):
            return Written(body, data)
        return as_written(self._body(operation, dict(body)), body, data)

    def _needs_reading(self, operation: str, body: bytes) -> bool:
        """Tell whether a reply may have to change, or to be refused, before it is handed on."""
        return False

    # ------------------------------------------------------------ how a call is made

    def _body(self, operation: str, wire: Dict[str, Any]) -> Dict[str, Any]:
        """Return the request body of an operation's keywords."""
        body = merged(wire)
        if body.get("model", "") is None:  # a null in extra_body says nothing
            del body["model"]
            if wire.get("model") is not None:
                body["model"] = wire["model"]
        if operation in ("chat_completion_stream", "text_completion_stream"):
            body["stream"] = True
            options = body.get("stream_options", {})
            if type(options) is dict or isinstance(options, Mapping):  # the second is slow
                body["stream_options"] = {"include_usage": True, **options}
        elif body.get("stream") and operation in ("chat_completion", "text_completion", "responses", "transcription"):
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
        return result if self._options.trace is None and not self._shows_raw else self._finished(result, body, reply)

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

    def _explained(self, operation: str, error: APIStatusError) -> APIStatusError:
        """Return an error with what this kind of server means by it."""
        return error

    def _finished(self, record: R, body: Dict[str, Any], reply: Reply) -> R:
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
