"""What a Response is made of: its items, how it ended, its usage, and the fields of its request that it repeats."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ...errors import BridgeError, exceeds_context, http_status
from ..folding import is_finish
from .sealing import Seal

__all__ = [
    "CHAT_FIELDS", "Outcome", "ResponseContext", "ToolName", "chat_id_of", "error_event", "error_outcome", "kept",
    "outcome", "render", "usage_of",
]

Json = Dict[str, Any]

# What has its own place in a Response; every other field of the reply is kept as it came.
CHAT_FIELDS = frozenset(("id", "object", "created", "model", "choices", "usage", "service_tier"))

_ENCRYPTED = "reasoning.encrypted_content"
_OPEN = "reasoning.content"


class ToolName(NamedTuple):
    """What a chat function is called in the Responses request.

    ``kind`` is ``function``, ``custom`` or the type of a tool that the client runs.
    """

    kind: str
    name: str
    namespace: Optional[str] = None


class ResponseContext:
    """What a Response must know of the request that it answers.

    ``echo`` holds every field of a Response that the request alone decides; ``names`` maps the name
    of a chat function to the tool that it stands for, where the two differ; ``warnings`` tells, one
    sentence each, what of the request had no place in the chat request, ``dropped`` the types of tools.
    ``model`` stands in for a reply that names none. ``reasoning`` is the type of part that reasoning is told in,
    ``seal`` makes ``encrypted_content`` of it, where that is wanted. ``clock`` returns the seconds since the epoch.
    """

    def __init__(
        self,
        body: Optional[Json] = None,
        *,
        tools: Optional[List[Json]] = None,
        tool_choice: Any = None,
        names: Optional[Dict[str, ToolName]] = None,
        warnings: Optional[List[str]] = None,
        dropped: Optional[List[str]] = None,
        seal: Optional[Seal] = None,
        clock: Optional[Callable[[], float]] = None,
    ) -> None:
        body = body or {}
        include = body.get("include")
        include = include if isinstance(include, list) else []
        self.model: Any = body.get("model")
        self.names = names or {}
        self.warnings = warnings or []
        self.reasoning = "reasoning_text" if _OPEN in include else "summary_text"
        self.seal = seal if _ENCRYPTED in include else None
        self.clock = clock
        self.echo = _echo(body, tools or [], tool_choice or "auto", self.warnings)
        if dropped:
            self.echo["extra_fields"] = {"dropped_unsupported_tools": dropped}  # where Bifrost's clients look for it

    def tool(self, chat_name: str) -> ToolName:
        """Return the tool that a chat function stands for; by default the function of that name."""
        return self.names.get(chat_name) or ToolName("function", chat_name)


def _echo(body: Json, tools: List[Json], tool_choice: Any, warnings: List[str]) -> Json:
    # The Open Responses schema wants a number where OpenAI's own types allow null: its defaults.
    return {
        "instructions": body.get("instructions"),
        "tools": tools,
        "tool_choice": tool_choice,
        "parallel_tool_calls": _given(body, "parallel_tool_calls", True),
        "text": _text(body.get("text")),
        "reasoning": _reasoning(body.get("reasoning")),
        "temperature": _given(body, "temperature", 1.0),
        "top_p": _given(body, "top_p", 1.0),
        "presence_penalty": _given(body, "presence_penalty", 0.0),
        "frequency_penalty": _given(body, "frequency_penalty", 0.0),
        "top_logprobs": _given(body, "top_logprobs", 0),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "truncation": _given(body, "truncation", "disabled"),
        "service_tier": _given(body, "service_tier", "default"),
        "metadata": _metadata(body.get("metadata"), warnings),
        "safety_identifier": body.get("safety_identifier"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "user": body.get("user"),
        "previous_response_id": None,
        "background": False,
        "store": False,  # whatever was asked: nothing is stored, and the reply says so
    }


def _given(body: Json, key: str, default: Any) -> Any:
    value = body.get(key)
    return default if value is None else value


def _text(text: Any) -> Json:
    text = dict(text) if isinstance(text, dict) else {}
    wanted = text.get("format")
    if not isinstance(wanted, dict):
        text["format"] = {"type": "text"}
    elif wanted.get("type") == "json_schema":
        text["format"] = {"description": None, "strict": False, **kept(wanted, ())}
    return kept(text, ())


def _reasoning(reasoning: Any) -> Optional[Json]:
    return {"effort": None, "summary": None, **reasoning} if isinstance(reasoning, dict) else None


def _metadata(metadata: Any, warnings: List[str]) -> Json:
    shown: Json = dict(metadata) if isinstance(metadata, dict) else {}
    if warnings:
        shown["vllm_bridge_warning"] = "; ".join(warnings)[:512]  # the API's limit for one value
    return shown


# ---------------------------------------------------------------- how it ended


class Outcome(NamedTuple):
    """How a generation ended."""

    status: str
    incomplete_details: Optional[Json] = None
    error: Optional[Json] = None


def outcome(finish_reasons: List[Any]) -> Outcome:
    """Return how a reply of these choices ended: the worst of them decides."""
    for failed in ("abort", "error"):
        if failed in finish_reasons:
            # A server that is stopping ends its streams with abort
            # (tests/data/vllm-0.32.0/kill_sigterm_api_chat_stream.json).
            told = "the server stopped the generation (finish_reason '%s')" % failed
            return Outcome("failed", None, {"code": "server_error", "message": told})
    if "length" in finish_reasons:
        return Outcome("incomplete", {"reason": "max_output_tokens"})
    for reason in finish_reasons:
        if is_finish(reason) and reason not in ("stop", "tool_calls", "function_call"):
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


def error_event(error: BridgeError, number: int) -> Json:
    """Return the event that tells of an error under no Response: flat for OpenAI's types, nested for Open Responses."""
    shown: Json = {
        "type": error.type or "server_error",
        "code": None if error.code is None else str(error.code),
        "message": error.message,
        "param": error.param,
    }
    return {
        "type": "error", "sequence_number": number, "code": shown["code"], "message": error.message,
        "param": error.param, "error": shown,
    }


# ---------------------------------------------------------------- the Response


def kept(fields: Json, known: Any) -> Json:
    """Return the fields that have no place of their own and a value."""
    return {key: value for key, value in fields.items() if key not in known and value is not None}


def chat_id_of(chat: Json) -> str:
    """Return the id of a completion or chunk; all ids of the Response are made of it."""
    chat_id = chat.get("id")
    return chat_id if isinstance(chat_id, str) and chat_id else "unnamed"


def usage_of(usage: Any) -> Optional[Json]:
    """Return the usage of a chat reply under the names of the Responses API, or ``None``."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    seen, made = _details(usage, "prompt_tokens_details"), _details(usage, "completion_tokens_details")
    written = seen.get("created_cache_tokens", 0)  # vLLM's name for cache_write_tokens
    total = usage.get("total_tokens")
    known = ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details")
    return {
        **kept(usage, known),
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": written, **seen},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0, **made},
        "total_tokens": total if isinstance(total, int) else prompt + completion,
    }


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
    """Return a Response object with all of its fields; `chat` gives id, time and model.

    Without a clock a Response was completed when it was created: a chat reply tells no other time.
    """
    model, tier, created = chat.get("model") or context.model, chat.get("service_tier"), _seconds(chat.get("created"))
    now = created if context.clock is None else max(created, int(context.clock()))
    response: Json = {
        "id": "resp_" + chat_id_of(chat),
        "object": "response",
        "created_at": created,
        "completed_at": now if result.status == "completed" else None,
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
