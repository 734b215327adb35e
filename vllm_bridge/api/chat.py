"""vLLM's chat dialect: renamed parameters, the two names of reasoning, and chunks folded into a completion."""

import sys
import warnings
from types import FrameType
from typing import Any, Dict, List, Optional, Tuple

from ..errors import BadRequestError
from ..nesting import loads
from .folding import check_finish, copied, fold, index_of, joined, latest, objects, without_empty_ends
from .tool_calls import ToolCalls, arguments_text

__all__ = ["ChatAccumulator", "level_outside", "normalise", "normalise_chunk", "prepare", "rename_guided"]

# Removed in vLLM 0.12: a newer server answers 200 and constrains nothing (chat_guided_json_ignored).
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_CHANGED = frozenset(("reasoning", "reasoning_content", "tool_calls"))  # of a message, as it goes up


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the chat request that goes on the wire: the caller's own, in the names that vLLM reads today.

    ``reasoning`` and ``reasoning_content`` of assistant messages are mirrored onto each other, arguments ``""`` of
    their calls are ``{}``, ``guided_*`` become ``structured_outputs`` with a `DeprecationWarning`; all else stays.
    """
    body = dict(body) if _GUIDED.keys().isdisjoint(body) else rename_guided(body)
    messages: Any = body.get("messages")
    for message in messages if isinstance(messages, (list, tuple)) else ():
        if isinstance(message, dict) and not _CHANGED.isdisjoint(message):
            prepared = [_prepared(each) if isinstance(each, dict) else each for each in messages]
            if any(new is not old for new, old in zip(prepared, messages)):
                body["messages"] = prepared
            break
    return body


def _prepared(message: Dict[str, Any]) -> Dict[str, Any]:
    """Return a message as it goes up; the caller's own object if that is the same."""
    if (message.get("reasoning") is None) != (message.get("reasoning_content") is None):
        message = dict(message)
        _mirror(message)
    calls = message.get("tool_calls")
    if isinstance(calls, (list, tuple)) and any(_says_nothing(call) for call in calls):
        # vLLM parses the arguments of earlier calls and refuses "" (vllm-project/vllm#19419).
        calls = [
            {**call, "function": {**call["function"], "arguments": "{}"}} if _says_nothing(call) else call
            for call in calls
        ]
        message = {**message, "tool_calls": calls}
    return message


def _says_nothing(call: Any) -> bool:
    """Tell whether a call's arguments are null or blank: then it has none."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return False
    arguments = function["arguments"]
    return arguments is None or (isinstance(arguments, str) and not arguments.strip())


def rename_guided(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return a copy of the body in which ``guided_*`` parameters are ``structured_outputs``."""
    body = dict(body)
    if _GUIDED.keys().isdisjoint(body):
        return body
    for old in [name for name in _GUIDED if name in body]:
        value = body.pop(old)
        outputs = body.get("structured_outputs")
        if outputs is not None and not isinstance(outputs, dict):
            problem = "structured_outputs must be an object, got %.100r" % (outputs,)
            raise BadRequestError(problem, param="structured_outputs")
        body["structured_outputs"] = {_GUIDED[old]: value, **(outputs or {})}
        warnings.warn(
            "%s was removed in vLLM 0.12; it is sent as structured_outputs={%r: ...}" % (old, _GUIDED[old]),
            DeprecationWarning,
            stacklevel=level_outside(),
        )
    return body


def level_outside() -> int:
    """Return the `stacklevel` at which a warning of our caller's points at the line outside this package."""
    frame: Optional[FrameType] = sys._getframe(1)
    package = __name__.partition(".")[0]
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
        frame = frame.f_back
        level += 1
    return level


# ---------------------------------------------------------------- replies


def normalise(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Add to a chat completion, in place, what its readers expect: both names of reasoning, and flags on broken calls.

    Raises `InternalServerError` when the server aborted the generation.
    """
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("finish_reason") != "stop" or choice.get("stop_reason") is not None:
            check_finish(choice, payload)
            without_empty_ends(choice)
        message = choice.get("message")
        if isinstance(message, dict):
            if (message.get("reasoning") is None) != (message.get("reasoning_content") is None):
                _mirror(message)
            if message.get("tool_calls"):
                for call in objects(message["tool_calls"]):
                    _flag(call, choice.get("finish_reason"))
    return payload


def normalise_chunk(payload: Dict[str, Any]) -> bool:
    """Mirror the two names of reasoning in a chunk's deltas, in place; tell whether there was anything to do."""
    changed = False
    for choice in objects(payload.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict):
            changed = _mirror(delta) or changed
    return changed


def _mirror(message: Dict[str, Any]) -> bool:
    """Give a message both names of its reasoning: vLLM 0.16 renamed ``reasoning_content`` to ``reasoning``."""
    new, old = message.get("reasoning"), message.get("reasoning_content")
    if (new is None) == (old is None):
        return False
    message["reasoning"] = message["reasoning_content"] = old if new is None else new
    return True


def _flag(call: Dict[str, Any], reason: Any) -> None:
    """Say on a call that its arguments are no JSON object; they stay as the model wrote them.

    So vLLM hands them on (tests/data/vllm-0.32.0/chat_tools_bad_json.json). Blank ones mean that there are none, unless
    the answer's length ended before they came (chat_stream_tools_truncated.json there).
    """
    function = call.get("function")
    if not isinstance(function, dict) or (reason != "length" and _says_nothing(call)):
        return  # a call of another type, or of what takes nothing
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        return
    try:
        value = loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError) as error:
        call["arguments_error"] = "the arguments are no JSON: %s" % error
        return
    if not isinstance(value, dict):
        call["arguments_error"] = "the arguments are no JSON object"


# ---------------------------------------------------------------- chunks → completion


class ChatAccumulator:
    """Fold the chunks of a chat stream into the completion that the same request gives without streaming.

    `ToolCalls` tells calls apart: the first id and name stay, null arguments are ``""``, a missing id is made from the
    completion's.
    """

    def __init__(self) -> None:
        self._top: Dict[str, Any] = {}
        self._choices: Dict[int, _Choice] = {}

    def feed(self, chunk: Dict[str, Any]) -> None:
        """Add one chunk."""
        for key, value in chunk.items():
            if key != "choices":
                latest(self._top, key, value)
        for choice in objects(chunk.get("choices")):
            index = index_of(choice)
            if index not in self._choices:
                self._choices[index] = _Choice()
            self._choices[index].add(choice)

    def completion(self) -> Dict[str, Any]:
        """Return what has arrived so far as a chat completion."""
        made_of = str(self._top.get("id") or "")
        choices = [self._choices[index].folded(index, made_of) for index in sorted(self._choices)]
        return {**self._top, "object": "chat.completion", "choices": choices}


class _Choice:
    """One choice on its way; texts are kept in pieces, so that a long one is joined once."""

    def __init__(self) -> None:
        self._fields: Dict[str, Any] = {"finish_reason": None}
        self._message: Dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        self._texts: Dict[str, List[str]] = {"content": []}
        self._numbers = ToolCalls()
        self._calls: Dict[int, _Call] = {}

    def add(self, choice: Dict[str, Any]) -> None:
        for key, value in choice.items():
            if key == "delta":
                self._add_delta(value if isinstance(value, dict) else {})
            elif key != "index":
                fold(self._fields, key, value)

    def _add_delta(self, delta: Dict[str, Any]) -> None:
        for key, value in delta.items():
            if key == "tool_calls":
                for place, part in enumerate(objects(value)):
                    self._calls.setdefault(self._numbers.number(part, place), _Call()).add(part)
            elif key == "role":
                latest(self._message, key, value or None)
            elif isinstance(value, str):
                self._texts.setdefault(key, []).append(value)
            else:
                latest(self._message, key, value)

    def folded(self, index: int, made_of: str) -> Dict[str, Any]:
        message = {**self._message, **{key: joined(pieces) for key, pieces in self._texts.items()}}
        _mirror(message)
        if self._calls:
            message["tool_calls"] = [
                self._calls[number].folded("call_%s_%d_%d" % (made_of, index, number), self._fields["finish_reason"])
                for number in sorted(self._calls)
            ]
        if not message["content"] and (self._calls or message.get("reasoning")):
            message["content"] = None
        return {"index": index, "message": message, **copied(self._fields)}


class _Call:
    """One tool call on its way: a function's arguments, or a custom tool's input, come in pieces."""

    def __init__(self) -> None:
        self._fields: Dict[str, Any] = {}
        self._objects: Dict[str, Dict[str, Any]] = {}
        self._pieces: Dict[Tuple[str, str], List[str]] = {}

    def add(self, part: Dict[str, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict) and key not in ("id", "type"):
                self._add_object(key, value)
            elif key != "index" and not self._fields.get(key):
                self._fields[key] = value

    def _add_object(self, key: str, value: Dict[str, Any]) -> None:
        fields = self._objects.setdefault(key, {})
        for name, item in value.items():
            if name in ("arguments", "input"):
                self._pieces.setdefault((key, name), []).append(arguments_text(item))
            elif not fields.get(name):
                fields[name] = item

    def folded(self, id_if_none: str, reason: Any) -> Dict[str, Any]:
        call: Dict[str, Any] = {"id": None, "type": None, **self._fields}
        call["id"] = call["id"] or id_if_none
        call["type"] = call["type"] or "function"
        empty = {"function": {"name": None, "arguments": ""}} if call["type"] == "function" else {}
        for key, fields in {**empty, **self._objects}.items():
            call[key] = {**empty.get(key, {}), **fields}
        for (key, name), pieces in self._pieces.items():
            call[key][name] = joined(pieces)
        _flag(call, reason)
        return call
