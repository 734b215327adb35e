"""Anthropic's Messages API: what a vLLM server cannot read in a request, errors, lists of models, streams."""

import json
import logging
from datetime import datetime, timezone
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..errors import BadRequestError
from ..sse import Event, encode
from .decoding import TokenUsage, payload_of
from .forwarding import Forwarding
from .replies import Message, MessageEvent

__all__ = ["MessageForwarding", "MessageReader", "error", "models", "prepare"]

_log = logging.getLogger("vllm_bridge")

# ---------------------------------------------------------------- requests

# Content blocks that vLLM 0.32 reads; it refuses a request with any other (messages_document).
_BLOCKS = frozenset((
    "text image tool_use tool_result tool_reference thinking redacted_thinking tool_addition tool_removal"
).split())
_TOLD = 10  # lines in the log for one request


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return a request without the tools and blocks that only Anthropic's own servers have; a warning names them.

    A tool without an ``input_schema`` is carried out by Anthropic (web search, code execution): vLLM refuses the
    request (messages_server_tool). The text of a document stays, as text.
    """
    left_out: Dict[str, None] = {}
    changed = {
        "tools": _tools(body.get("tools"), left_out),
        "messages": _messages(body.get("messages"), left_out),
        "system": _content(body.get("system"), left_out),
    }
    for name in list(left_out)[:_TOLD]:
        _log.warning("messages: %.200s is left out: a vLLM server does not have it", ascii(name)[1:-1])
    new = {name: value for name, value in changed.items() if value is not body.get(name)}
    if not new:
        return body
    body = {**body, **new}
    if new.get("tools") == []:
        del body["tools"]
        body.pop("tool_choice", None)
    return body


def _tools(tools: Any, left_out: Dict[str, None]) -> Any:
    if not isinstance(tools, list):
        return tools
    kept = []
    for tool in tools:
        if isinstance(tool, dict) and "input_schema" not in tool and isinstance(tool.get("type"), str):
            left_out["the tool %s" % tool["type"]] = None
        else:
            kept.append(tool)
    return tools if len(kept) == len(tools) else kept


def _messages(messages: Any, left_out: Dict[str, None]) -> Any:
    if not isinstance(messages, list):
        return messages
    new = []
    for message in messages:
        if isinstance(message, dict):
            content = _content(message.get("content"), left_out)
            if content is not message.get("content"):
                message = {**message, "content": content}
        new.append(message)
    return messages if all(now is then for now, then in zip(new, messages)) else new


def _content(content: Any, left_out: Dict[str, None]) -> Any:
    if not isinstance(content, list):
        return content
    new: List[Any] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if not isinstance(kind, str) or kind in _BLOCKS:
            new.append(block)
            continue
        text = _text(block)
        if text is None:
            left_out["a block of type %s" % kind] = None
        else:
            new.append({"type": "text", "text": text})
    return content if all(now is then for now, then in zip(new, content)) and len(new) == len(content) else new


def _text(block: Mapping[str, Any]) -> Optional[str]:
    """Return the text of a document or of a search result, ``None`` if it has none."""
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text" and isinstance(source.get("data"), str):
        return str(source["data"])
    parts = source.get("content") if isinstance(source, dict) else block.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else [parts]
    found = [text for text in texts if isinstance(text, str)]
    return "\n".join(found) if found and len(found) == len(texts) else None


# ---------------------------------------------------------------- what a gateway says itself

# https://docs.anthropic.com/en/api/errors
_TYPES = {
    401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error", 529: "overloaded_error",
}


def error(status: int, message: str, request_id: Optional[str] = None) -> Dict[str, Any]:
    """Return an error in Anthropic's shape, its type the one that goes with the status."""
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    told: Dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    if request_id is not None:
        told["request_id"] = request_id
    return told


def models(found: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> Dict[str, Any]:
    """Return a page of a list of models as Anthropic's API gives it: ``limit``, ``after_id``, ``before_id``."""
    page = [model(one) for one in found]
    names = [one["id"] for one in page]
    try:
        limit = int(query.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 1000:
        raise BadRequestError("limit must be a whole number from 1 to 1000", param="limit")
    if query.get("after_id") in names:
        page = page[names.index(query["after_id"]) + 1:]
    more = len(page) > limit
    if query.get("before_id") in names:
        page = page[:names.index(query["before_id"])]
        more = len(page) > limit
        page = page[-limit:]
    page = page[:limit]
    return {
        "data": page, "has_more": more, "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def model(found: Mapping[str, Any]) -> Dict[str, Any]:
    """Return a model as Anthropic's API describes one; what the server says beside that stays."""
    created = found.get("created")
    moment = datetime.fromtimestamp(created if isinstance(created, int) else 0, timezone.utc)
    name = str(found.get("id"))
    return {
        **found, "type": "model", "id": name, "display_name": name,
        "created_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


# ---------------------------------------------------------------- streams

_OTHERS = tuple(b"\n\nevent: " + name for name in (b"content_block_st", b"message_", b"ping", b"error"))
_LONG = 1024  # bytes: more than a few events, as a rule
_DELTA = b"event: content_block_delta\ndata: {"
_PASSED: FrozenSet[str] = frozenset(("content_block_start", "content_block_delta", "content_block_stop", "ping"))
STOP = encode('{"type":"message_stop"}', "message_stop")


def _plain(block: bytes, unmarked: bool = False) -> int:
    """Return how many events a block is if each is a delta as vLLM writes it (messages_stream); see `plain`."""
    events = block.count(_DELTA)
    alike = (
        block.startswith(_DELTA)
        and block.endswith(b"}\n\n")
        and block.count(b"}\n\n") == events
        and block.count(b"\n") == 3 * events
    )
    return events if alike else 0


def _clear(block: bytes) -> Tuple[int, int]:
    """Return how many bytes at the beginning of a block are deltas, and how many they are."""
    end = block.rfind(b"\n\n") + 2
    events = _plain(block[:end])
    return (end, events) if events else (0, 0)


def _runs(block: bytes) -> Iterator[bytes]:
    """Cut a block where deltas and other events follow each other."""
    starts = [] if block.startswith(_DELTA) else [0]
    for other in _OTHERS:
        at = block.find(other)
        while at >= 0:
            starts.append(at + 2)
            at = block.find(other, at + 2)
    begun = end = 0  # of the events that are no deltas
    for start in sorted(starts):
        if start > end:
            yield from (block[begun:end], block[end:start])
            begun = start
        end = block.find(b"\n\n", start) + 2
        if end < 2:
            end = len(block)
    yield from (block[begun:end], block[end:])


class MessageForwarding(Forwarding):
    """Read a stream of the Messages API that is handed on; see `Forwarding`."""

    _plain = staticmethod(_plain)
    _clear = staticmethod(_clear)

    def __init__(self, tokens: TokenUsage) -> None:
        super().__init__(1, True, tokens)

    def feed(self, block: bytes) -> bytes:
        """Return what a block completes; see `Forwarding`."""
        if self._held or self._decodes or len(block) < _LONG:
            return super().feed(block)
        out: List[bytes] = []
        for run in _runs(block):
            out.append(super().feed(run) if run else b"")
            if self.ended or self.failure is not None:
                break
        return b"".join(out)

    def finish(self) -> bytes:
        """Return the end mark."""
        return STOP

    def _handed_on(self, event: Event) -> bytes:
        if not event.data:
            return b""
        if event.data.strip() == "[DONE]":  # vLLM 0.11 wrote it after the last event
            self.ended = self.finished
            return b""
        if event.event not in _PASSED:
            payload = payload_of(event)
            kind = payload.get("type")
            self._tokens.take(payload.get("usage") or (payload.get("message") or {}).get("usage"))
            delta = payload.get("delta")
            if kind == "message_delta" and isinstance(delta, dict) and delta.get("stop_reason"):
                self.finished = True
            self.ended = kind == "message_stop"
        return encode(event.data, event.event)


class MessageReader:
    """The events of ``messages_stream``, as they are; the last is ``message_stop``."""

    def __init__(self) -> None:
        self.finished = False
        self._seen: List[Dict[str, Any]] = []  # folded only when somebody asks

    def feed(self, event: Event) -> Sequence[MessageEvent]:
        """Return the event; raise an error that the server reports inside the stream."""
        if not event.data:
            return ()
        payload = payload_of(event)
        self.finished = payload.get("type") == "message_stop"
        self._seen.append(payload)
        return (MessageEvent(payload),)

    def finish(self) -> Sequence[MessageEvent]:
        """Return nothing: no event is held back."""
        return ()

    def partial(self) -> Message:
        """Return the message as far as the events tell it."""
        return Message(folded(self._seen))


_PIECES = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def folded(events: Iterable[Mapping[str, Any]]) -> Dict[str, Any]:
    """Return the message that the events of a stream make, as far as they go."""
    message: Dict[str, Any] = {"content": []}
    inputs: Dict[int, str] = {}  # the JSON of each tool's input
    for event in events:
        kind, index, delta = event.get("type"), event.get("index"), event.get("delta") or {}
        blocks = message["content"]
        if kind == "message_start":
            message.update(event.get("message") or {}, content=[])
        elif kind == "content_block_start":
            blocks.append(dict(event.get("content_block") or {}))
        elif kind == "content_block_delta" and isinstance(index, int) and index < len(blocks):
            name = _PIECES.get(str(delta.get("type")))
            if name is not None:
                blocks[index][name] = blocks[index].get(name, "") + str(delta.get(name, ""))
            elif delta.get("type") == "input_json_delta":
                inputs[index] = inputs.get(index, "") + str(delta.get("partial_json", ""))
        elif kind == "message_delta":
            message.update(delta)
            message["usage"] = {**(message.get("usage") or {}), **(event.get("usage") or {})}
    for index, text in inputs.items():
        try:
            message["content"][index]["input"] = json.loads(text or "{}")
        except ValueError:
            pass  # cut by max_tokens: what came of it is no JSON
    return message
