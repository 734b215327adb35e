"""vLLM: only what it does differently from OpenAI."""

import logging
import os
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Tuple

from .api import chat
from .api import embeddings
from .api import completions
from .api import models
from .config.redaction import one_line
from .errors import APIStatusError, BridgeError, NotFoundError, UnsupportedOperationError, exceeds_context
from .client.call import Wire
from .operations.calls import ELSEWHERE, OTHER_PATHS, PATHS
from .provider import BaseOpenAIProvider
from .api.records import EmbeddingList, Response, ResponseEvent
from .client.reply import Reply
from .client.stream import Stream
from .api.body import object_of, to_json

__all__ = ["VLLMProvider"]

_TOLD = 10  # lines in the log on what was left out of one request
_FLOATS_FOR = 600.0  # seconds for which a model's vectors are not asked for as base64 once its server refused that

_PROCESS_KEY = os.urandom(32)  # of this process and its forks: seals reasoning where there is no API key

_log = logging.getLogger("vllm_bridge")


# What a bare 404 means beside that no model of the server is for it.
_HINTS = {
    "messages": "vLLM has it since 0.11.1",
    "count_tokens": "vLLM 0.32 has it",
    "tokenizer_info": "vLLM has it with --enable-tokenizer-info-endpoint",
}


def _messages(body: Dict[str, Any]) -> Dict[str, Any]:
    from .api.messages import prepare

    return prepare(body)


class VLLMProvider(BaseOpenAIProvider):
    """A vLLM server, or several: ``VLLMProvider("http://gpu:8000", api_key=..., timeout=(5, 600))``.

    Without a URL it is ``VLLM_BASE_URL``, else ``http://localhost:8000``; without a key ``VLLM_API_KEY``, else no key
    is sent.
    """

    name = "vllm"

    _prepare = {
        "chat_completion": chat.prepare, "chat_completion_stream": chat.prepare,
        "text_completion": completions.prepare, "text_completion_stream": completions.prepare,
        "messages": _messages, "messages_stream": _messages, "count_tokens": _messages,
    }
    _adapt = {"chat_completion": chat.normalise, "text_completion": completions.normalise}
    _marks = BaseOpenAIProvider._marks + (b'"guided_', b'"reasoning', b'"arguments"')

    def _embedded(self, body: Dict[str, Any]) -> EmbeddingList:
        """Ask for base64 unless the caller has said how, or the server has refused it."""
        lacking, name = self._caller.lacks_base64, str(body.get("model"))
        given, body = body, body if lacking.get(name, 0) > time.monotonic() else embeddings.prepare(body)
        if body is given:
            return self._record(EmbeddingList, "embedding", given)
        try:
            reply = self._reply("embedding", body, body.get("model"))
        except APIStatusError as error:
            if not embeddings.falls_back(error, body):
                raise
            lacking[name] = time.monotonic() + _FLOATS_FOR
            return self._record(EmbeddingList, "embedding", given)
        payload = reply.read(lambda: embeddings.converted(object_of(reply.body, "embedding")))
        return self._finished(EmbeddingList(payload), body, reply)

    def _response(self, body: Dict[str, Any]) -> Response:
        if self._natively():
            try:
                return super()._response(self._opened(body))
            except APIStatusError as error:
                self._go_over_chat(error)
        chat_body, reply, response = self._over_chat(body)
        return self._finished(response, chat_body, reply)

    def _response_events(self, body: Dict[str, Any]) -> Stream[ResponseEvent]:
        if self._natively():
            try:
                return super()._response_events(self._opened(body))
            except APIStatusError as error:
                self._go_over_chat(error)
        from .api.responses import from_chat, iter_events

        body.pop("stream", None)
        chat_body, context = self._to_chat(body)
        with _coded():
            stream = self._chunks(self._body("chat_completion_stream", chat_body))
        latest: Dict[str, Any] = {}

        def whole() -> Response:
            response = latest.get("response") or {}
            ended = response.get("status") not in (None, "queued", "in_progress")
            return Response(response if ended else from_chat(stream.partial(), context))

        return stream.converted(lambda chunks: _records(iter_events(chunks, context), latest), whole)

    def forward(self, operation: str, body: Mapping[str, Any], data: Optional[bytes] = None) -> Reply:
        """Carry out an operation as the base class does, and ``responses`` too, converted where it is not native."""
        if operation != "responses":
            return super().forward(operation, body, data)
        wire = self._body(operation, dict(body))
        if self._natively():
            try:
                opened = self._opened(wire)
                return super().forward(operation, body, data) if opened is wire else super().forward(operation, opened)
            except APIStatusError as error:
                self._go_over_chat(error)
        chat_body, reply, response = self._over_chat(wire)
        return reply._replace(body=to_json(self._finished(response, chat_body, reply)))

    def _over_chat(self, body: Dict[str, Any]) -> Tuple[Dict[str, Any], Reply, Response]:
        """Return the chat request for a Responses request, the server's reply to it, and the Response made of that."""
        from .api.responses import from_chat

        chat_body, context = self._to_chat(body)
        with _coded():
            reply = self._reply("chat_completion", chat_body, chat_body.get("model"))
        completion = reply.read(lambda: chat.normalise(object_of(reply.body, "chat_completion")))
        return chat_body, reply, Response(from_chat(completion, context))

    def _natively(self) -> bool:
        native = self.config.native_responses
        return native is True or (native == "auto" and not self._caller.lacks_responses)

    def _go_over_chat(self, error: APIStatusError) -> None:
        """Raise the error unless it says that the server has no Responses route, and ``auto`` allows another way."""
        missing = error.status_code in (405, 501) or (
            isinstance(error, NotFoundError) and error.payload == {"detail": "Not Found"}
        )
        if self.config.native_responses is True or not missing:
            raise error
        self._caller.lacks_responses = True

    def _to_chat(self, body: Dict[str, Any]) -> Tuple[Dict[str, Any], Any]:
        from .api.responses import to_chat

        chat_body, context = to_chat(body, self._seal(), time.time)
        for warning in context.warnings[:_TOLD]:
            _log.warning("responses: %s", one_line(warning, 300))
        return chat.prepare(chat_body), context

    def _opened(self, body: Dict[str, Any]) -> Dict[str, Any]:
        """Return a Responses request for the server's own route: it cannot read what is sealed here."""
        from .api.responses import without_seals

        return without_seals(body, self._seal())

    def _seal(self) -> Any:
        """Return what seals reasoning: all workers and machines with the same API keys read each other's."""
        from .api.responses import Seal

        secrets = [key.value.encode() for key in self._caller.fleet.keys if key.value]
        return Seal(secrets or [_PROCESS_KEY])

    def _needs_reading(self, operation: str, body: bytes) -> bool:
        if operation not in ("chat_completion", "text_completion"):
            return False
        named, empty = body.count(b'"reasoning'), body.count(b'"reasoning":null')
        reasoning = named != empty and named != empty + body.count(b'"reasoning_tokens"')
        # To find nothing takes rfind a third of the time of find, and of `in`.
        return reasoning or body.rfind(b'"finish_reason":"abort"') >= 0 or body.rfind(b'"finish_reason":"error"') >= 0

    def _reply(self, operation: str, body: Wire, model: Optional[str]) -> Reply:
        """Try a second path, where other deployments have one; the first error stands if it is not there either."""
        other = OTHER_PATHS.get(operation)
        if other is None:
            return super()._reply(operation, body, model)
        from .api.rerank import falls_back

        try:
            return self._caller.reply("POST", PATHS[operation], body, model, self._options)
        except APIStatusError as first:
            if not falls_back(first):
                raise self._explained(operation, first) from None
            try:
                return self._caller.reply("POST", other, body, model, self._options)
            except APIStatusError as second:
                if falls_back(second):
                    raise self._explained(operation, first) from None
                raise

    def _explained(self, operation: str, error: APIStatusError) -> BridgeError:
        """Say what a bare 404 means: the route is missing because no model of the server offers the operation."""
        missing = isinstance(error, NotFoundError) and error.payload == {"detail": "Not Found"}
        if operation in ELSEWHERE and (missing or error.code == "unsupported_operation"):  # a gateway's word
            return UnsupportedOperationError("%s is not supported by %s provider" % (operation, self.name))
        if not missing:
            return error
        if operation == "responses" and self.config.native_responses == "auto":
            return error  # which goes over chat then
        method = "GET" if operation == "tokenizer_info" else "POST"
        hint = _HINTS.get(operation)
        error.message = "this server does not offer %s (%s %s is not there%s)" % (
            operation, method, PATHS[operation], "; " + hint if hint else "")
        names = self._models_at(error.url)
        if names:
            error.message += "; its models are: %s" % ", ".join(names)
        error.type = error.type or "NotFoundError"
        return error

    def _models_at(self, url: Optional[str]) -> Any:
        """Return the ids of the models at the server that answered, as far as it tells."""
        from .client.models import PATH

        for key in self._caller.fleet.keys:
            if url is not None and key.url is not None and url.startswith(key.url + "/"):
                options = self._options.changed(timeout=(2.0, 2.0), trace=None)
                try:
                    reply = self._caller.get(PATH, key, options)
                    return [str(model.get("id")) for model in models.read(reply.body)["data"]]
                except BridgeError:
                    return []
        return []


def _records(events: Iterable[Any], latest: Dict[str, Any]) -> Iterator[ResponseEvent]:
    """Yield events as records; the last Response that one brings is noted."""
    for event in events:
        if isinstance(event, dict):
            if "response" in event:
                latest["response"] = event["response"]
            yield ResponseEvent(event)
        else:
            yield event  # a comment, as bytes


@contextmanager
def _coded() -> Iterator[None]:
    """Put the Responses API's own code on the refusal of a request that is too long; its message stays vLLM's."""
    try:
        yield
    except APIStatusError as error:
        if exceeds_context(error):
            error.code = "context_length_exceeded"
        raise
