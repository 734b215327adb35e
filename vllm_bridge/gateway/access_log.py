"""One line for each request: what was asked of whom, how it ended and how long it took; never what was said."""

import json
import logging
import re
import sys
import threading
import time
from typing import Any, Dict, TextIO

__all__ = ["logger", "line", "set_up", "write"]

logger = logging.getLogger("vllm_bridge.access")

_field = "%s=%s".__mod__
_PLAIN = re.compile(r"[!#-<>-\[\]-~]*\Z")  # printable ASCII without space, quote, = and backslash


def line(entry: Dict[str, Any], log_format: str) -> str:
    """Return the line of a request; what a client chose is escaped, so that it stays one line."""
    if log_format == "json":
        return json.dumps(entry, separators=(",", ":"))
    fields, values = list(entry.items()), list(entry.values())
    while None in values:
        at = values.index(None)
        del fields[at], values[at]
    text = " ".join(map(_field, fields))
    if text.count(" ") != len(fields) - 1 or text.count("=") != len(fields) or not _is_plain(text):
        text = " ".join([_field((name, _shown(value))) for name, value in fields])
    return text


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def write(text: str) -> None:
    """Log a line at level INFO, without the search for the source line that calls."""
    handlers = logger.handlers
    if len(handlers) == 1 and type(handlers[0]) is _Lines and not (logger.propagate or logger.filters):
        handlers[0].write(text)
    else:
        logger.handle(_record(text))


def _record(text: str) -> logging.LogRecord:
    return logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None)


def _shown(value: Any) -> Any:
    if not isinstance(value, str) or _PLAIN.match(value) is not None:
        return value
    return json.dumps(value)


class _Lines(logging.StreamHandler):  # type: ignore[type-arg]  # no class to be subscripted before 3.11
    """A handler to which a line can be given as it is: making a record costs more than all else of it."""

    def write(self, text: str) -> None:
        with self.lock or threading.Lock():
            try:
                self.stream.write(text + self.terminator)
                self.stream.flush()
            except Exception:
                self.handleError(_record(text))


def set_up(log_format: str, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
    """Send the lines of requests to `out` and all other messages of the gateway to `errors`."""
    handler = _Lines(out)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    package = logging.getLogger("vllm_bridge")
    others = logging.StreamHandler(errors)
    formatter = _JsonFormatter() if log_format == "json" else _TextFormatter()
    formatter.converter = time.gmtime
    others.setFormatter(formatter)
    package.addHandler(others)
    package.setLevel(logging.WARNING)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
