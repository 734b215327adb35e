"""What the commands share: the model that is meant, and how an answer is shown."""

import argparse
import json
import os
import re
from typing import Any, Dict, List, Optional

from ..errors import ResponseDecodeError
from .terminal import Terminal, WrongUsage, one_line
from ..vllm import VLLMProvider

__all__ = ["extracted", "first", "json_file", "model_for", "print_json", "several", "show_call", "show_calls",
           "show_choices", "show_cut", "show_usage"]

_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)(?:^ {0,3}\1|\Z)", re.DOTALL | re.MULTILINE)  # CommonMark §4.5

Asked = argparse.Namespace
Wire = Dict[str, Any]


def model_for(provider: VLLMProvider, asked: Asked) -> str:
    """Return the model asked for, or the only one that the server has."""
    given = asked.parameters.get("model", asked.model) or os.environ.get("VLLM_MODEL") or None
    if given is not None:
        return str(given)
    names = [str(model.get("id")) for model in provider.list_models().data]
    if len(names) == 1:
        return names[0]
    if not names:
        raise WrongUsage("the server lists no model; name one with --model")
    raise WrongUsage("the server has several models; name one with --model: %s" % ", ".join(names))


def print_json(reply: Any, terminal: Terminal) -> None:
    """Print a reply: one line, or indented on a terminal."""
    unicode = "utf" in (getattr(terminal.out, "encoding", None) or "").lower()
    terminal.line(json.dumps(reply, ensure_ascii=not unicode, indent=2 if terminal.on_terminal else None))


def several(wire: Wire) -> bool:
    """Tell whether several answers are asked for."""
    count = wire.get("n", 1)
    return isinstance(count, int) and count > 1


def first(listed: Any) -> Any:
    """Return the first of an answer's choices; `ResponseDecodeError` if there is none."""
    if not isinstance(listed, list) or not listed:
        raise ResponseDecodeError("the server's answer holds no choices")
    return listed[0]


def show_choices(messages: List[Wire], asked: Asked, terminal: Terminal) -> None:
    """Show each of several answers."""
    for number, message in enumerate(messages):
        if number:
            terminal.line("")
        content = message["content"]
        if content is None and not any(message.get(name) for name in ("tool_calls", "reasoning", "refusal")):
            raise ResponseDecodeError("the server's answer holds neither a text nor a call")
        terminal.write(extracted(content) if asked.extract else (content or "").lstrip("\n"))
        terminal.end_line()
        show_calls(message, terminal)


def show_calls(message: Wire, terminal: Terminal) -> None:
    """Show the calls of tools in an answer."""
    for call in message.get("tool_calls") or ():
        show_call(call["function"], "arguments", terminal)


def show_call(function: Wire, field: str, terminal: Terminal) -> None:
    """Show one call of a tool: its name, and its arguments in `field`."""
    given = function.get(field) or ""
    text = given if isinstance(given, str) else json.dumps(given)
    terminal.line("%s(%s)" % (function["name"], one_line(text)))


def show_cut(choice: Wire, terminal: Terminal) -> None:
    """Say that an answer was cut off, and how that is changed."""
    if choice.get("finish_reason") == "length":
        terminal.hint("(cut off: the token limit is reached; -p max_tokens=N sets it)")


def extracted(text: Optional[str]) -> str:
    """Return the first block of code in an answer, or all of it where there is none."""
    found = _CODE.search(text or "")
    return found.group(2) if found else text or ""


def json_file(path: str) -> Any:
    """Return the object that a file holds as JSON."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise WrongUsage("%s: %s" % (path, getattr(error, "strerror", None) or error)) from None
    if not isinstance(value, dict):
        raise WrongUsage("%s: must be a JSON object" % path)
    return value


def show_usage(usage: Any, asked: Asked, terminal: Terminal) -> None:
    """Say what a call took, if that was asked for."""
    if asked.usage and isinstance(usage, dict):
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        terminal.note("%s tokens in%s, %s out" % (
            usage.get("prompt_tokens", usage.get("input_tokens", 0)), " (%s cached)" % cached if cached else "",
            usage.get("completion_tokens", usage.get("output_tokens", 0))))
