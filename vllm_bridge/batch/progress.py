"""What is seen of a batch while it runs, and what is said at its end."""

import shutil
import sys
import time
from importlib import import_module
from typing import Any, Dict, Optional, Protocol

from .engine import Engine
from .totals import span

__all__ = ["Line", "Shown", "progress_of", "report", "summary"]

_OFTEN, _SELDOM = 0.25, 60.0  # seconds between two lines: on a terminal, elsewhere
_BAR = 20


class Shown(Protocol):
    """What shows how far a batch is."""

    def update(self) -> None:
        """Show it, if it is time to."""

    def close(self) -> None:
        """Show it for the last time."""


class Line:
    """A line on standard error: one that is written over on a terminal, elsewhere a new one each minute.

    `before` is how many of `total` had their answer already.
    """

    def __init__(self, engine: Engine, total: Optional[int], before: int = 0) -> None:
        self._engine = engine
        self._total = total
        self._before = before
        self._err: Any = sys.stderr
        try:
            self._terminal = bool(self._err.isatty())
        except (AttributeError, ValueError):
            self._terminal = False
        self._next = time.monotonic() + (0.0 if self._terminal else _SELDOM)
        self._shown = False

    def update(self) -> None:
        """Show how far it is, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_OFTEN if self._terminal else _SELDOM)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r%s\x1b[K" % self.text()[:width])
            self._shown = True
        else:
            self._write(self.text() + "\n")

    def clear(self) -> None:
        """Take the line away, for one that is to stay."""
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = False

    def close(self) -> None:
        """Leave the line as it is last."""
        if self._terminal:
            self._next = 0.0
            self.update()
            self._write("\n")
            self._shown = False

    def text(self) -> str:
        """Return how far it is."""
        totals, engine = self._engine.totals, self._engine
        done, seconds = totals.done, max(totals.seconds, 1e-3)
        parts = ["%s done" % _thousands(done + self._before)]
        if self._total:
            share = min(1.0, (done + self._before) / self._total)
            bar = "#" * int(share * _BAR)
            parts = ["%s of %s [%-*s] %d %%" % (
                _thousands(done + self._before), _thousands(self._total), _BAR, bar, int(100 * share))]
        parts.append("%s failed" % _thousands(totals.failed))
        parts.append("%s lines/s" % rate(done / seconds))
        parts.append("%.0f + %.0f tokens/s" % (totals.prompt_tokens / seconds, totals.completion_tokens / seconds))
        if self._total and done:
            parts.append("%s left" % span(max(0, self._total - self._before - done) * seconds / done))
        parts.append("%d at a time" % len(engine.under_way))
        away = engine.away()
        if away:
            parts.append("%d server%s away" % (away, "" if away == 1 else "s"))
        return ", ".join(parts)

    def _write(self, text: str) -> None:
        try:
            self._err.write(text)
            self._err.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed


class _Tqdm:
    """The same by tqdm."""

    def __init__(self, engine: Engine, total: Optional[int], tqdm: Any) -> None:
        self._engine = engine
        self._bar = tqdm(total=total, unit="line")

    def update(self) -> None:
        """Show how far it is."""
        self._bar.set_postfix(failed=self._engine.totals.failed, refresh=False)
        self._bar.update(self._engine.totals.done - self._bar.n)

    def close(self) -> None:
        """Show it for the last time."""
        self.update()
        self._bar.close()


def progress_of(engine: Engine, total: Optional[int]) -> Shown:
    """Return what shows how far a batch from Python is: tqdm where that is installed, else a line."""
    try:
        return _Tqdm(engine, total, import_module("tqdm.auto").tqdm)
    except ImportError:
        return Line(engine, total)


def report(engine: Engine, before: int = 0) -> Dict[str, Any]:
    """Return what a batch has done as an object."""
    totals = engine.totals
    seconds = totals.seconds
    return {
        "answered": totals.answered, "failed": totals.failed, "answered_before": before, "retries": totals.retries,
        "errors": totals.errors, "seconds": round(seconds, 3),
        "lines_per_second": round(totals.done / max(seconds, 1e-3), 3),
        "tokens": {"prompt": totals.prompt_tokens, "completion": totals.completion_tokens},
        "latency_seconds": {name: round(value, 4) for name, value in totals.percentiles().items()},
        "concurrency": engine.pace.limit, "away_seconds": round(totals.away_seconds, 3), "stopped": engine.stopped,
    }


def summary(engine: Engine, before: int = 0) -> str:
    """Return the same in a sentence or two."""
    told = report(engine, before)
    latency = told["latency_seconds"]
    text = "%s answered, %s failed" % (_thousands(told["answered"]), _thousands(told["failed"]))
    if before:
        text += " (%s before)" % _thousands(before)
    text += " in %s: %s lines/s, %s + %s tokens" % (
        span(told["seconds"]), rate(told["lines_per_second"]), _thousands(told["tokens"]["prompt"]),
        _thousands(told["tokens"]["completion"]))
    if told["answered"]:
        text += "; an answer took %s (p50), %s (p90), %s (p99), %s at most" % tuple(
            span(latency[name]) for name in ("p50", "p90", "p99", "max"))
    if told["retries"]:
        text += "; %s asked again" % _thousands(told["retries"])
    if told["errors"]:
        text += "; errors: %s" % ", ".join("%s: %d" % pair for pair in sorted(told["errors"].items()))
    return text


def rate(value: float) -> str:
    """Return a rate as people write it."""
    return "{:,.0f}".format(value) if value >= 100 else "%.3g" % value


def _thousands(count: int) -> str:
    return "{:,}".format(count)
