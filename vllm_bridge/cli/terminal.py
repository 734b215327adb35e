"""The terminal as the commands see it: answers on standard output, everything else on standard error."""

import errno
import io
import os
import re
import select
import sys
from contextlib import suppress
from typing import Any, List, Optional

__all__ = ["ODD_ANSWER", "Terminal", "WrongUsage", "check_utf8", "odd_answer", "one_line"]

# What looking into an answer raises where an object, a list or a text is something else.
ODD_ANSWER = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)

_DIM, _PLAIN = "\033[2m", "\033[0m"
# What a terminal would obey: a model's words must not move the cursor or rename the window.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class WrongUsage(Exception):
    """A command was given something that it cannot work with; the message says what."""


def odd_answer(error: Exception) -> str:
    """Return the complaint about one of `ODD_ANSWER`."""
    return "the server's answer is not in the shape of OpenAI's API (%s: %s)" % (type(error).__name__, error)


def one_line(text: str) -> str:
    """Return a text without line ends and control characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


class Terminal:
    """Standard input, output and error, as they are when it is made; any of them may be closed.

    What an answer cannot be written to raises OSError; what standard error cannot take is lost.
    """

    def __init__(self) -> None:
        self.out = sys.stdout
        self.err = sys.stderr
        self.on_terminal = _is_terminal(sys.stdout)
        self.watched = _is_terminal(sys.stderr)
        self._midline = False  # standard output stands behind a text without a line end
        self._held: List[str] = []  # for a file or a pipe: written at once, so that two programs do not mix their lines
        self._thinking = False
        for stream in (self.out, self.err):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII locale, or half a surrogate pair, is no reason to fail
                stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> None:
        """Add to the answer on standard output: at once to a terminal, else when the answer is whole."""
        if not text:
            return
        self._end_thinking()
        if self.on_terminal:
            text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
        if self.out is None or self.out.closed:
            raise OSError(errno.EBADF, "standard output is closed")
        self._held.append(text)
        self._midline = not text.endswith("\n")
        if self.on_terminal:
            self.flush()
        elif _reader_has_left(self.out):
            self._held = []
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def flush(self) -> None:
        """Write what is held back."""
        text, self._held = "".join(self._held), []
        if text:
            self.out.write(text)
            self.out.flush()

    def line(self, text: str) -> None:
        """Add a line to the answer."""
        self.write(text + "\n")

    def end_line(self) -> None:
        """End the answer's last line if it is open."""
        self._end_thinking()
        if self._midline:
            self.write("\n")

    def think(self, text: str) -> None:
        """Show reasoning: dimmed on standard error if somebody is looking, else not at all."""
        if text and self.watched:
            self._thinking = True
            self._tell(self._dimmed(_CONTROL.sub("", text)))

    def hint(self, text: str) -> None:
        """Tell something that only a person at the terminal wants to know."""
        if self.watched:
            self._tell(self._dimmed(one_line(text)) + "\n")

    def complain(self, text: str) -> None:
        """Say in one line on standard error what went wrong."""
        with suppress(OSError):  # the answer may have nowhere to go where the complaint has
            self.end_line()
            self.flush()
        self.note("vllm-bridge: " + text)

    def note(self, text: str) -> None:
        """Write one line to standard error."""
        self._tell(one_line(text) + "\n")

    def ask(self, prompt: str) -> str:
        """Return a line typed by the user; raises EOFError at the end of the input."""
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and a history
        if not self.on_terminal:  # input() would write its prompt into the answer
            self._tell(prompt)
            prompt = ""
        return input(prompt)

    def close(self) -> None:
        """Write out what is buffered, also by argparse; what cannot be written goes nowhere, and raises OSError.

        The interpreter's exit would stumble over it once more.
        """
        failed = None
        for stream in (self.err, self.out):
            try:
                if stream is not None and not stream.closed:
                    if stream is self.out:
                        self.flush()
                    stream.flush()
            except OSError as error:
                _lead_nowhere(stream)
                failed = error if stream is self.out else None
        if failed is not None:
            raise failed

    def _dimmed(self, text: str) -> str:
        # https://no-color.org; a dumb terminal shows escapes as they are
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        return text if plain else _DIM + text + _PLAIN

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._tell("\n")

    def _tell(self, text: str) -> None:
        if self.err is not None:
            with suppress(OSError, ValueError):  # a closed file is a ValueError
                self.err.write(text)
                self.err.flush()


def _reader_has_left(stream: Any) -> bool:
    """Tell whether nobody can read what would be written, so that a generation is not waited for in vain."""
    try:
        poll = select.poll()
        poll.register(stream, 0)  # errors and hang-ups are told without being asked for
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll; what is no file has no reader
        return False


def _lead_nowhere(stream: Any) -> None:
    with suppress(OSError, ValueError):  # no file at all
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def stdin_is_terminal() -> bool:
    """Tell whether somebody can type."""
    return _is_terminal(sys.stdin)


def read_stdin() -> bytes:
    """Return all of standard input; nothing if it is closed."""
    if sys.stdin is None:
        return b""
    buffer: Any = getattr(sys.stdin, "buffer", None)
    data: bytes = sys.stdin.read().encode("utf-8") if buffer is None else buffer.read()
    return data


def stdin_text() -> str:
    """Return all of standard input as text; `WrongUsage` if it is none."""
    try:
        return read_stdin().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongUsage("standard input is no UTF-8 text (byte %d)" % error.start) from None


def words_text(words: List[str]) -> Optional[str]:
    """Return the text that the words of the command line make; the word ``-`` stands for standard input.

    Without words it is standard input, or ``None`` if that is a terminal.
    """
    if not words:
        return None if stdin_is_terminal() else stdin_text().strip("\n")
    for word in words:
        check_utf8(word)
    return " ".join(stdin_text().strip("\n") if word == "-" else word for word in words)


def lines_of(words: List[str], what: str) -> List[str]:
    """Return the words, or the lines of standard input that are not blank."""
    for word in words:
        check_utf8(word)
    if words and words != ["-"]:
        return words
    if not words and stdin_is_terminal():
        raise WrongUsage("give %s as arguments, or one a line on standard input" % what)
    found = [line for line in stdin_text().split("\n") if line.strip()]
    if not found:
        raise WrongUsage("standard input holds no %s" % what)
    return [line.rstrip("\r") for line in found]


def check_utf8(word: str) -> None:
    """Raise `WrongUsage` for an argument whose bytes are no text."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        raise WrongUsage("the argument %s is no UTF-8 text" % ascii(word)) from None


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False  # closed
