"""Chat completion → Response (SPEC §5.2)."""

from typing import Any, Dict, List, NamedTuple, Optional

from ...errors import BridgeError, exceeds_context, http_status
from .context import ResponseContext
from .output import (
    CallIds,
    annotations_of,
    arguments_text,
    call_item,
    dicts,
    logprobs_of,
    message_item,
    reasoning_item,
    refusal_part,
    text_of,
    text_part,
    token_range,
    well_formed,
)

__all__ = ["Outcome", "choice_record", "error_outcome", "from_chat", "kept", "outcome", "render", "usage_of"]

Json = Dict[str, Any]

# What has its own place in a Response; every other field of the reply is kept as it came.
CHAT_FIELDS = frozenset(("id", "object", "created", "model", "choices", "usage", "service_tier"))
CHOICE_FIELDS = frozenset(("index", "message", "delta", "finish_reason", "logprobs"))
MESSAGE_FIELDS = frozenset(
    (
        "role",
        "content",
        "refusal",
        "annotations",
        "function_call",
        "tool_calls",
        "reasoning",
        "reasoning_content",
    )
)


def from_chat(completion: Json, context: Optional[ResponseContext] = None) -> Json:
    """Return the complete Response for a chat completion.

    Every choice yields its items, in order: reasoning, message, calls. Fields that only vLLM sends
    are kept where they are not null: those of the completion at the top, those of a choice and its
    message under ``chat_choices``, beside its ``index`` and ``finish_reason``.
    """
    context = context or ResponseContext()
    chat_id = chat_id_of(completion)
    ids = CallIds(chat_id)
    output: List[Json] = []
    records: List[Json] = []
    choices = sorted(dicts(completion.get("choices")), key=index_of)
    for choice in choices:
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        result = outcome([choice.get("finish_reason")])
        tokens = logprobs_of(choice.get("logprobs"))
        items = _Items(context, chat_id, index_of(choice), ids, len(output))
        placed = items.fill(message, tokens)
        if items.made and result.status != "completed":
            items.made[-1]["status"] = "incomplete"
        output += items.made
        extra = dict(kept(choice, CHOICE_FIELDS), **kept(message, MESSAGE_FIELDS))
        records.append(choice_record(index_of(choice), choice.get("finish_reason"), extra, tokens, placed))
    return render(
        context,
        completion,
        outcome([choice.get("finish_reason") for choice in choices]),
        output,
        usage_of(completion.get("usage")),
        dict(kept(completion, CHAT_FIELDS), chat_choices=records),
    )


class _Items:
    """The output items of one choice."""

    def __init__(self, context: ResponseContext, chat_id: str, choice: int, ids: CallIds, start: int) -> None:
        self.made: List[Json] = []
        self._choice = choice
        self._context = context
        self._chat_id = chat_id
        self._ids = ids
        self._start = start

    def fill(self, message: Json, tokens: List[Json]) -> int:
        """Make the items of a message and return how many of the tokens found a place in them."""
        thoughts = text_of(message.get("reasoning") or message.get("reasoning_content"))
        if thoughts:
            self.made.append(reasoning_item("rs_" + self._next(), thoughts, "completed"))
        text, refusal = text_of(message.get("content")), text_of(message.get("refusal"))
        annotations = annotations_of(message.get("annotations"))
        calls = dicts(message.get("tool_calls"))
        if isinstance(message.get("function_call"), dict):  # the form before tools
            calls = calls + [{"function": message["function_call"]}]
        placed: List[Json] = []
        parts = []
        if text or annotations:
            placed = token_range(tokens, text, thoughts, not calls and not refusal)
            parts.append(text_part(text, annotations, placed))
        if refusal:
            parts.append(refusal_part(refusal))
        if parts:
            self.made.append(message_item("msg_" + self._next(), parts, "completed"))
        for number, call in enumerate(calls):
            self._call(call, number)
        return len(placed)

    def _call(self, call: Json, number: int) -> None:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = arguments_text(function.get("arguments"))
        tool = self._context.tool(text_of(function.get("name")))
        status = "completed" if well_formed(arguments) else "incomplete"
        call_id = self._ids.take(call.get("id"), self._choice, number)
        self.made.append(call_item(tool, self._next(), call_id, arguments, status))

    def _next(self) -> str:
        return item_name(self._chat_id, self._start + len(self.made))


# ---------------------------------------------------------------- what a reply and a stream share


def chat_id_of(chat: Json) -> str:
    """Return the id of a completion or chunk; all ids of the Response are made of it."""
    chat_id = chat.get("id")
    return chat_id if isinstance(chat_id, str) and chat_id else "unnamed"


def item_name(chat_id: str, output_index: int) -> str:
    """Return an item's id without its prefix."""
    return "%s_item_%d" % (chat_id, output_index)


def index_of(choice: Json) -> int:
    """Return the index of a choice, 0 when it has none."""
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def kept(fields: Json, known: Any) -> Json:
    """Return the fields that have no place of their own and a value."""
    return {key: value for key, value in fields.items() if key not in known and value is not None}


def choice_record(index: int, finish_reason: Any, extra: Json, tokens: List[Json], placed: int) -> Json:
    """Return what ``chat_choices`` keeps of one choice.

    The logprobs stand here as well when some of them (of reasoning, of calls) are in no text part.
    """
    record = dict({"index": index, "finish_reason": finish_reason}, **extra)
    if placed < len(tokens):
        record["logprobs"] = {"content": tokens}
    return record


class Outcome(NamedTuple):
    """How a generation ended."""

    status: str
    incomplete_details: Optional[Json] = None
    error: Optional[Json] = None


def outcome(finish_reasons: List[Any]) -> Outcome:
    """Return how a reply of these choices ended: the worst of them decides."""
    for failed in ("abort", "error"):
        if failed in finish_reasons:
            # A server that is stopping ends its streams with abort (kill_sigterm_api_chat_stream).
            told = "the server stopped the generation (finish_reason '%s')" % failed
            return Outcome("failed", None, {"code": "server_error", "message": told})
    if "length" in finish_reasons:
        return Outcome("incomplete", {"reason": "max_output_tokens"})
    for reason in finish_reasons:
        if reason not in (None, "stop", "tool_calls", "function_call"):
            return Outcome("incomplete", {"reason": "content_filter"})
    return Outcome("completed")


def error_outcome(error: BridgeError) -> Outcome:
    """Return the outcome of a generation that an error ended.

    ``code`` is one of the words that the Responses API has for it; the server's own stands under
    ``upstream_code``.
    """
    status = http_status(error)
    code = "server_error"
    if status == 429:
        code = "rate_limit_exceeded"
    elif exceeds_context(error):
        code = "context_length_exceeded"
    elif status in (400, 404, 422):
        code = "invalid_prompt"
    shown: Json = {"code": code, "message": error.message, "type": error.type, "param": error.param}
    if error.code is not None:
        shown["upstream_code"] = error.code
    return Outcome("failed", None, shown)


def usage_of(usage: Any) -> Optional[Json]:
    """Return the usage of a chat reply under the names of the Responses API, or ``None``."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    seen, made = _details(usage, "prompt_tokens_details"), _details(usage, "completion_tokens_details")
    written = seen.get("created_cache_tokens", 0)  # vLLM's name for cache_write_tokens
    total = usage.get("total_tokens")
    known = ("prompt_tokens", "completion_tokens", "total_tokens") + _DETAILS
    return dict(
        kept(usage, known),
        input_tokens=prompt,
        input_tokens_details=dict({"cached_tokens": 0, "cache_write_tokens": written}, **seen),
        output_tokens=completion,
        output_tokens_details=dict({"reasoning_tokens": 0}, **made),
        total_tokens=total if isinstance(total, int) else prompt + completion,
    )


_DETAILS = ("prompt_tokens_details", "completion_tokens_details")


def _details(usage: Json, key: str) -> Json:
    details = usage.get(key)
    return kept(details, ()) if isinstance(details, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _seconds(created: Any) -> int:
    if isinstance(created, float) and created == created and abs(created) < 1e15:
        return int(created)
    return created if isinstance(created, int) else 0


def render(
    context: ResponseContext,
    chat: Json,
    result: Outcome,
    output: List[Json],
    usage: Optional[Json] = None,
    extra: Optional[Json] = None,
) -> Json:
    """Return a Response object with all of its fields; `chat` gives id, time and model."""
    model, tier = chat.get("model") or context.model, chat.get("service_tier")
    response: Json = {
        "id": "resp_" + chat_id_of(chat),
        "object": "response",
        "created_at": _seconds(chat.get("created")),
        "completed_at": None,  # a chat reply does not tell
        "status": result.status,
        "error": result.error,
        "incomplete_details": result.incomplete_details,
        "model": model if isinstance(model, str) else "",
        "output": output,
        "usage": usage,
    }
    response.update(context.echo)
    if isinstance(tier, str):
        response["service_tier"] = tier
    for key, value in (extra or {}).items():
        response.setdefault(key, value)
    return response
