"""Numbers that several processes count together: one shared memory, a part of it for each process.

Each process writes only its own part, so nothing is locked between them; whoever reads adds the parts up.
The memory is laid out before the fork. A process that replaces another takes over its part, and goes on counting.
"""

import mmap
import threading
from typing import Dict, Iterator, List, Tuple

__all__ = ["Board", "Series"]

_CELL = 8  # bytes: a double
_NAMES = 256 * 1024  # bytes for the names of a part, the length before them
_CELLS = 32 * 1024  # numbers of a part
_PART = _NAMES + _CELLS * _CELL


class Series:
    """Some numbers under one name, in this process's part."""

    __slots__ = ("cells", "at")

    def __init__(self, cells: "memoryview[float]", at: int) -> None:
        self.cells = cells
        self.at = at

    def add(self, value: float, index: int = 0) -> None:
        """Add to a number; the caller keeps other threads of this process away."""
        self.cells[self.at + index] += value

    def set(self, value: float) -> None:
        """Set the first number."""
        self.cells[self.at] = value


class Board:
    """Named rows of numbers, in parts for `parts` processes. Memory that nothing is written to costs nothing."""

    def __init__(self, parts: int = 1) -> None:
        self._memory = mmap.mmap(-1, _PART * parts)  # anonymous and shared with the children
        self._parts = parts
        self._view = memoryview(self._memory)
        self._all = self._view.cast("d")
        self._lock = threading.Lock()
        self._series: Dict[str, Series] = {}
        self._used = 0  # cells of this part
        self._end = 0  # bytes of names of this part
        self.claim(0)

    def claim(self, part: int) -> None:
        """Write to this part from now on; what a process before left there is kept, but for gauges."""
        self._part = part
        self._series = {}
        self._used = 0
        self._end = 0
        for name, count in self._names(part):
            series = self._series[name] = self._at(self._used)
            if name.startswith("gauge "):
                series.set(0.0)
            self._used += count
            self._end += len(name.encode("utf-8")) + len(str(count)) + 2

    def series(self, name: str, count: int = 1) -> Series:
        """Return the row of a name, new ones zero; a name without a line end or a tab. A full part counts in vain."""
        series = self._series.get(name)
        if series is not None:
            return series
        with self._lock:
            series = self._series.get(name)
            if series is None:
                series = self._new(name, count)
            return series

    def totals(self) -> Dict[str, List[float]]:
        """Return every row, added up over all parts; a gauge of a dead process counts until it is replaced."""
        found: Dict[str, List[float]] = {}
        for part in range(self._parts):
            at = self._first_cell(part)
            for name, count in self._names(part):
                row = list(self._all[at:at + count])
                at += count
                have = found.get(name)
                found[name] = row if have is None else [one + other for one, other in zip(have, row)]
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._series = {}
        self._all.release()
        self._view.release()
        try:
            self._memory.close()
        except BufferError:
            pass  # somebody still holds a row: it goes with them

    def _first_cell(self, part: int) -> int:
        return (part * _PART + _NAMES) // _CELL

    def _at(self, used: int) -> Series:
        return Series(self._all, self._first_cell(self._part) + used)

    def _new(self, name: str, count: int) -> Series:
        line = ("%s\t%d\n" % (name, count)).encode("utf-8")
        if _CELL + self._end + len(line) > _NAMES or self._used + count > _CELLS:
            return Series(memoryview(bytearray(_CELL * count)).cast("d"), 0)
        start = self._part * _PART
        self._memory[start + _CELL + self._end:start + _CELL + self._end + len(line)] = line
        series = self._series[name] = self._at(self._used)
        self._used += count
        self._end += len(line)
        # Last: a reader sees whole names only.
        self._memory[start:start + _CELL] = self._end.to_bytes(_CELL, "little")
        return series

    def _names(self, part: int) -> Iterator[Tuple[str, int]]:
        start = part * _PART
        end = int.from_bytes(self._memory[start:start + _CELL], "little")
        for line in self._memory[start + _CELL:start + _CELL + end].decode("utf-8").splitlines():
            name, _, count = line.rpartition("\t")
            yield name, int(count)
