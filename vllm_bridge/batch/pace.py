"""How many requests at a time: more while that brings more answers, fewer where servers refuse, queue or time out."""

import re
import time
from typing import Callable, Optional, Tuple

__all__ = ["MOST", "Pace", "queue_of"]

MOST = 1024
_FIRST = 8
_UNSEEN = 64  # requests at a time up to which it goes before any was answered, where servers do not tell their queue
_LEAST_WINDOW = 0.3  # seconds
_STEADY = 5  # windows after which more are tried once more
_GAIN = 1.05  # times the rate that twice as many have to bring
_LESS = 0.7  # what is left of the number after a refusal
_GAUGE = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{[^}\n]*\})?[ \t]+([0-9.eE+]+)", re.MULTILINE)


def queue_of(metrics: bytes) -> Optional[Tuple[int, int]]:
    """Return how many requests run and how many wait, as vLLM's ``/metrics`` tells; ``None`` where it does not."""
    counts = {b"running": 0, b"waiting": 0}
    found = _GAUGE.findall(metrics)
    for name, value in found:
        counts[name] += int(float(value))
    return (counts[b"running"], counts[b"waiting"]) if found else None


class Pace:
    """The number of requests under way (`limit`): the one that is given, or one that is found.

    The rate that a number brings is that number over the time that a request takes (Little's law), which a few answers
    tell well. It is doubled until that brings nothing, and then tried with a fourth more from time to time. Whoever
    calls holds the engine's lock.
    """

    def __init__(self, fixed: Optional[int] = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = fixed or _FIRST
        self._fixed = fixed is not None
        self._clock = clock
        self._kept = self.limit  # the best number so far, and its rate
        self._best = 0.0
        self._doubling = True
        self._windows = 0  # since the number was last changed for good
        self._seconds = self._work = 0.0  # of the answers in this window
        self._count = 0
        self._since = clock()
        self._longest = 0.0

    def answered(self, started: float, seconds: float, work: float) -> None:
        """Note an answer: when it was asked, how long it took, and how many tokens it has."""
        if started >= self._since:
            self._count += 1
            self._seconds += seconds
            self._work += 1.0 + work
            self._longest = seconds

    def refused(self, started: float) -> None:
        """Note that a server took on no more, or did not answer in time."""
        if not self._fixed and started >= self._since:  # one step down for all that were under way
            self._kept, self._best, self._doubling = max(1, int(self.limit * _LESS)), 0.0, False
            self._set(self._kept)

    def tick(self, used: bool, queue: Optional[Tuple[int, int]] = None) -> None:
        """Change the number if there is reason to; `used` tells whether as many are under way as may be.

        `queue` is how many run and wait at the servers, if they have told since the last call.
        """
        if self._fixed:
            return
        if queue is not None and queue[1] > queue[0] + 2:  # fewer wait than run: no slot is free for long
            self._kept, self._best, self._doubling = max(1, self.limit - queue[1] + queue[0] // 2), 0.0, False
            self._set(self._kept)
        elapsed = self._clock() - self._since
        if not used:
            self._set(self.limit)
        elif not self._count and self._doubling:
            seen = queue is not None
            if elapsed >= 1.0 and (seen or self.limit < _UNSEEN):
                self._set(2 * self.limit if seen else min(2 * self.limit, _UNSEEN))
        elif elapsed >= _LEAST_WINDOW and self._count >= max(self.limit, 8):
            self._measured(self.limit * self._work / max(self._seconds, 1e-9))

    def _measured(self, rate: float) -> None:
        more = self.limit > self._kept
        if self._doubling or more:
            if rate > self._best * (_GAIN if self._doubling else (1 + _GAIN) / 2):
                self._kept, self._best = self.limit, rate
                self._set(2 * self.limit if self._doubling else self._a_fourth_more())
            else:
                self._doubling, self._windows = False, 0
                self._set(self._kept)
            return
        self._windows += 1
        self._best = rate if self._windows == 1 else 0.5 * (self._best + rate)
        self._set(self.limit if self._windows % _STEADY else self._a_fourth_more())

    def _a_fourth_more(self) -> int:
        return self.limit + max(1, self.limit // 4)

    def _set(self, limit: int) -> None:
        self.limit = max(1, min(limit, MOST))
        self._since = self._clock()
        self._seconds = self._work = 0.0
        self._count = 0
