"""Responses input items → chat messages."""

import json
from typing import Any, Dict, List, Optional

from ...errors import BadRequestError
from ..tool_calls import arguments_text
from .client_tools import arguments_of, kind_of_call, kind_of_output, output_of
from .output import parsed_arguments
from .sealing import Seal
from .tools import Toolbox, chat_name

__all__ = ["Conversation"]

_TEXT = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


class Conversation:
    """Folds input items into chat messages.

    Chat templates differ on a system message after the first place, so all of them are gathered
    into one at the start. What the assistant said, thought and called in one go becomes one message.
    """

    def __init__(self, toolbox: Toolbox, seal: Optional[Seal] = None) -> None:
        self.warnings: List[str] = []
        self._toolbox = toolbox
        self._seal = seal
        self._system: List[Any] = []  # contents: a string, or a list of chat parts
        self._messages: List[Dict[str, Any]] = []
        self._turn: Optional[_Turn] = None
        self._call_ids: Dict[str, str] = {}  # by the ids of the items of the calls

    def instruct(self, instructions: str) -> None:
        """Put instructions into the system message."""
        self._system.append(instructions)

    def add(self, items: List[Any]) -> None:
        """Take in the items of a request, in order."""
        for position, item in enumerate(items):
            where = "input[%d]" % position
            if not isinstance(item, dict):
                raise BadRequestError("%s must be an object with a type or a role" % where, param=where)
            self._add(item, where)

    def messages(self) -> List[Dict[str, Any]]:
        """Return the chat messages of all items taken in."""
        self._close_turn()
        if not self._system:
            return self._messages
        return [{"role": "system", "content": _joined(self._system)}] + self._messages

    def _add(self, item: Dict[str, Any], where: str) -> None:
        kind = item.get("type")
        if kind == "message" or (kind is None and "role" in item):
            self._message(item, where)
        elif kind == "function_call":
            name = chat_name(_string(item, "name", where), item.get("namespace"))
            self._call(item, where, name, self._arguments(item))
        elif kind == "custom_tool_call":
            name = chat_name(_string(item, "name", where), item.get("namespace"))
            self._call(item, where, name, json.dumps({"input": item.get("input") or ""}, ensure_ascii=False))
        elif kind in _OUTPUTS:
            self._output(item, where, item.get("output"))
        elif kind == "reasoning":
            self._reasoning(item)
        elif kind == "additional_tools":
            self._toolbox.add_all(item.get("tools"), where + ".tools")
        elif kind == "item_reference":
            raise BadRequestError(
                "%s refers to a stored item, and this server keeps none: send the item itself" % where,
                param=where,
            )
        elif kind_of_call(item):
            tool = str(kind_of_call(item))
            self._call(item, where, self._toolbox.client_name(tool), arguments_of(tool, item, where))
        elif kind_of_output(item):
            if kind == "tool_search_output":
                self._toolbox.add_all(item.get("tools") or [], where + ".tools")
            self._output(item, where, output_of(str(kind_of_output(item)), item))
        elif isinstance(kind, str):
            self.warnings.append("input item '%s' was left out: a chat request has no place for it" % kind)
        else:
            raise BadRequestError("%s needs a type or a role" % where, param=where + ".type")

    def _message(self, item: Dict[str, Any], where: str) -> None:
        role = item.get("role")
        if role == "assistant":
            self._assistant(item, where)
            return
        content = _content(item.get("content"), where + ".content")
        if role in ("system", "developer"):
            self._system.append(content)
            return
        self._close_turn()
        message = {"role": role, "content": content}
        if isinstance(item.get("name"), str):
            message["name"] = item["name"]
        self._messages.append(message)

    def _assistant(self, item: Dict[str, Any], where: str) -> None:
        content = item.get("content")
        refusal = None
        if isinstance(content, list):
            refused = [part["refusal"] for part in content if _is_refusal(part)]
            refusal = "".join(refused) if refused else None
            content = [part for part in content if not _is_refusal(part)]
        turn = self._turn
        if turn is None or (turn.spoke and not turn.calls):
            turn = self._open_turn()
        turn.say(_content(content, where + ".content"), refusal)

    def _reasoning(self, item: Dict[str, Any]) -> None:
        # What is sealed is the whole, content the reasoning itself and summary a digest of it: one is enough.
        sealed = self._seal.opened(item.get("encrypted_content")) if self._seal is not None else None
        text = sealed or _texts(item.get("content")) or _texts(item.get("summary"))
        if not text:
            return  # another server's encrypted_content alone
        turn = self._turn
        if turn is None or (turn.spoke and not turn.calls):
            turn = self._open_turn()
        turn.thoughts.append(text)

    def _call(self, item: Dict[str, Any], where: str, name: str, arguments: str) -> None:
        call_id = _string(item, "call_id", where)
        if isinstance(item.get("id"), str):
            self._call_ids[item["id"]] = call_id
        turn = self._turn or self._open_turn()
        turn.calls.append(
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        )

    def _output(self, item: Dict[str, Any], where: str, output: Any) -> None:
        if item["type"] == "local_shell_call_output" and "call_id" not in item:
            # OpenAI's reference has the call's id here under the name id.
            call_id = _string(item, "id", where)
            call_id = self._call_ids.get(call_id, call_id)
        else:
            call_id = _string(item, "call_id", where)
        self._close_turn()
        content = _content(output, where + ".output")
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _arguments(self, item: Dict[str, Any]) -> str:
        """Return the arguments of an earlier call, ``{}`` for none and for broken ones.

        vLLM refuses a talk in which they are no JSON up to 0.25, and puts ``{}`` in their place since.
        """
        arguments = arguments_text(item.get("arguments"))
        if parsed_arguments(arguments) is None:
            told = "the arguments of the call '%s' are no JSON object and were left out: %.60s"
            self.warnings.append(told % (item.get("call_id"), arguments))
            return "{}"
        return arguments if arguments.strip() else "{}"

    def _open_turn(self) -> "_Turn":
        self._close_turn()
        self._turn = _Turn()
        return self._turn

    def _close_turn(self) -> None:
        if self._turn is not None:
            self._messages.append(self._turn.message())
            self._turn = None


class _Turn:
    """One assistant message in the making."""

    def __init__(self) -> None:
        self.spoke = False
        self.thoughts: List[str] = []
        self.calls: List[Dict[str, Any]] = []
        self._contents: List[Any] = []
        self._refusal: Optional[str] = None

    def say(self, content: Any, refusal: Optional[str]) -> None:
        self.spoke = True
        if content:
            self._contents.append(content)
        if refusal is not None:
            self._refusal = (self._refusal or "") + refusal

    def message(self) -> Dict[str, Any]:
        message: Dict[str, Any] = {"role": "assistant"}
        if self._contents:
            # Text before and after a call was one content in the chat reply that it came from.
            message["content"] = _joined(self._contents, "")
        else:
            message["content"] = None if self.calls else ""
        if self._refusal is not None:
            message["refusal"] = self._refusal
        if self.thoughts:
            # Both names, as vLLM renamed it: reasoning_content before 0.16, reasoning since.
            message["reasoning"] = message["reasoning_content"] = "\n".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
        return message


# ---------------------------------------------------------------- content


def _content(content: Any, where: str) -> Any:
    """Return chat content: a string, or a list of chat parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequestError("%s must be a string or a list of parts" % where, param=where)
    parts = [_part(part, "%s[%d]" % (where, position)) for position, part in enumerate(content)]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _part(part: Any, where: str) -> Dict[str, Any]:
    if not isinstance(part, dict):
        raise BadRequestError("%s must be an object with a type" % where, param=where)
    kind = part.get("type")
    if kind in _TEXT:
        return {"type": "text", "text": _string(part, "text", where)}
    if kind == "input_image":
        return {"type": "image_url", "image_url": _image(part, where)}
    if kind == "input_file":
        return {"type": "file", "file": {key: part[key] for key in part if key != "type"}}
    if kind == "input_video":
        return {"type": "video_url", "video_url": {"url": part.get("video_url")}}
    return part  # input_audio is the same in both, and so are chat's own parts


def _image(part: Dict[str, Any], where: str) -> Dict[str, Any]:
    url = part.get("image_url")
    image: Dict[str, Any] = dict(url) if isinstance(url, dict) else {"url": url}
    if not isinstance(image.get("url"), str):
        raise BadRequestError(
            "%s.image_url is required: vLLM keeps no files, so send a URL or a data: URL" % where,
            param=where + ".image_url",
        )
    if isinstance(part.get("detail"), str):
        image["detail"] = part["detail"]
    return image


def _joined(contents: List[Any], between: str = "\n\n") -> Any:
    if all(isinstance(content, str) for content in contents):
        return between.join(contents)
    parts: List[Dict[str, Any]] = []
    for content in contents:
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


def _texts(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        return ""
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _is_refusal(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str)


def _string(item: Dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if isinstance(value, str):
        return value
    raise BadRequestError("%s.%s must be a string" % (where, key), param="%s.%s" % (where, key))
