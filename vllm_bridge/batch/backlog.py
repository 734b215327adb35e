"""The requests that wait to be asked again."""

import heapq
import random
import time
from itertools import count
from typing import List, Optional, Tuple

from ..client.retry import never_sent
from ..errors import BridgeError
from .request import Request
from .result import Result

__all__ = ["Backlog", "Item", "pause"]

_MOST, _MOST_BYTES = 10000, 64 * 1024 * 1024
_FIRST, _LONGEST = 0.5, 60.0  # seconds between two tries of one request
_ONCE_MORE = 0.05  # seconds until a request that has not left goes on to another server


class Item:
    """Requests that are asked together, and what became of them so far."""

    __slots__ = ("requests", "turn", "results", "attempts", "begun", "failing_since", "size")

    def __init__(self, requests: List[Request], turn: int) -> None:
        self.requests = requests
        self.turn = turn
        self.results: List[Result] = []
        self.attempts = 0
        self.begun = time.monotonic()
        self.failing_since: Optional[float] = None
        self.size = sum([request.size for request in requests])


class Backlog:
    """Items by when they are due. Whoever calls holds the engine's lock."""

    def __init__(self) -> None:
        self._heap: List[Tuple[float, int, Item]] = []
        self._bytes = 0
        self._number = count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def is_full(self) -> bool:
        """Whether nothing new should be begun."""
        return len(self._heap) >= _MOST or self._bytes >= _MOST_BYTES

    def add(self, item: Item, due: float) -> None:
        """Have an item wait."""
        heapq.heappush(self._heap, (due, next(self._number), item))
        self._bytes += item.size

    def due(self, now: float) -> Optional[Item]:
        """Take out an item whose time has come."""
        if not self._heap or self._heap[0][0] > now:
            return None
        item = heapq.heappop(self._heap)[2]
        self._bytes -= item.size
        return item

    def count_due(self, now: float) -> int:
        """Return how many items' time has come."""
        return sum([due <= now for due, _, _ in self._heap])

    def least_tried(self, most: float) -> Optional[Item]:
        """Take out the item that was asked least, due or not, if that was at most so often."""
        entry = min(self._heap, key=lambda entry: (entry[2].attempts, entry[0]), default=None)
        if entry is None or entry[2].attempts > most:
            return None
        self._heap.remove(entry)
        heapq.heapify(self._heap)
        self._bytes -= entry[2].size
        return entry[2]

    def hurry(self, now: float) -> None:
        """Let the time of all have come."""
        self._heap = [(min(due, now), number, item) for due, number, item in self._heap]
        heapq.heapify(self._heap)


def pause(error: BridgeError, attempts: int) -> float:
    """Return the seconds until a request that failed so is asked again."""
    if never_sent(error) and attempts < 3:
        return _ONCE_MORE
    seconds = _FIRST * 2.0 ** min(attempts - 1, 16) * (0.8 + 0.4 * random.random())
    return min(max(seconds, error.retry_after or 0.0), _LONGEST)
