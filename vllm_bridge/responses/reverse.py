"""The other direction: Response → chat completion, Responses events → chat chunks (SPEC §5.2)."""

from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from ..errors import APIStatusError, IncompleteStreamError, class_for_status, error_from_payload
from .context import ResponseContext
from .output import dicts, text_of
from .response import kept

__all__ = ["ChatChunks", "iter_chunks", "to_completion"]

Json = Dict[str, Any]

_RESPONSE_FIELDS = frozenset(ResponseContext().echo) | {
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "error",
    "incomplete_details",
    "model",
    "output",
    "usage",
    "chat_choices",
}
_USAGE_FIELDS = frozenset(
    ("input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details")
)


def to_completion(response: Json) -> Json:
    """Return the chat completion for a Response: one choice, whatever the number of items.

    Fields that are no part of the Responses API are kept at the top. Raise `APIStatusError` for a
    failed Response, for which chat has no form.
    """
    if response.get("status") == "failed":
        raise _failure(response.get("error"))
    choice = _choice(response)
    completion = _head(response, "chat.completion")
    completion["choices"] = [choice]
    usage = _usage(response.get("usage"))
    if usage is not None:
        completion["usage"] = usage
    for key, value in kept(response, _RESPONSE_FIELDS).items():
        completion.setdefault(key, value)
    return completion


def iter_chunks(events: Iterable[Json]) -> Iterator[Json]:
    """Yield the chat chunks of a Responses event stream.

    Raise `APIStatusError` where the stream tells of a failure, and `IncompleteStreamError` when it
    ends without a terminal event, as vLLM 0.32.0 ends its own when its engine dies
    (kill_engine_responses_stream).
    """
    machine = ChatChunks()
    for event in events:
        yield from machine.feed(event)
    machine.finish()


class ChatChunks:
    """Turns Responses events into chat chunks, all of choice 0.

    ``done`` tells whether the terminal event has come. The last chunk carries the finish reason,
    and the usage where it is known.
    """

    def __init__(self) -> None:
        self.done = False
        self._response: Json = {}
        self._role_sent = False
        self._sent: Dict[Any, str] = {}  # what kind of text went out for a part, by item and index
        self._calls: Dict[Any, int] = {}  # output_index → index of the call
        self._filled: Dict[int, bool] = {}  # index of the call → whether arguments went out
        self._partial: Json = {"role": "assistant", "content": None}

    def feed(self, event: Json) -> List[Json]:
        """Return the chunks of one event; none for an event that chat has no word for.

        Raise `APIStatusError` for ``error`` and ``response.failed``.
        """
        kind = event.get("type")
        if isinstance(event.get("response"), dict):
            self._response = event["response"]
        if self.done:
            return []
        if kind == "error":
            self.done = True
            inner = event.get("error")
            raise _failure(inner if isinstance(inner, dict) else event)
        if kind == "response.failed":
            self.done = True
            raise _failure(self._response.get("error"))
        if kind in ("response.completed", "response.incomplete"):
            return self._end()
        handler = _HANDLERS.get(str(kind))
        return [] if handler is None else getattr(self, handler)(event)

    def finish(self) -> None:
        """Raise `IncompleteStreamError` if the terminal event is missing."""
        if not self.done:
            raise IncompleteStreamError(
                "the stream of Responses events ended without a terminal event", partial=self._so_far()
            )

    # ------------------------------------------------------------ events

    def _text(self, event: Json) -> List[Json]:
        return self._piece(event, "content", event.get("delta"))

    def _text_done(self, event: Json) -> List[Json]:
        if self._seen(event, "content"):
            return []
        return self._piece(event, "content", event.get("text"))

    def _refusal(self, event: Json) -> List[Json]:
        return self._piece(event, "refusal", event.get("delta"))

    def _thought(self, event: Json) -> List[Json]:
        # The same reasoning may come twice, as a summary and as itself: the first of the two counts.
        kind = "summary" if "summary_index" in event else "content"
        if self._sent.setdefault(_place(event, "item_id"), kind) != kind:
            return []
        text = text_of(event.get("delta"))
        return self._delta({"reasoning": text, "reasoning_content": text}) if text else []

    def _item_added(self, event: Json) -> List[Json]:
        item = event.get("item")
        if not isinstance(item, dict) or item.get("type") not in ("function_call", "custom_tool_call"):
            return [] if self._role_sent else self._delta({})
        index = self._calls[_place(event, "output_index")] = len(self._calls)
        call = dict(_call(item, ""), index=index)
        return self._delta({"tool_calls": [call]})

    def _arguments(self, event: Json) -> List[Json]:
        return self._arguments_piece(event, event.get("delta"))

    def _arguments_done(self, event: Json) -> List[Json]:
        index = self._calls.get(_place(event, "output_index"))
        if index is None or self._filled.get(index):
            return []
        whole = event.get("input") if "input" in event else event.get("arguments")
        return self._arguments_piece(event, whole)

    # ------------------------------------------------------------ chunks

    def _arguments_piece(self, event: Json, text: Any) -> List[Json]:
        index = self._calls.get(_place(event, "output_index"))
        if index is None or not isinstance(text, str) or not text:
            return []
        self._filled[index] = True
        if "custom_tool_call_input" in str(event.get("type")):
            return self._delta({"tool_calls": [{"index": index, "custom": {"input": text}}]})
        return self._delta({"tool_calls": [{"index": index, "function": {"arguments": text}}]})

    def _piece(self, event: Json, field: str, text: Any) -> List[Json]:
        if not isinstance(text, str) or not text:
            return []
        self._sent[_place(event, "item_id", "content_index")] = field
        tokens = dicts(event.get("logprobs"))
        return self._delta({field: text}, {"content": tokens} if tokens else None)

    def _seen(self, event: Json, field: str) -> bool:
        return self._sent.get(_place(event, "item_id", "content_index")) == field

    def _delta(self, delta: Json, logprobs: Optional[Json] = None) -> List[Json]:
        chunks = []
        if not self._role_sent:
            self._role_sent = True
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        if delta:
            for field in ("content", "refusal", "reasoning"):
                if field in delta:
                    self._partial[field] = (self._partial.get(field) or "") + delta[field]
            chunks.append(self._chunk(delta, logprobs))
        return chunks

    def _end(self) -> List[Json]:
        self.done = True
        chunks = self._delta({})
        last = self._chunk({})
        ending = _ending(self._response)
        ending.pop("logprobs", None)  # they went out with their text
        last["choices"][0] = dict(last["choices"][0], **ending)
        usage = _usage(self._response.get("usage"))
        if usage is not None:
            last["usage"] = usage
        for key, value in kept(self._response, _RESPONSE_FIELDS).items():
            last.setdefault(key, value)
        return chunks + [last]

    def _chunk(self, delta: Json, logprobs: Optional[Json] = None) -> Json:
        chunk = _head(self._response, "chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}]
        return chunk

    def _so_far(self) -> Json:
        partial = _head(self._response, "chat.completion")
        partial["choices"] = [{"index": 0, "message": self._partial, "finish_reason": None}]
        return partial


_HANDLERS = {
    "response.output_text.delta": "_text",
    "response.output_text.done": "_text_done",
    "response.refusal.delta": "_refusal",
    "response.reasoning_summary_text.delta": "_thought",
    "response.reasoning_text.delta": "_thought",
    "response.reasoning.delta": "_thought",  # the name in the Open Responses schema
    "response.output_item.added": "_item_added",
    "response.function_call_arguments.delta": "_arguments",
    "response.function_call_arguments.done": "_arguments_done",
    "response.custom_tool_call_input.delta": "_arguments",
    "response.custom_tool_call_input.done": "_arguments_done",
}


# ---------------------------------------------------------------- what both share


def _place(event: Json, *names: str) -> Tuple[Any, ...]:
    """Return the fields that say which part an event is about; what is no name or number counts as missing."""
    values = [event.get(name) for name in names]
    return tuple(value if isinstance(value, (str, int)) else None for value in values)


def _head(response: Json, kind: str) -> Json:
    response_id = text_of(response.get("id"))
    chat_id = response_id[len("resp_"):] if response_id.startswith("resp_chatcmpl-") else response_id
    return {
        "id": chat_id,
        "object": kind,
        "created": response.get("created_at") or 0,
        "model": text_of(response.get("model")),
    }


def _choice(response: Json) -> Json:
    texts: List[str] = []
    refusals: List[str] = []
    thoughts: List[str] = []
    calls: List[Json] = []
    tokens: List[Json] = []
    annotations: List[Json] = []
    for item in dicts(response.get("output")):
        kind = item.get("type")
        if kind == "message":
            for part in dicts(item.get("content")):
                if part.get("type") == "refusal":
                    refusals.append(text_of(part.get("refusal")))
                else:
                    texts.append(text_of(part.get("text")))
                    tokens += dicts(part.get("logprobs"))
                    annotations += [_nested(annotation) for annotation in dicts(part.get("annotations"))]
        elif kind == "reasoning":
            # content is the reasoning itself, summary a digest of it.
            thoughts.append(text_of(item.get("content")) or text_of(item.get("summary")))
        elif kind in ("function_call", "custom_tool_call"):
            calls.append(_call(item, text_of(item.get("input" if "input" in item else "arguments"))))
    message: Json = {
        "role": "assistant",
        "content": "".join(texts) or None,
        "refusal": "".join(refusals) or None,
    }
    if thoughts:
        message["reasoning"] = message["reasoning_content"] = "".join(thoughts)
    if annotations:
        message["annotations"] = annotations
    if calls:
        message["tool_calls"] = calls
    logprobs = {"content": tokens} if tokens else None
    return dict({"index": 0, "message": message, "logprobs": logprobs}, **_ending(response))


def _nested(annotation: Json) -> Json:
    kind = annotation.get("type")
    return {"type": kind, str(kind): {key: annotation[key] for key in annotation if key != "type"}}


def _call(item: Json, text: str) -> Json:
    call_id, name = item.get("call_id") or item.get("id"), item.get("name")
    if item.get("type") == "custom_tool_call":
        return {"id": call_id, "type": "custom", "custom": {"name": name, "input": text}}
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _ending(response: Json) -> Json:
    """Return the finish reason of a Response, and what its only choice said besides."""
    records = dicts(response.get("chat_choices"))
    said = dict(records[0]) if len(records) == 1 else {}
    said.pop("index", None)
    if said.get("finish_reason") is None:
        said["finish_reason"] = _finish_reason(response)
    return said


def _finish_reason(response: Json) -> Optional[str]:
    status = response.get("status")
    if status == "incomplete":
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        return "content_filter" if reason == "content_filter" else "length"
    if status not in (None, "completed"):
        return None  # queued, in_progress, cancelled: not at an end that chat knows
    kinds = [item.get("type") for item in dicts(response.get("output"))]
    return "tool_calls" if "function_call" in kinds or "custom_tool_call" in kinds else "stop"


def _usage(usage: Any) -> Optional[Json]:
    if not isinstance(usage, dict):
        return None
    seen, made = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    if isinstance(seen, dict) and "created_cache_tokens" in seen:  # one count under two names
        seen = {key: value for key, value in seen.items() if key != "cache_write_tokens"}
    return dict(
        kept(usage, _USAGE_FIELDS),
        prompt_tokens=usage.get("input_tokens") or 0,
        completion_tokens=usage.get("output_tokens") or 0,
        total_tokens=usage.get("total_tokens") or 0,
        prompt_tokens_details=seen if isinstance(seen, dict) else None,
        completion_tokens_details=made if isinstance(made, dict) else None,
    )


def _failure(error: Any) -> APIStatusError:
    """Return the error that a failed Response or an ``error`` event tells of."""
    told = dict(error) if isinstance(error, dict) else {}
    code = told.get("code")
    told["message"] = text_of(told.get("message")) or "the server reported a failed response without saying why"
    if "upstream_code" in told:
        return error_from_payload({"error": dict(told, code=told["upstream_code"])})
    if not isinstance(code, str) or code.isdigit():
        return error_from_payload({"error": told})
    status = 500
    if code == "rate_limit_exceeded":
        status = 429
    elif code.startswith(("invalid_", "image_", "unsupported_", "empty_")):
        status = 400
    fields: Json = {"type": text_of(told.get("type")) or None, "param": text_of(told.get("param")) or None}
    return class_for_status(status)(told["message"], payload={"error": error}, code=code, status_code=status, **fields)
