"""What the commands of the command line do with a provider."""

import json
from typing import Any, Callable, Dict, List

from . import terminal as console
from .answers import (
    Asked, Wire, extracted, first, json_file, model_for, print_json, several, show_call, show_choices, show_cut,
    show_usage,
)
from .chat import chat
from .servers import models, wait
from .terminal import Terminal, WrongUsage, check_utf8, one_line
from ..vllm import VLLMProvider

__all__ = [
    "COMMANDS", "classify", "complete", "detokenize", "embed", "models", "rerank", "responses", "score", "tokenize",
    "transcribe",
]


def complete(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Continue a text and print what follows it."""
    prompt = _prompt(asked, "prompt")
    wire = {"model": model_for(provider, asked), "prompt": prompt, **asked.parameters}
    if asked.json or asked.no_stream or asked.extract or several(wire) or isinstance(prompt, list):
        reply = provider.text_completion(**wire)
        first(reply.choices)
        if asked.json:
            print_json(reply, terminal)
        else:
            show_choices([{"content": choice["text"]} for choice in reply.choices], asked, terminal)
            show_cut(reply.choices[0], terminal)
        show_usage(reply.get("usage"), asked, terminal)
        return 0
    choices: List[Wire] = []
    usage = None
    with provider.text_completion_stream(**wire) as stream:
        for chunk in stream:
            terminal.write(chunk.text)
            choices = chunk["choices"][:1] or choices
            usage = chunk.get("usage") or usage
    terminal.end_line()
    show_cut(first(choices), terminal)
    show_usage(usage, asked, terminal)
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
    if asked.schema is not None:
        form = {"type": "json_schema", "name": "answer", "schema": json_file(asked.schema)}
        wire.setdefault("text", {"format": form})
    wire["model"] = model_for(provider, asked)
    final: Any = None
    if asked.json or asked.no_stream or asked.extract:
        final = provider.responses(**wire)
        if asked.json:
            print_json(final, terminal)
        else:
            terminal.write(extracted(final.output_text) if asked.extract else final.output_text)
            terminal.end_line()
            _show_output(final, terminal)
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
    show_usage(final.get("usage"), asked, terminal)
    if final["status"] == "failed":
        terminal.complain("the response failed: %s" % ((final.get("error") or {}).get("message") or "no reason given"))
        return 1
    return 0


def _show_output(response: Wire, terminal: Terminal) -> None:
    """Show what a finished Response holds besides text."""
    for item in response["output"]:
        if item["type"] in ("function_call", "custom_tool_call"):
            show_call(item, "input" if item["type"] == "custom_tool_call" else "arguments", terminal)
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


def score(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print score and text of the others, in their order."""
    check_utf8(asked.query)
    others = console.lines_of(asked.words, "texts")
    wire: Wire = {"text_1": asked.query, "text_2": others, "model": model_for(provider, asked), **asked.parameters}
    reply = provider.score(**wire)
    if asked.json:
        print_json(reply, terminal)
        return 0
    for row in reply.data:
        terminal.line("%.6f\t%s" % (row.score, one_line(others[row.index])))
    return 0


def classify(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print label, probability of the likeliest class and text, one a line."""
    texts = console.lines_of(asked.words, "texts")
    reply = provider.classify(**{"input": texts, "model": model_for(provider, asked), **asked.parameters})
    if asked.json:
        print_json(reply, terminal)
        return 0
    for row in reply.data:
        terminal.line("%s\t%.6f\t%s" % (one_line(str(row.label)), max(row.probs), one_line(texts[row.index])))
    return 0


def tokenize(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the ids of a text's tokens on one line."""
    wire: Wire = {"model": model_for(provider, asked), **asked.parameters}
    if "messages" not in wire:
        wire["prompt"] = _prompt(asked, "prompt")
    reply = provider.tokenize(**wire)
    if asked.json:
        print_json(reply, terminal)
    else:
        terminal.line(" ".join(map(str, reply.tokens)))
    return 0


def detokenize(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the text of tokens."""
    try:
        tokens = [int(word) for line in console.lines_of(asked.words, "tokens") for word in line.split()]
    except ValueError as error:
        raise WrongUsage("a token is a number: %s" % error) from None
    reply = provider.detokenize(**{"tokens": tokens, "model": model_for(provider, asked), **asked.parameters})
    if asked.json:
        print_json(reply, terminal)
    else:
        terminal.write(reply.prompt)
        terminal.end_line()
    return 0


def transcribe(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the text of an audio file, as it is recognised, or its translation."""
    file: Any = asked.file
    if file == "-":
        file = console.read_stdin()
        if not file:
            raise WrongUsage("standard input holds no audio")
    wire = {"file": file, "model": model_for(provider, asked), **asked.parameters}
    if asked.json or asked.no_stream or "response_format" in wire:
        reply = (provider.translation if asked.command == "translate" else provider.transcription)(**wire)
        if asked.json:
            print_json(reply, terminal)
        else:
            terminal.write(reply["text"])
            terminal.end_line()
        return 0
    begun = False
    with (provider.translation_stream if asked.command == "translate" else provider.transcription_stream)(
            **wire) as stream:
        for event in stream:
            text = event.delta or ""
            text = text if begun else text.lstrip()  # Whisper begins each segment with a space
            begun = begun or bool(text)
            terminal.write(text)
    terminal.end_line()
    return 0


COMMANDS: Dict[str, Callable[[VLLMProvider, Asked, Terminal], int]] = {
    "chat": chat,
    "responses": responses,
    "complete": complete,
    "embed": embed,
    "rerank": rerank,
    "score": score,
    "classify": classify,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "transcribe": transcribe,
    "translate": transcribe,
    "models": models,
    "wait": wait,
}
