"""The command line: ``vllm-bridge COMMAND ...`` and ``python -m vllm_bridge COMMAND ...``.

Exit codes: 0 done, 1 a call failed, 2 wrong usage, 130 Ctrl-C.
"""

import argparse
import json
import re
import signal
import sys
from contextlib import suppress
from typing import Any, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

from ..config.settings import Key, NetworkConfig, ProviderConfig
from ..config.validate import base_urls
from ..errors import APITimeoutError, AuthenticationError, BadRequestError, BridgeError, ConfigError
from .terminal import ODD_ANSWER, Terminal, WrongUsage, check_utf8, odd_answer
from ..version import __version__
from ..vllm import VLLMProvider

__all__ = ["main"]

_EPILOG = """\
The server is --base-url, else VLLM_BASE_URL, else http://localhost:8000; the key is --api-key, else VLLM_API_KEY.
The model is --model, else VLLM_MODEL, else the server's only one. -p takes JSON values, and strings as they are:
  vllm-bridge chat -p top_k=20 -p 'stop=["END"]' "Tell me a story"
Exit codes: 0 done, 1 the call failed, 2 wrong usage, 130 Ctrl-C.
"""

# {{ and {% begin a template, [a-z] is a regular expression, and a quotation mark by itself is one.
_MEANT_AS_JSON = re.compile(r'\s*(\{(?![{%#])|\[\s*["{]|\[\s*-?[0-9.]+\s*,|".)', re.DOTALL)

_HELP = {
    "chat": "ask a chat model; without a prompt, talk to it",
    "responses": "ask by the Responses API",
    "complete": "continue a text",
    "embed": "turn texts into vectors",
    "rerank": "order documents by what they have to do with a query",
    "score": "say how alike a text and others are",
    "classify": "tell the class of texts",
    "tokenize": "turn a text into tokens",
    "detokenize": "turn tokens into text",
    "transcribe": "turn speech into text",
    "translate": "turn speech into English text",
    "batch": "answer a file of requests",
    "models": "list the models",
    "check": "see whether the servers are there and how soon they answer",
    "wait": "wait until the servers are there, or one that has a model",
    "serve": "run the gateway: one local OpenAI-compatible address in front of vLLM",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command and return its exit code."""
    terminal = Terminal()
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv), terminal)
        terminal.close()
        return code
    except KeyboardInterrupt:
        code = 130
    except OSError as error:  # a closed pipe, a full disk, a directory as standard input
        terminal.complain(error.strerror or str(error))
        code = 1
    if argv is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would meet the interpreter on its way out
    with suppress(OSError):
        terminal.end_line()
    with suppress(OSError):
        terminal.close()
    return code


def _run(argv: List[str], terminal: Terminal) -> int:
    try:
        asked = _parse(argv)
        if asked.command == "serve":
            from ..gateway.run import main as serve

            return serve(asked)
        return _ask(asked, terminal)
    except SystemExit as end:  # argparse has said why
        return int(end.code or 0)
    except (WrongUsage, ConfigError) as error:
        terminal.complain(str(error))
        return 2
    except APITimeoutError as error:
        terminal.complain("%s; here: --timeout SECONDS" % error)
    except AuthenticationError as error:
        terminal.complain("%s; the key is --api-key, else VLLM_API_KEY" % error)
    except BridgeError as error:
        terminal.complain(str(error))
    return 1


def _ask(asked: argparse.Namespace, terminal: Terminal) -> int:
    from .check import check  # the gateway starts without them
    from .commands import COMMANDS

    run = check if asked.command == "check" else COMMANDS.get(asked.command) or _batch
    try:
        with _provider(asked) as provider:
            return run(provider, asked, terminal)
    except BridgeError:
        raise
    except ODD_ANSWER as error:
        terminal.complain(odd_answer(error))
        return 1


def _batch(provider: VLLMProvider, asked: argparse.Namespace, terminal: Terminal) -> int:
    from .batch import batch

    return batch(provider, asked, terminal)


def _provider(asked: argparse.Namespace) -> VLLMProvider:
    url = None if asked.base_url is None else base_urls(",".join(asked.base_url), "--base-url")
    keys = [] if asked.api_key is None else [Key(asked.api_key, path="--api-key")]
    provider = VLLMProvider(config=ProviderConfig(NetworkConfig(url), keys=keys))
    if asked.timeout is not None and asked.command != "wait":
        provider = provider.with_options(timeout=asked.timeout, stream_idle_timeout=asked.timeout)
    return provider


# ---------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what was probably meant, if anybody listens."""

    def _print_message(self, message: str, file: Any = None) -> None:
        with suppress(OSError):  # Python 3.8 lets it pass
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '([^']*)'", message)
        if found and "COMMAND" in message:
            message = "no command %r%s; the first word is one of: %s" % (
                found.group(1), _meant([found.group(1)], _HELP), ", ".join(_HELP))
        super().error(message)


def _parse(argv: List[str]) -> argparse.Namespace:
    parser, commands = _parsers(argv)
    if argv and argv[0] == "help":
        argv = argv[1:2] + ["--help"]
    asked, rest = parser.parse_known_args(argv)
    if asked.command is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    mine = commands[asked.command]
    if asked.command == "serve" and argv[0] != "serve":  # there they would mean something else
        mine.error("%s must stand behind serve" % argv[0].partition("=")[0])
    options = [word for word in rest if word.startswith("-") and word != "-"]
    if options or (rest and "words" not in asked):
        known = re.findall(r"--[a-z-]+", mine.format_help())
        mine.error("unrecognized arguments: %s%s" % (" ".join(rest), _meant(options, known)))
    if rest:  # words behind an option that came between them
        asked.words = asked.words + rest
    if "parameters" in asked:
        asked.parameters = dict(asked.parameters)
    return asked


def _meant(words: List[str], known: Iterable[str]) -> str:
    """Name the first of `known` that is near one of `words`."""
    import difflib  # only a mistake needs it

    near = [match for word in words for match in difflib.get_close_matches(word.partition("=")[0], known, 1)]
    return " (did you mean %s?)" % near[0] if near else ""


def _parsers(argv: List[str]) -> Tuple[_Parser, Dict[str, argparse.ArgumentParser]]:
    """Return the parser and those of the commands; the gateway and the batch are loaded only where they are named."""
    parser = _Parser(
        prog="vllm-bridge", description="vLLM servers from the command line.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version="vllm-bridge " + __version__)
    _connection(parser, None, hidden=True)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    choose = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    commands: Dict[str, argparse.ArgumentParser] = {}
    for name, text in _HELP.items():
        commands[name] = mine = choose.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        if name != "serve":
            _arguments(name, mine)
        elif name in argv:
            from ..gateway.settings import add_arguments

            add_arguments(mine)
        if name == "batch" and name in argv:
            from .batch import add_arguments as add_batch_arguments

            add_batch_arguments(mine)
    return parser, commands


_LINES = "one an argument; without any, one a line of standard input"
_PROMPT = "may be several words; - stands for standard input, which is also read if there is none"
_WORDS = {
    "chat": ("PROMPT", _PROMPT), "responses": ("PROMPT", _PROMPT), "complete": ("PROMPT", _PROMPT),
    "tokenize": ("TEXT", _PROMPT), "detokenize": ("TOKEN", _LINES), "embed": ("TEXT", _LINES),
    "classify": ("TEXT", _LINES), "rerank": ("DOCUMENT", _LINES), "score": ("TEXT", _LINES),
}
_FIRST = {
    "rerank": ("query", "QUERY", None), "score": ("query", "TEXT", None),
    "transcribe": ("file", "FILE", "an audio file; - is standard input"),
    "translate": ("file", "FILE", "an audio file; - is standard input"),
}


def _arguments(name: str, parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _connection(parser, argparse.SUPPRESS)  # they may stand before the command too
    if name != "batch":
        add("--json", action="store_true", default=argparse.SUPPRESS, help="print the whole reply as JSON")
    if name != "models":
        waited = "the model to wait for; without it all servers are waited for"
        add("--model", "-m", help=waited if name == "wait" else
            "the model; else VLLM_MODEL, else the only one that the server has")
    if name not in ("models", "check", "wait"):
        add("--param", "-p", action="append", default=[], type=_parameter, dest="parameters", metavar="NAME=VALUE",
            help="any parameter of the request; the value is JSON or a string")
    if name in ("chat", "responses"):
        add("--system", "-s", metavar="TEXT", help="the system message")
        add("--schema", metavar="FILE", help="a JSON schema; the answer is JSON that fits it")
    if name == "chat":
        add("--attach", "-a", action="append", default=[], metavar="FILE", dest="attached",
            help="an image, sound or a text that belongs to the prompt; may be given several times")
        add("--continue", "-c", action="store_true", dest="continued", help="go on with the last conversation")
    if name in ("chat", "responses", "complete"):
        add("--extract", "-x", action="store_true", help="print the answer's first block of code alone")
        add("--usage", action="store_true", help="say on standard error how many tokens it took")
    if name in ("chat", "responses", "complete", "transcribe", "translate"):
        add("--no-stream", action="store_true", help="ask for the answer in one piece")
    if name in _FIRST:
        add(*_FIRST[name][:1], metavar=_FIRST[name][1], help=_FIRST[name][2])
    if name in _WORDS:
        add("words", nargs="*", metavar=_WORDS[name][0], help=_WORDS[name][1])


def _connection(parser: argparse.ArgumentParser, default: Any, hidden: bool = False) -> None:
    for flag, kind, metavar, text in (
        ("--base-url", str, "URL", "the server; may be given several times"),
        ("--api-key", str, "KEY", "its API key"),
        ("--timeout", float, "SECONDS",
         "silence after which a call is given up (default: 300, in a stream 120, in check 30); in wait, the time to "
         "wait in all (default: 600)"),
    ):
        parser.add_argument(
            flag, type=kind, metavar=metavar, default=default, help=argparse.SUPPRESS if hidden else text,
            action="append" if flag == "--base-url" else "store")


def _parameter(text: str) -> Tuple[str, Any]:
    """Read ``name=value``: the value is JSON, or else the string that it is."""
    check_utf8(text)
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError("expected NAME=VALUE, got %r" % text)
    try:
        return name, json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if _MEANT_AS_JSON.match(value):
            raise BadRequestError("-p %s: is broken JSON: %s" % (name, error)) from None
        return name, value


def _no_constant(name: str) -> NoReturn:
    raise ValueError("%s is no JSON number" % name)  # by itself NaN is a word
