"""The items of a Response's ``output``, and what they are made of (SPEC §5.2)."""

import json
from typing import Any, Dict, List, Optional, Set

from .context import ToolName

__all__ = [
    "CallIds",
    "annotations_of",
    "arguments_text",
    "call_item",
    "custom_input",
    "dicts",
    "logprobs_of",
    "message_item",
    "reasoning_item",
    "refusal_part",
    "text_of",
    "text_part",
    "token_range",
    "well_formed",
]

Json = Dict[str, Any]


def dicts(value: Any) -> List[Json]:
    """Return the objects of a list; nothing of anything else."""
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]


def text_of(content: Any) -> str:
    """Return the text of a chat content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in dicts(content) if isinstance(part.get("text"), str))


def arguments_text(arguments: Any) -> str:
    """Return the arguments of a call as text: exactly as received, or ``""`` for null."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


# ---------------------------------------------------------------- items and parts


def reasoning_item(item_id: str, text: str, status: str) -> Json:
    """Return a reasoning item: the text as it is, and again as its own summary.

    Clients read one of the two: OpenAI's the summary, those made for open models the content.
    """
    return {
        "type": "reasoning",
        "id": item_id,
        "summary": [{"type": "summary_text", "text": text}],
        "content": [{"type": "reasoning_text", "text": text}],
        "status": status,
    }


def message_item(item_id: str, parts: List[Json], status: str) -> Json:
    """Return the assistant's message."""
    return {"type": "message", "id": item_id, "role": "assistant", "content": parts, "status": status}


def text_part(text: str, annotations: List[Json], logprobs: List[Json]) -> Json:
    """Return a text part of a message."""
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def refusal_part(refusal: str) -> Json:
    """Return a refusal part of a message."""
    return {"type": "refusal", "refusal": refusal}


def call_item(tool: ToolName, item_id: str, call_id: str, arguments: str, status: str) -> Json:
    """Return a call of a function or of a custom tool; `item_id` without its prefix."""
    if tool.kind == "custom":
        item = {
            "type": "custom_tool_call",
            "id": "ctc_" + item_id,
            "call_id": call_id,
            "name": tool.name,
            "input": custom_input(arguments),
            "status": status,
        }
    else:
        item = {
            "type": "function_call",
            "id": "fc_" + item_id,
            "call_id": call_id,
            "name": tool.name,
            "arguments": arguments,
            "status": status,
        }
    if tool.namespace is not None:
        item["namespace"] = tool.namespace
    return item


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of the function that stood for it.

    Arguments that are not as asked for are the input themselves, so that nothing is lost.
    """
    parsed = _parsed(arguments)
    if isinstance(parsed, dict) and isinstance(parsed.get("input"), str):
        return str(parsed["input"])
    return arguments


def well_formed(arguments: str) -> bool:
    """Tell whether arguments are a JSON object, or nothing at all.

    vLLM 0.32.0 streams a call that it cannot parse as far as it got (chat_stream_tools_bad_json).
    """
    return not arguments.strip() or isinstance(_parsed(arguments), dict)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class CallIds:
    """Gives every call of a reply an id of its own: the server's, else one made of the chat id."""

    def __init__(self, chat_id: str) -> None:
        self._chat_id = chat_id
        self._given: Set[str] = set()

    def take(self, wanted: Any, choice: int, number: Any) -> str:
        """Return the id for the call `number` of a choice, `wanted` if it is one and is free."""
        call_id = wanted
        if not isinstance(wanted, str) or not wanted or wanted in self._given:
            call_id = "call_%s_%d_%s" % (self._chat_id, choice, number)
        self._given.add(call_id)
        return str(call_id)


# ---------------------------------------------------------------- annotations and logprobs


def annotations_of(annotations: Any) -> List[Json]:
    """Return the annotations of a chat message in the flat form of the Responses API."""
    flat = []
    for annotation in dicts(annotations):
        inner = annotation.get(str(annotation.get("type")))
        if isinstance(inner, dict):
            annotation = dict(inner, type=annotation["type"])
        flat.append(annotation)
    return flat


def logprobs_of(logprobs: Any) -> List[Json]:
    """Return the content tokens of a chat choice's ``logprobs``, every field of a token present."""
    if not isinstance(logprobs, dict):
        return []
    return [dict(_token(token), top_logprobs=_tops(token)) for token in dicts(logprobs.get("content"))]


def _tops(token: Json) -> List[Json]:
    return [_token(top) for top in dicts(token.get("top_logprobs"))]


def _token(token: Json) -> Json:
    return token if token.get("bytes") is not None else dict(token, bytes=[])


def token_range(tokens: List[Json], text: str, thoughts: str, to_end: bool) -> List[Json]:
    """Return the tokens that make up `text`, and with `to_end` those after it.

    vLLM counts the tokens of `thoughts` and of calls into the same list (WIRE.md §4). When the
    tokens do not spell the text, all of them are returned.
    """
    if not tokens:
        return tokens
    spelled = [str(token.get("token") or "") for token in tokens]
    joined = "".join(spelled)
    after = joined.find(thoughts) + len(thoughts) if thoughts in joined else 0
    start = joined.find(text, after)
    if start < 0:
        return tokens
    first = _reaching(spelled, start)
    if first is None:
        return tokens
    if to_end:
        return tokens[first:]
    return tokens[first:_reaching(spelled, start + len(text))]


def _reaching(spelled: List[str], offset: int) -> Optional[int]:
    """Return how many tokens spell the first `offset` characters, ``None`` if a token straddles it."""
    at = 0
    for position, piece in enumerate(spelled):
        if at >= offset:
            return position if at == offset else None
        at += len(piece)
    return len(spelled) if at == offset else None
