"""vLLM's chat dialect: renamed parameters, the two names of reasoning, and chunks folded into a completion."""

import json
import warnings
from typing import Any, Dict, List

from .errors import BadRequestError, InternalServerError

__all__ = [
    "ChatAccumulator",
    "check_finish",
    "fold",
    "latest",
    "normalise",
    "normalise_chunk",
    "objects",
    "prepare",
    "rename_guided",
]

# Removed in vLLM 0.12: a newer server answers 200 and constrains nothing (chat_guided_json_ignored).
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def prepare(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return the chat request that goes on the wire: the caller's own, in the names that vLLM reads today.

    ``reasoning`` and ``reasoning_content`` of assistant messages are mirrored onto each other, ``guided_*`` become
    ``structured_outputs`` with a `DeprecationWarning`; all else stays as it is (SPEC "We decided" 1, 6, 9).
    """
    body = rename_guided(body)
    messages = body.get("messages")
    if isinstance(messages, list) and any(_lacks_mirror(message) for message in messages):
        body["messages"] = [_mirrored(message) if _lacks_mirror(message) else message for message in messages]
    return body


def rename_guided(body: Dict[str, Any]) -> Dict[str, Any]:
    """Return a copy of the body in which ``guided_*`` parameters are ``structured_outputs``."""
    body = dict(body)
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
            stacklevel=5,
        )
    return body


# ---------------------------------------------------------------- replies


def normalise(payload: Dict[str, Any]) -> Dict[str, Any]:
    """Add to a chat completion, in place, what its readers expect: both names of reasoning, and flags on broken calls.

    Raises `InternalServerError` when the server aborted the generation.
    """
    for choice in objects(payload.get("choices")):
        check_finish(choice, payload)
        message = choice.get("message")
        if isinstance(message, dict):
            _mirror(message)
            for call in objects(message.get("tool_calls")):
                _flag(call)
    return payload


def normalise_chunk(payload: Dict[str, Any]) -> None:
    """Mirror the two names of reasoning in a chunk's deltas, in place."""
    for choice in objects(payload.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict):
            _mirror(delta)


def check_finish(choice: Dict[str, Any], payload: Any) -> None:
    """Raise `InternalServerError` if a choice was ended by the server's failure (WIRE.md §1.5: ``abort``)."""
    if choice.get("finish_reason") in ("abort", "error"):
        raise InternalServerError(
            "the server aborted the generation (finish_reason %r)" % choice["finish_reason"],
            type="aborted",
            code="abort",
            status_code=502,
            payload=payload,
        )


def objects(value: Any) -> List[Dict[str, Any]]:
    """Return the objects of a list; of anything else, and of any other item, nothing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _lacks_mirror(message: Any) -> bool:
    if not isinstance(message, dict):
        return False
    return (message.get("reasoning") is None) != (message.get("reasoning_content") is None)


def _mirrored(message: Dict[str, Any]) -> Dict[str, Any]:
    message = dict(message)
    _mirror(message)
    return message


def _mirror(message: Dict[str, Any]) -> None:
    """Give a message both names of its reasoning: vLLM 0.16 renamed ``reasoning_content`` to ``reasoning``."""
    new, old = message.get("reasoning"), message.get("reasoning_content")
    if new is None and old is not None:
        message["reasoning"] = old
    elif old is None and new is not None:
        message["reasoning_content"] = new


def _flag(call: Dict[str, Any]) -> None:
    """Say on a call that its arguments are no JSON object; they stay as the model wrote them (WIRE.md §4)."""
    function = call.get("function")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, dict):
        return
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else None
    except (ValueError, RecursionError) as error:
        call["arguments_error"] = "the arguments are no JSON: %s" % error
        return
    if not isinstance(value, dict):
        call["arguments_error"] = "the arguments are no JSON object"


# ---------------------------------------------------------------- chunks → completion


class ChatAccumulator:
    """Fold the chunks of a chat stream into the completion that the same request gives without streaming.

    Calls are told apart by ``(choice, index)``, the only thing every vLLM version sends: the first id and name stay,
    null arguments are ``""``, a missing id is made from the completion's.
    """

    def __init__(self) -> None:
        self._top: Dict[str, Any] = {}
        self._choices: Dict[int, Dict[str, Any]] = {}

    def feed(self, chunk: Dict[str, Any]) -> None:
        """Add one chunk."""
        for key, value in chunk.items():
            if key != "choices":
                latest(self._top, key, value)
        for choice in objects(chunk.get("choices")):
            index = choice.get("index") or 0
            folded = self._choices.get(index)
            if folded is None:
                folded = self._choices[index] = {"index": index, "message": _empty_message(), "calls": {}}
            for key, value in choice.items():
                if key == "delta":
                    _fold_delta(folded, value if isinstance(value, dict) else {})
                elif key != "index":
                    fold(folded, key, value)

    def completion(self) -> Dict[str, Any]:
        """Return what has arrived so far as a chat completion."""
        top = {"object": "chat.completion", **self._top, "choices": [self._choice(i) for i in sorted(self._choices)]}
        top["object"] = "chat.completion"
        return top

    def _choice(self, index: int) -> Dict[str, Any]:
        choice = {**self._choices[index]}
        calls = choice.pop("calls")
        message = choice["message"] = {**choice["message"]}
        if calls:
            message["tool_calls"] = [self._call(index, number, calls[number]) for number in sorted(calls)]
        if not message["content"] and (calls or message.get("reasoning")):
            message["content"] = None
        choice.setdefault("finish_reason", None)
        return choice

    def _call(self, choice: int, number: int, call: Dict[str, Any]) -> Dict[str, Any]:
        call = {"id": None, "type": "function", **call, "function": {**call["function"]}}
        if not call["id"]:
            call["id"] = "call_%s_%d_%d" % (self._top.get("id") or "", choice, number)
        _flag(call)
        return call


def _empty_message() -> Dict[str, Any]:
    return {"role": "assistant", "content": "", "refusal": None}


def _fold_delta(folded: Dict[str, Any], delta: Dict[str, Any]) -> None:
    message = folded["message"]
    for key, value in delta.items():
        if key == "tool_calls":
            for position, part in enumerate(objects(value)):
                index = part.get("index")
                _fold_call(folded["calls"], position if not isinstance(index, int) else index, part)
        elif key == "role":
            message["role"] = value or message["role"]
        elif isinstance(value, str) and isinstance(message.get(key), str):
            message[key] += value
        else:
            latest(message, key, value)
    _mirror(message)


def _fold_call(calls: Dict[int, Dict[str, Any]], index: int, part: Dict[str, Any]) -> None:
    call = calls.setdefault(index, {"function": {"name": None, "arguments": ""}})
    for key, value in part.items():
        if key == "function":
            function = value if isinstance(value, dict) else {}
            call["function"]["name"] = call["function"]["name"] or function.get("name")
            call["function"]["arguments"] += function.get("arguments") or ""
        elif key != "index" and not call.get(key):
            call[key] = value


def fold(target: Dict[str, Any], key: str, value: Any) -> None:
    """Join lists (token ids) and lists in objects (logprobs); of anything else the latest that is not null stays."""
    have = target.get(key)
    if isinstance(value, list) and isinstance(have, list):
        target[key] = have + value
    elif isinstance(value, dict) and isinstance(have, dict):
        target[key] = dict(have)
        for name, inner in value.items():
            fold(target[key], name, inner)
    else:
        latest(target, key, value)


def latest(target: Dict[str, Any], key: str, value: Any) -> None:
    """Set a value, unless it is null and something is there."""
    if value is not None or key not in target:
        target[key] = value
