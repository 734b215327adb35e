"""Numbers that several processes count together: one shared memory, a part of it for each process.

Each process writes only its own part, so nothing is locked between them; whoever reads adds the parts up.
The memory is laid out before the fork. A process that replaces another takes over its part, and goes on counting.
"""

import mmap
from typing import TYPE_CHECKING, Dict, Iterator, List, Tuple

__all__ = ["Counters", "Row"]

if TYPE_CHECKING:
    Row = memoryview[float]
else:
    Row = memoryview

_CELL = 8  # bytes: a double
_NAMES = 256 * 1024  # bytes for the names of a part, the length before them
_CELLS = 32 * 1024  # numbers of a part
_PART = _NAMES + _CELLS * _CELL


class Counters:
    """Named rows of numbers, in parts for `parts` processes. Memory that nothing is written to costs nothing.

    Within a process the caller sees to it that one thread at a time makes rows and counts in them.
    """

    def __init__(self, parts: int = 1) -> None:
        self._memory = mmap.mmap(-1, _PART * parts)  # anonymous and shared with the children
        self._parts = parts
        self._view = memoryview(self._memory)
        self._cells = self._view.cast("d")
        self.claim(0)

    def claim(self, part: int) -> None:
        """Write to this part from now on; what a process before left there is kept, but for gauges."""
        self._part = part
        self._rows: Dict[str, Row] = {}
        self._used = 0  # cells of this part
        self._end = 0  # bytes of names of this part
        for name, count in self._names(part):
            row = self._rows[name] = self._row_at(self._used, count)
            if name.startswith("gauge "):
                row[0] = 0.0
            self._used += count
            self._end += len(_line(name, count))

    def row(self, name: str, count: int = 1) -> Row:
        """Return the row of a name, a new one zero; a name has no line end and no tab. A full part counts in vain."""
        row = self._rows.get(name)
        return self._new(name, count) if row is None else row

    def totals(self) -> Dict[str, List[float]]:
        """Return every row, added up over all parts; a gauge of a dead process counts until it is replaced."""
        found: Dict[str, List[float]] = {}
        for part in range(self._parts):
            at = (part * _PART + _NAMES) // _CELL
            for name, count in self._names(part):
                row = list(self._cells[at:at + count])
                at += count
                have = found.get(name)
                found[name] = row if have is None else [one + other for one, other in zip(have, row)]
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._rows = {}
        self._cells.release()
        self._view.release()
        try:
            self._memory.close()
        except BufferError:
            pass  # somebody still holds a row: it goes with them

    def _row_at(self, used: int, count: int) -> Row:
        first = (self._part * _PART + _NAMES) // _CELL + used
        return self._cells[first:first + count]

    def _new(self, name: str, count: int) -> Row:
        line = _line(name, count)
        if _CELL + self._end + len(line) > _NAMES or self._used + count > _CELLS:
            return memoryview(bytearray(_CELL * count)).cast("d")
        start = self._part * _PART
        self._memory[start + _CELL + self._end:start + _CELL + self._end + len(line)] = line
        row = self._rows[name] = self._row_at(self._used, count)
        self._used += count
        self._end += len(line)
        # Last: a reader sees whole names only.
        self._memory[start:start + _CELL] = self._end.to_bytes(_CELL, "little")
        return row

    def _names(self, part: int) -> Iterator[Tuple[str, int]]:
        start = part * _PART
        end = int.from_bytes(self._memory[start:start + _CELL], "little")
        for line in self._memory[start + _CELL:start + _CELL + end].decode("utf-8").splitlines():
            name, _, count = line.rpartition("\t")
            yield name, int(count)


def _line(name: str, count: int) -> bytes:
    return ("%s\t%d\n" % (name, count)).encode("utf-8")
