"""What a batch has done so far."""

import math
import time
from typing import Dict

from .result import Result

__all__ = ["Totals", "span"]

_STEP = 1.05  # times from one class of durations to the next
_SHORTEST = 1e-4  # seconds


class Totals:
    """Counts of a batch: requests, tokens, and how long answers took. The engine holds its lock while it adds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.answered = 0  # without an error
        self.failed = 0
        self.retries = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.errors: Dict[str, int] = {}
        self.away_seconds = 0.0  # in which no server answered
        self._classes = [0] * 400
        self._longest = 0.0

    @property
    def done(self) -> int:
        """Requests that have their answer, or their error."""
        return self.answered + self.failed

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.started

    def add(self, result: Result, seconds: float) -> int:
        """Count a result, whose last attempt took so long; return its tokens."""
        self.retries += max(0, result.attempts - 1)
        error = result.error
        if error is not None:
            self.failed += 1
            name = str(error.status_code or error.code or type(error).__name__)
            self.errors[name] = self.errors.get(name, 0) + 1
            return 0
        self.answered += 1
        if seconds > self._longest:
            self._longest = seconds
        place = int(math.log(seconds / _SHORTEST) * _PER_E) if seconds > _SHORTEST else 0
        self._classes[min(place, len(self._classes) - 1)] += 1
        usage = result.payload.get("usage")
        if type(usage) is not dict:
            return 0
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if prompt is None:  # the Responses API's names
            prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
        self.prompt_tokens += prompt if type(prompt) is int else 0
        self.completion_tokens += completion if type(completion) is int else 0
        return completion if type(completion) is int else 0

    def percentiles(self) -> Dict[str, float]:
        """Return seconds until the answer: half of the requests, nine of ten, 99 of a hundred, and the longest."""
        return {"p50": self._within(0.5), "p90": self._within(0.9), "p99": self._within(0.99), "max": self._longest}

    def _within(self, share: float) -> float:
        left = share * self.answered
        for place, number in enumerate(self._classes):
            left -= number
            if number and left <= 0:
                return min(self._longest, _SHORTEST * math.exp((place + 0.5) / _PER_E))
        return self._longest


_PER_E = 1 / math.log(_STEP)


def span(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 120:
        return "%.3g s" % seconds
    if seconds < 7200:
        return "%.3g min" % (seconds / 60)
    return "%.3g h" % (seconds / 3600)
