"""One line for each request: what was asked of whom, how it ended and how long it took; never what was said."""

import json
import logging
import os
import re
import select
import sys
import threading
import time
from typing import Any, Dict, List, Optional, TextIO

from ..config.redaction import one_line, shortened

__all__ = ["Lines", "Output", "dropped", "flush", "line", "logger", "set_up", "write"]

logger = logging.getLogger("vllm_bridge.access")

_field = "%s=%s".__mod__
_PLAIN = re.compile(r"[!#-<>-\[\]-~]*\Z")  # printable ASCII without space, quote, = and backslash
_LONGEST = 500  # characters of what a client chose
_WAITING = 1024 * 1024  # bytes that wait for a reader; what comes then is dropped
_AT_ONCE = 4096  # bytes that a pipe reported as writable takes without blocking (POSIX: PIPE_BUF)
_TELLING = ("vllm_bridge.gateway", "vllm_bridge.fleet")  # loggers whose messages at level INFO are for an operator
_outputs: List["Output"] = []


def line(entry: Dict[str, Any], log_format: str) -> str:
    """Return the line of a request; what a client chose is escaped, so that it stays one line, and cut."""
    for name in ("path", "model"):
        if len(entry.get(name) or "") > _LONGEST:
            entry[name] = shortened(entry[name], _LONGEST)
    if log_format == "json":
        return json.dumps(entry, separators=(",", ":"))
    fields = [pair for pair in entry.items() if pair[1] is not None]
    text = " ".join(map(_field, fields))
    if text.count(" ") != len(fields) - 1 or text.count("=") != len(fields) or not _is_plain(text):
        text = " ".join([_field((name, _shown(value))) for name, value in fields])
    return text


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def _shown(value: Any) -> Any:
    if not isinstance(value, str) or _PLAIN.match(value) is not None:
        return value
    return json.dumps(value)


class Output:
    """A stream of lines that nobody waits for: what its reader leaves lying is dropped, and counted."""

    def __init__(self, stream: Optional[TextIO]) -> None:
        self.dropped = 0  # lines
        self._stream = stream  # None: it is closed, as where a service has no standard output
        self._lock = threading.RLock()  # a signal may be told of while a line is written
        self._waiting = bytearray()
        try:
            self._number = -1 if stream is None else stream.fileno()
        except (AttributeError, OSError, ValueError):
            self._number = -1  # no file: a test's

    def write(self, text: str) -> None:
        """Write whole lines, or keep them while the reader is slow."""
        if self._stream is None:
            return
        if self._number < 0:
            with self._lock:
                self._stream.write(text)
                self._stream.flush()
            return
        data = text.encode(getattr(self._stream, "encoding", None) or "utf-8", "backslashreplace")
        with self._lock:
            if len(self._waiting) + len(data) > _WAITING:
                self.dropped += text.count("\n")
                return
            self._waiting += data
            self._flush()

    def flush(self, seconds: float = 0.0) -> None:
        """Write what waits, as far as the reader takes it within this time."""
        end = time.monotonic() + seconds
        with self._lock:
            while self._waiting and self._flush(max(0.0, end - time.monotonic())):
                pass

    def _flush(self, seconds: float = 0.0) -> bool:
        """Write as long as that blocks nobody; tell whether the reader took anything."""
        took = False
        while self._waiting and self._is_writable(0.0 if took else seconds):
            block = bytes(self._waiting[:_AT_ONCE])
            try:  # whole lines, for other workers write between two blocks
                del self._waiting[:os.write(self._number, block[:block.rfind(b"\n") + 1] or block)]
            except OSError:  # nobody will ever read it
                del self._waiting[:]
            took = True
        return took

    def _is_writable(self, seconds: float) -> bool:
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._number, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


class Lines(logging.Handler):
    """Messages to an `Output`."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message as a line."""
        try:
            self.output.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def write(lines: List[str]) -> None:
    """Log lines at level INFO, without a record for each where only `set_up` listens."""
    handlers = logger.handlers
    if len(handlers) == 1 and type(handlers[0]) is Lines and not (logger.propagate or logger.filters):
        handlers[0].output.write("\n".join(lines) + "\n")
        return
    for text in lines:
        logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None))


def flush(seconds: float = 0.0) -> None:
    """Write what waits for its readers."""
    for output in _outputs:
        output.flush(seconds)


def dropped() -> int:
    """Return how many lines have been dropped since this was asked last."""
    count = sum(output.dropped for output in _outputs)
    for output in _outputs:
        output.dropped = 0
    return count


def set_up(log_format: str, out: Optional[TextIO] = sys.stdout, errors: Optional[TextIO] = sys.stderr) -> Output:
    """Send the lines of requests to `out` and all other messages of the gateway to `errors`; return the first."""
    _outputs[:] = [Output(out), Output(errors)]
    handler = Lines(_outputs[0])
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    package = logging.getLogger("vllm_bridge")
    others = Lines(_outputs[1])
    formatter = _JsonFormatter() if log_format == "json" else _TextFormatter()
    formatter.converter = time.gmtime
    others.setFormatter(formatter)
    asked = [each for each in package.handlers if each.name == "VLLM_BRIDGE_LOG"]
    package.addHandler(others)
    if asked:  # it has set the level
        package.removeHandler(asked[0])
    else:
        package.setLevel(logging.WARNING)
    for name in _TELLING:
        logging.getLogger(name).setLevel(logging.INFO)
    return _outputs[0]


class _TextFormatter(logging.Formatter):
    """A message is one line, and the lines of a traceback stand further in: none can be taken for another message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(["  " + one_line(text) for text in super().formatException(ei).split("\n")])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
