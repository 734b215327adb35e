"""What the commands of the command line do with a provider."""

import argparse
import json
from typing import Any, Callable, Dict, List, Optional

from . import terminal as console
from ..api.chat import ChatAccumulator
from ..errors import BridgeError, ResponseDecodeError
from .terminal import ODD_ANSWER, Terminal, WrongUsage, check_utf8, odd_answer, one_line
from ..vllm import VLLMProvider

__all__ = ["COMMANDS", "chat", "complete", "embed", "models", "rerank", "responses", "transcribe"]

Asked = argparse.Namespace
Wire = Dict[str, Any]


def model_for(provider: VLLMProvider, asked: Asked) -> str:
    """Return the model asked for, or the only one that the server has."""
    given = asked.parameters.get("model", asked.model)
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


# ---------------------------------------------------------------- chat


def chat(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Answer one prompt, or what is typed line by line if there is none and somebody can type."""
    messages: List[Wire] = []
    if asked.system is not None:
        check_utf8(asked.system)
        messages.append({"role": "system", "content": asked.system})
    prompt = None if "messages" in asked.parameters else console.words_text(asked.words)
    if prompt is None and "messages" not in asked.parameters:
        return _converse(provider, asked, terminal, messages)
    if prompt is not None:
        messages.append(_user(prompt))
    _answer(provider, {"model": model_for(provider, asked), "messages": messages, **asked.parameters}, asked, terminal)
    return 0


def _user(text: str) -> Wire:
    if not text.strip():
        raise WrongUsage("the prompt is empty")
    return {"role": "user", "content": text}


def _converse(provider: VLLMProvider, asked: Asked, terminal: Terminal, messages: List[Wire]) -> int:
    """Talk until the end of the input. Ctrl-C stops an answer, and at the prompt the program."""
    model = model_for(provider, asked)
    terminal.hint("%s; Ctrl-C stops an answer, Ctrl-D ends" % model)
    while True:
        try:
            typed = terminal.ask("> ")
        except EOFError:
            terminal.hint("")
            return 0
        if not typed.strip():
            continue
        messages.append({"role": "user", "content": typed})
        heard = ChatAccumulator()
        try:
            _answer(provider, {"model": model, "messages": messages, **asked.parameters}, asked, terminal, heard)
        except KeyboardInterrupt:
            terminal.end_line()
            terminal.hint("(stopped)")
        except BridgeError as error:
            terminal.complain(str(error))
        except ODD_ANSWER as error:
            terminal.complain(odd_answer(error))
        choices = heard.completion()["choices"]
        said = choices[0]["message"].get("content") if choices else None
        if said:
            messages.append({"role": "assistant", "content": said})
        else:
            messages.pop()


def _answer(
    provider: VLLMProvider, wire: Wire, asked: Asked, terminal: Terminal, heard: Optional[ChatAccumulator] = None
) -> None:
    """Carry out a chat and show it; `heard` collects it."""
    heard = heard or ChatAccumulator()
    if asked.json or _several(wire):
        reply = provider.chat_completion(**wire)
        heard.feed({"choices": [{"delta": _first(reply.choices)["message"]}]})
        if asked.json:
            print_json(reply, terminal)
        else:
            _show_choices([choice["message"] for choice in reply.choices], terminal)
        return
    begun = False
    with provider.chat_completion_stream(**wire) as stream:
        for chunk in stream:
            heard.feed(chunk)
            for choice in chunk.choices[:1]:
                terminal.think(choice.delta.reasoning or "")
            text = chunk.text if begun else chunk.text.lstrip("\n")  # reasoning leaves blank lines behind it
            begun = begun or bool(text)
            terminal.write(text)
    terminal.end_line()
    choice = _first(heard.completion()["choices"])
    _show_calls(choice["message"], terminal)
    _show_cut(choice, terminal)


def _several(wire: Wire) -> bool:
    count = wire.get("n", 1)
    return isinstance(count, int) and count > 1


def _first(listed: Any) -> Any:
    """Return the first of an answer's choices; `ResponseDecodeError` if there is none."""
    if not isinstance(listed, list) or not listed:
        raise ResponseDecodeError("the server's answer holds no choices")
    return listed[0]


def _show_choices(messages: List[Wire], terminal: Terminal) -> None:
    for number, message in enumerate(messages):
        if number:
            terminal.line("")
        content = message["content"]
        if content is None and not any(message.get(name) for name in ("tool_calls", "reasoning", "refusal")):
            raise ResponseDecodeError("the server's answer holds neither a text nor a call")
        terminal.write((content or "").lstrip("\n"))
        terminal.end_line()
        _show_calls(message, terminal)


def _show_calls(message: Wire, terminal: Terminal) -> None:
    for call in message.get("tool_calls") or ():
        _show_call(call["function"], "arguments", terminal)


def _show_call(function: Wire, field: str, terminal: Terminal) -> None:
    given = function.get(field) or ""
    text = given if isinstance(given, str) else json.dumps(given)
    terminal.line("%s(%s)" % (function["name"], one_line(text)))


def _show_cut(choice: Wire, terminal: Terminal) -> None:
    if choice.get("finish_reason") == "length":
        terminal.hint("(cut off: the token limit is reached; -p max_tokens=N sets it)")


# ---------------------------------------------------------------- the other operations


def complete(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Continue a text and print what follows it."""
    prompt = _prompt(asked, "prompt")
    wire = {"model": model_for(provider, asked), "prompt": prompt, **asked.parameters}
    if asked.json or _several(wire) or isinstance(prompt, list):
        reply = provider.text_completion(**wire)
        _first(reply.choices)
        if asked.json:
            print_json(reply, terminal)
        else:
            _show_choices([{"content": choice["text"]} for choice in reply.choices], terminal)
        return 0
    choices: List[Wire] = []
    with provider.text_completion_stream(**wire) as stream:
        for chunk in stream:
            terminal.write(chunk.text)
            choices = chunk["choices"][:1] or choices
    terminal.end_line()
    _show_cut(_first(choices), terminal)
    return 0


def _prompt(asked: Asked, field: str) -> Any:
    """Return what a request is about: the field if it was given with -p, the words, or standard input."""
    prompt = asked.parameters.get(field) or console.words_text(asked.words)
    if not prompt:
        raise WrongUsage("give a prompt as an argument or on standard input")
    return prompt


def responses(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Answer one prompt by the Responses API."""
    wire: Wire = {"input": _prompt(asked, "input"), "instructions": asked.system, **asked.parameters}
    wire["model"] = model_for(provider, asked)
    final: Any = None
    if asked.json:
        final = provider.responses(**wire)
        print_json(final, terminal)
    else:
        with provider.responses_stream(**wire) as stream:
            for event in stream:
                if event.type in ("response.output_text.delta", "response.refusal.delta"):
                    terminal.write(event.delta or "")
                elif event.type.startswith("response.reasoning") and event.type.endswith(".delta"):
                    terminal.think(event.delta or "")
                final = event.get("response") or final
        terminal.end_line()
        _show_output(final, terminal)
    if final["status"] == "failed":
        terminal.complain("the response failed: %s" % ((final.get("error") or {}).get("message") or "no reason given"))
        return 1
    return 0


def _show_output(response: Wire, terminal: Terminal) -> None:
    """Show what a finished Response holds besides text."""
    for item in response["output"]:
        if item["type"] in ("function_call", "custom_tool_call"):
            _show_call(item, "input" if item["type"] == "custom_tool_call" else "arguments", terminal)
    if response["status"] == "incomplete":
        terminal.hint("(cut off: the token limit is reached; -p max_output_tokens=N sets it)")


def embed(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print one vector a line for each text."""
    wire: Wire = {"model": None, **asked.parameters}
    if "input" not in wire and "messages" not in wire:
        wire["input"] = console.lines_of(asked.words, "texts")
    wire["model"] = model_for(provider, asked)
    reply = provider.embedding(**wire)
    if asked.json:
        print_json(reply, terminal)
    else:
        for row in reply.data:
            terminal.line(json.dumps(row.embedding))
    return 0


def rerank(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print score, place and text of the documents, best first."""
    check_utf8(asked.query)
    wire: Wire = {"query": asked.query, **asked.parameters}
    if "documents" not in wire:
        wire["documents"] = console.lines_of(asked.words, "documents")
    wire["model"] = model_for(provider, asked)
    reply = provider.rerank(**wire)
    if asked.json:
        print_json(reply, terminal)
        return 0
    for result in reply.results:
        document = wire["documents"][result.index]
        text = document.get("text") if isinstance(document, dict) else document
        terminal.line("%.6f\t%d\t%s" % (result.relevance_score, result.index, one_line(str(text))))
    return 0


def transcribe(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the text of an audio file, as it is recognised."""
    file: Any = asked.file
    if file == "-":
        file = console.read_stdin()
        if not file:
            raise WrongUsage("standard input holds no audio")
    wire = {"file": file, "model": model_for(provider, asked), **asked.parameters}
    if asked.json or "response_format" in wire:
        reply = provider.transcription(**wire)
        if asked.json:
            print_json(reply, terminal)
        else:
            terminal.write(reply["text"])
            terminal.end_line()
        return 0
    begun = False
    with provider.transcription_stream(**wire) as stream:
        for event in stream:
            text = event.delta or ""
            text = text if begun else text.lstrip()  # Whisper begins each segment with a space
            begun = begun or bool(text)
            terminal.write(text)
    terminal.end_line()
    return 0


def models(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the names of the models, one a line."""
    reply = provider.list_models()
    if asked.json:
        print_json(reply, terminal)
        return 0
    for model in reply.data:
        terminal.line(one_line(str(model.get("id"))))
    return 0


COMMANDS: Dict[str, Callable[[VLLMProvider, Asked, Terminal], int]] = {
    "chat": chat,
    "responses": responses,
    "complete": complete,
    "embed": embed,
    "rerank": rerank,
    "transcribe": transcribe,
    "models": models,
}
