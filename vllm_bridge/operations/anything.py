"""What has no operation of its own: any request, with the keys, retries and errors of all others."""

import re
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from ..api.body import decode, object_of
from ..api.decoding import AnyEvents
from ..api.records import Record
from ..client.reply import Reply
from ..client.stream import Stream
from ..errors import BadRequestError, UnsupportedOperationError
from .calls import Calls

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.parameters import CallSettings

__all__ = ["Anything"]

_METHOD = re.compile(r"[A-Z]+\Z")


class Anything(Calls):
    """Requests by method and path, and what only other servers than vLLM have."""

    def request(
        self, method: str, path: str, /, *, json: Optional[Mapping[str, Any]] = None, model: Optional[str] = None,
        **settings: "Unpack[CallSettings]"
    ) -> Any:
        """Send any request; return what comes back: JSON read, an object as a `Record`; text; else bytes.

        `path` begins with a slash; a query goes into ``extra_query``. `model`, else ``json["model"]``, says which
        servers it may go to. Settings and errors are those of every operation.

        >>> vllm.request("POST", "/tokenize", json={"prompt": "Hello there"}).count
        2
        """
        call, method, path, body, model = self._any(method, path, json, model, settings)
        reply = call._caller.reply(method, path, body, model, call._options)
        return reply.read(lambda: _content(reply))

    def stream_request(
        self, method: str, path: str, /, *, json: Optional[Mapping[str, Any]] = None, model: Optional[str] = None,
        **settings: "Unpack[CallSettings]"
    ) -> Stream[Any]:
        """Send any request whose answer is an event stream; its items are the events, read as JSON.

        ``"stream": true`` is added to a `json` that says nothing of it. An event that is no JSON is its text. The
        stream ends with ``[DONE]`` or where the server ends it. See `request`.

        >>> ask = {"messages": [{"role": "user", "content": "Hi"}]}
        >>> [chunk.object for chunk in vllm.stream_request("POST", "/v1/chat/completions", json=ask)][0]
        'chat.completion.chunk'
        """
        call, method, path, body, model = self._any(method, path, json, model, settings)
        if body is not None:
            body.setdefault("stream", True)
        stream: Stream[Any] = call._caller.stream(path, body, model, call._options, AnyEvents, method)
        return stream

    def _any(self, method: Any, path: Any, json: Any, model: Optional[str], settings: Any) -> Any:
        from .fields import settings_in

        if not isinstance(method, str) or not _METHOD.match(method.upper()):
            raise BadRequestError("method: expected one such as GET or POST, got %r" % (method,), param="method")
        if not isinstance(path, str) or path[:1] != "/" or path[:2] == "//" or re.search(r"[?#\x00-\x20\x7f]", path):
            raise BadRequestError(
                "path: expected one that begins with a slash, such as /v1/models, got %r; a query goes into extra_query"
                % (path,), param="path",
            )
        if json is not None and not isinstance(json, Mapping):
            raise BadRequestError("json: expected an object, got %s" % type(json).__name__, param="json")
        changes = settings_in(settings)
        if settings:
            name = min(settings)
            raise BadRequestError("%s is no setting of a call; fields of the request go into json" % name, param=name)
        body = None if json is None else dict(json)
        if model is None and body is not None:
            model = body.get("model")
        return (self._with(changes) if changes else self), method.upper(), path, body, model

    # ------------------------------------------------------------ where a server has them

    def speech(self, /, *args: Any, **wire: Any) -> bytes:
        """Return what a text sounds like: POST /v1/audio/speech, at servers that have it (vLLM-Omni).

        ``input``, ``voice``, ``model``, ``response_format``, ``speed``, ``instructions``. Raises
        `UnsupportedOperationError` where the server has none, as vLLM itself.
        """
        call, body = self._elsewhere("speech", "input", args, wire)
        reply: Reply = call._reply("speech", body, body.get("model"))
        return reply.body

    def image_generation(self, /, *args: Any, **wire: Any) -> Record:
        """Make images of a text: POST /v1/images/generations, at servers that have it (vLLM-Omni).

        ``prompt``, ``model``, ``n``, ``size``, ``response_format``. Raises `UnsupportedOperationError` where the server
        has none, as vLLM itself.
        """
        call, body = self._elsewhere("image_generation", "prompt", args, wire)
        reply: Reply = call._reply("image_generation", body, body.get("model"))
        record: Record = call._finished(Record(reply.read(lambda: object_of(reply.body))), body, reply)
        return record

    def _elsewhere(self, operation: str, main: str, args: Any, wire: Dict[str, Any]) -> Any:
        from .fields import settings_in

        if args or wire.get(main) is None:
            raise UnsupportedOperationError("%s is not supported by %s provider" % (operation, self.name))
        changes = settings_in(wire)
        return (self._with(changes) if changes else self), self._body(operation, wire)


def _content(reply: Reply) -> Any:
    kind = reply.content_type.partition(";")[0].strip().lower()
    if not reply.body:
        return None
    if kind == "application/json" or kind.endswith("+json"):
        found = decode(reply.body)
        return Record(found) if isinstance(found, dict) else found
    return reply.body.decode("utf-8", "replace") if kind.startswith("text/") else reply.body
