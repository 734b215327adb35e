"""``vllm-bridge batch IN.jsonl OUT.jsonl``: a file of requests in, a file of answers out."""

import argparse
import os

from ..batch.iterate import settings_of
from ..batch.job import Files, Job
from ..batch.request import OPERATIONS, Defaults
from ..vllm import VLLMProvider
from .terminal import Terminal

__all__ = ["add_arguments", "batch"]

_TIMEOUT = 600.0  # seconds, unless --timeout says otherwise: an answer comes as a whole, and may wait in a queue

EPILOG = """\
A line of IN is a request body, a line of OpenAI's batch format (custom_id, method, url, body) or, with --text-in, a
prompt. A line of OUT is OpenAI's batch output. Run again, the same command goes on where it stopped; so it does after
Ctrl-C, kill -9 and a full disk.
Exit codes: 0 all done, 1 some lines failed, 2 wrong usage, 3 stopped before the end, 130 Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without those that all commands have."""
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add("requests", metavar="IN", help="a file of requests, one a line; - is standard input")
    add("answers", metavar="OUT", help="a file for the answers, which is only appended to; - is standard output")
    add("--url", choices=sorted(OPERATIONS), help="the operation of lines that name none (default: by their fields)")
    add("--text-in", action="store_true", help="lines are prompts, of chats unless --url says otherwise")
    add("--text-out", action="store_true",
        help="write the answers' texts alone, a JSON string a line, null for a failure; in the order of IN")
    add("--ordered", action="store_true", help="write answers in the order of IN, not of completion")
    add("--concurrency", type=int, metavar="N", help="requests at a time (default: found by itself, at most 1024)")
    add("--join", type=int, default=1, metavar="N", help="embedding or rerank lines that may go in one request")
    add("--patience", type=float, default=3600.0, metavar="SECONDS",
        help="how long to ask again what fails by no fault of its own; 0 is for ever (default: 3600)")
    add("--at-most-once", action="store_true", help="do not ask again what a server may have begun with")
    add("--retry-failed", metavar="OLD", help="ask again what has failed in OLD, an OUT of before; answers go to OUT")
    add("--errors", metavar="FILE", help="write failures to a file of their own, not to OUT")
    add("--report", metavar="FILE", help="write the summary as JSON")
    add("--quiet", "-q", action="store_true", help="show neither progress nor summary")


def batch(provider: VLLMProvider, asked: argparse.Namespace, terminal: Terminal) -> int:
    """Carry out a job and return its exit code."""
    if asked.timeout is None:
        provider = provider.with_options(timeout=_TIMEOUT)
    defaults = Defaults(asked.model or os.environ.get("VLLM_MODEL") or None, asked.url, asked.parameters, asked.text_in)
    settings = settings_of(
        defaults, asked.concurrency, asked.join, asked.patience, asked.at_most_once, asked.ordered or asked.text_out)
    files = Files(
        None if asked.requests == "-" else asked.requests, None if asked.answers == "-" else asked.answers,
        asked.errors, asked.report, asked.retry_failed, asked.text_out)
    return Job(provider, files, settings, terminal.complain, asked.quiet).run()
