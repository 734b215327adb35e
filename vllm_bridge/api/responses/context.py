"""What a Response must know of the request that it answers."""

from typing import Any, Dict, List, NamedTuple, Optional

__all__ = ["ResponseContext", "ToolName"]


class ToolName(NamedTuple):
    """What a chat function is called in the Responses request.

    ``kind`` is ``function`` or ``custom``.
    """

    kind: str
    name: str
    namespace: Optional[str] = None


class ResponseContext:
    """The fields of a request that come back in its Response.

    ``echo`` holds every field of a Response that the request alone decides; ``names`` maps the name
    of a chat function to the tool that it stands for, where the two differ; ``warnings`` tells, one
    sentence each, what of the request had no place in the chat request. ``model`` stands in for a
    reply that names none.
    """

    def __init__(
        self,
        body: Optional[Dict[str, Any]] = None,
        *,
        tools: Optional[List[Dict[str, Any]]] = None,
        tool_choice: Any = None,
        names: Optional[Dict[str, ToolName]] = None,
        warnings: Optional[List[str]] = None,
    ) -> None:
        self.model: Any = (body or {}).get("model")
        self.names = names or {}
        self.warnings = warnings or []
        self.echo = _echo(body or {}, tools or [], tool_choice or "auto", self.warnings)

    def tool(self, chat_name: str) -> ToolName:
        """Return the tool that a chat function stands for; by default the function of that name."""
        return self.names.get(chat_name) or ToolName("function", chat_name)


def _echo(
    body: Dict[str, Any], tools: List[Dict[str, Any]], tool_choice: Any, warnings: List[str]
) -> Dict[str, Any]:
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


def _given(body: Dict[str, Any], key: str, default: Any) -> Any:
    value = body.get(key)
    return default if value is None else value


def _text(text: Any) -> Dict[str, Any]:
    text = dict(text) if isinstance(text, dict) else {}
    wanted = text.get("format")
    if not isinstance(wanted, dict):
        text["format"] = {"type": "text"}
    elif wanted.get("type") == "json_schema":
        text["format"] = dict({"description": None, "strict": False}, **_present(wanted))
    return _present(text)


def _reasoning(reasoning: Any) -> Optional[Dict[str, Any]]:
    if not isinstance(reasoning, dict):
        return None
    shown: Dict[str, Any] = {"effort": None, "summary": None}
    shown.update(reasoning)
    return shown


def _metadata(metadata: Any, warnings: List[str]) -> Dict[str, Any]:
    shown: Dict[str, Any] = dict(metadata) if isinstance(metadata, dict) else {}
    if warnings:
        shown["vllm_bridge_warning"] = "; ".join(warnings)[:512]  # the API's limit for one value
    return shown


def _present(fields: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
