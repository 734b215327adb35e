"""``chat``: one prompt with what is attached to it, or a conversation; the last one is kept and can be continued."""

import json
import os
from typing import Any, List, Optional

from . import terminal as console
from .answers import (
    Asked, Wire, extracted, first, json_file, model_for, print_json, several, show_calls, show_choices, show_cut,
    show_usage,
)
from .terminal import ODD_ANSWER, Terminal, WrongUsage, check_utf8, odd_answer
from ..api.chat import ChatAccumulator
from ..api.content import audio, image, kind_of
from ..errors import BridgeError
from ..vllm import VLLMProvider

__all__ = ["chat"]

_HELP = "what you type is asked; Ctrl-C stops an answer; Ctrl-D, exit or /exit ends"
_KEPT = "VLLM_BRIDGE_CONVERSATION"  # a path; empty: no conversation is kept


def chat(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Answer one prompt, or what is typed line by line if there is none and somebody can type."""
    messages: List[Wire] = []
    if asked.continued:
        kept = _kept()
        messages = kept["messages"]
        asked.model = asked.model or kept["model"]
    if asked.system is not None:
        check_utf8(asked.system)
        messages = [{"role": "system", "content": asked.system}] + [
            message for message in messages if message.get("role") != "system"]
    if asked.schema is not None:
        asked.parameters.setdefault("response_format", {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": json_file(asked.schema)}})
    parts = [_part(path) for path in asked.attached]
    prompt = None if "messages" in asked.parameters else console.words_text(asked.words)
    if prompt is None and "messages" not in asked.parameters:
        return _converse(provider, asked, terminal, messages, parts)
    if prompt is not None:
        if not prompt.strip():
            raise WrongUsage("the prompt is empty")
        messages.append(_user(prompt, parts))
    wire = {"model": model_for(provider, asked), "messages": messages, **asked.parameters}
    said = _answer(provider, wire, asked, terminal)
    if prompt is not None and said is not None:
        _keep(wire["model"], messages + [{"role": "assistant", "content": said}], terminal)
    return 0


def _user(text: str, parts: List[Wire]) -> Wire:
    return {"role": "user", "content": parts + [{"type": "text", "text": text}] if parts else text}


def _part(path: str) -> Wire:
    """Return what is attached as a part of a message: an image, sound or text."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise WrongUsage("-a %s: %s" % (path, getattr(error, "strerror", None) or error)) from None
    kind = kind_of(data)
    if kind is not None:
        return dict(image(data) if kind == "image" else audio(data))
    try:
        return {"type": "text", "text": "%s:\n%s" % (os.path.basename(path), data.decode("utf-8-sig"))}
    except UnicodeDecodeError:
        raise WrongUsage("-a %s: is no image, no sound and no UTF-8 text" % path) from None


def _converse(provider: VLLMProvider, asked: Asked, terminal: Terminal, messages: List[Wire], parts: List[Wire]) -> int:
    """Talk until the end of the input. Ctrl-C stops an answer, and at the prompt the program."""
    model = model_for(provider, asked)
    terminal.hint("%s; Ctrl-C stops an answer, Ctrl-D ends, /help says more" % model)
    while True:
        try:
            typed = terminal.ask("> ")
        except EOFError:
            terminal.hint("")
            return 0
        if typed.strip() in ("exit", "/exit"):
            return 0
        if typed.strip() == "/help":
            terminal.hint(_HELP)
        elif typed.strip():
            messages.append(_user(typed, parts))
            said = _turn(provider, {"model": model, "messages": messages, **asked.parameters}, asked, terminal)
            if said:
                messages.append({"role": "assistant", "content": said})
                parts = []
                _keep(model, messages, terminal)
            else:
                messages.pop()


def _turn(provider: VLLMProvider, wire: Wire, asked: Asked, terminal: Terminal) -> Optional[str]:
    """Answer within a conversation, which no failure ends, and return what was said."""
    heard = ChatAccumulator()
    try:
        _answer(provider, wire, asked, terminal, heard)
    except KeyboardInterrupt:
        terminal.end_line()
        terminal.hint("(stopped)")
    except BridgeError as error:
        terminal.complain(str(error))
    except ODD_ANSWER as error:
        terminal.complain(odd_answer(error))
    terminal.flush()
    choices = heard.completion()["choices"]
    return choices[0]["message"].get("content") if choices else None


def _answer(
    provider: VLLMProvider, wire: Wire, asked: Asked, terminal: Terminal, heard: Optional[ChatAccumulator] = None
) -> Optional[str]:
    """Carry out a chat, show it and return its text; `heard` collects it."""
    heard = heard or ChatAccumulator()
    if asked.json or asked.no_stream or several(wire):
        reply = provider.chat_completion(**wire)
        message = first(reply.choices)["message"]
        heard.feed({"choices": [{"delta": message}]})
        if asked.json:
            print_json(reply, terminal)
        else:
            show_choices([choice["message"] for choice in reply.choices], asked, terminal)
            show_cut(reply.choices[0], terminal)
        show_usage(reply.get("usage"), asked, terminal)
        return message.get("content")  # type: ignore[no-any-return]
    begun = False
    with provider.chat_completion_stream(**wire) as stream:
        for chunk in stream:
            heard.feed(chunk)
            for choice in chunk.choices[:1]:
                terminal.think(choice.delta.reasoning or "")
            text = chunk.text if begun else chunk.text.lstrip("\n")  # reasoning leaves blank lines behind it
            begun = begun or bool(text)
            if not asked.extract:
                terminal.write(text)
    completion = heard.completion()
    choice = first(completion["choices"])
    said = choice["message"].get("content")
    if asked.extract:
        terminal.write(extracted(said))
    terminal.end_line()
    show_calls(choice["message"], terminal)
    show_cut(choice, terminal)
    show_usage(completion.get("usage"), asked, terminal)
    return said  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the conversation that is kept


def _path() -> str:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.environ.get(_KEPT, os.path.join(state, "vllm-bridge", "conversation.json"))


def _kept() -> Any:
    """Return the last conversation: its model and its messages."""
    path = _path()
    if not path:
        raise WrongUsage("-c: %s is empty, so no conversation is kept" % _KEPT)
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        if not isinstance(kept["model"], str) or not all(isinstance(message, dict) for message in kept["messages"]):
            raise ValueError("it is none")
    except FileNotFoundError:
        raise WrongUsage("-c: there is no conversation to continue (%s)" % path) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WrongUsage("-c: the conversation in %s cannot be read: %s" % (path, error)) from None
    return kept


def _keep(model: str, messages: List[Wire], terminal: Terminal) -> None:
    """Keep a conversation for its owner alone; where that cannot be, it is not worth a failure."""
    path = _path()
    if not path:
        return
    written = "%s.%d" % (path, os.getpid())
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump({"model": model, "messages": messages}, file)
        os.replace(written, path)
    except (OSError, ValueError) as error:
        terminal.hint("(not kept for -c: %s)" % error)
