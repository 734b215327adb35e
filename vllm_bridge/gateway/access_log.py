"""One line for each request: what was asked of whom, how it ended and how long it took; never what was said."""

import json
import logging
import re
import sys
import time
from typing import Any, Dict, TextIO

__all__ = ["logger", "line", "set_up", "write"]

logger = logging.getLogger("vllm_bridge.access")

_PLAIN = re.compile(r"[!#-<>-\[\]-~]*\Z")  # printable ASCII without space, quote, = and backslash


def line(entry: Dict[str, Any], log_format: str) -> str:
    """Return the line of a request; what a client chose is escaped, so that it stays one line."""
    if log_format == "json":
        return json.dumps(entry, separators=(",", ":"))
    return " ".join("%s=%s" % (name, _shown(value)) for name, value in entry.items() if value is not None)


def write(text: str) -> None:
    """Log a line at level INFO, without the search for the source line that calls."""
    logger.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, text, (), None))


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.match(value) is not None:
        return value
    return json.dumps(value)


def set_up(log_format: str, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
    """Send the lines of requests to `out` and all other messages of the gateway to `errors`."""
    handler = logging.StreamHandler(out)
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
