"""The beginnings of prompts that servers have seen, and so have in their caches: known to one process or several."""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from .routing import Prompt

    Cells = memoryview[int]

__all__ = ["Prefixes", "SharedPrefixes"]

ALONE = 3.0  # how much heavier a message weighs with which only one conversation has gone on: it helps nobody else
_KEPT = 10000  # prefixes of one of two generations: at least so many of the newest are kept


class Prefixes:
    """Beginnings of prompts, and which servers have seen them; the newest are kept."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        # By mark: [bits of the servers, the mark that followed, whether others have followed too].
        self._young: Dict[int, List[Any]] = {}
        self._old: Dict[int, List[Any]] = {}
        self._bits = 0  # of the servers there are

    def join(self, name: Optional[str]) -> int:
        """Return the bit of a server that comes: the lowest that is free."""
        bit = ~self._bits & (self._bits + 1)
        self._bits |= bit
        return bit

    def leave(self, bit: int) -> None:
        """Let another have the bit of a server that goes."""
        self._bits &= ~bit
        self.forget(bit)

    def unseen(self, prompt: "Prompt") -> List[Tuple[int, float, int, int]]:
        """Return what is new to whom: (servers, tokens weighted, characters, place of the first new message) each.

        The last one is for all the other servers.
        """
        entries = self._entries(prompt.marks)
        place = len(entries)
        weight, weighted, plain, done = ALONE / 4.0, 0.0, 0, 0
        found: List[Tuple[int, float, int, int]] = []
        for entry, size in zip(reversed(entries), reversed(prompt.sizes)):
            if entry is not None:
                new = entry[0] & ~done
                if new:
                    found.append((new, weighted, plain, place))
                    done |= new
                if entry[2]:
                    weight = 0.25  # several conversations have gone on from here: a later one will find it seen
            place -= 1
            plain += size
            weighted += weight * size
        found.append((-1, weighted, plain, 0))
        return found if prompt.session is None else self._with_session(prompt, found, done)

    def _with_session(
        self, prompt: "Prompt", found: List[Tuple[int, float, int, int]], done: int
    ) -> List[Tuple[int, float, int, int]]:
        """Take whoever had the session before for one that has seen all but the last message, or half of it."""
        entry = self._entries((prompt.session or 0,))[0]
        had = 0 if entry is None else entry[0] & ~done
        if had:
            last = prompt.sizes[-1] if len(prompt.sizes) > 1 else sum(prompt.sizes) // 2
            found.insert(0, (had, ALONE / 4.0 * last, last, 0))
        return found

    def note(self, prompt: "Prompt", bit: int, place: int) -> None:
        """Note that a server sees a prompt, whose messages before a place it has seen."""
        marks, young = prompt.marks, self._young
        before = young.get(marks[place - 1]) if place else None
        for mark in marks[place:] if place else marks:
            entry = young.get(mark)
            if entry is None:
                entry = young[mark] = [bit, None, False]
            else:
                entry[0] |= bit
            if before is not None and before[1] != mark:
                if before[1] is None:
                    before[1] = mark
                else:
                    before[2] = True
            before = entry
        if prompt.session is not None:
            young[prompt.session] = [bit, None, False]
        if len(young) > self._kept:
            self._old, self._young = young, {}

    def undo(self, prompt: "Prompt", bit: int) -> None:
        """Note that a server has not seen a prompt after all."""
        for mark in prompt.marks[prompt.place:]:
            entry = self._young.get(mark)
            if entry is not None:
                entry[0] &= ~bit

    def forget(self, bit: int) -> None:
        """Forget what a server has seen: it begins anew."""
        for entry in list(self._young.values()) + list(self._old.values()):
            entry[0] &= ~bit

    def _entries(self, marks: Sequence[int]) -> List[Any]:
        """Return what is known of each mark; what is used again counts as new."""
        entries: List[Any] = [*map(self._young.get, marks)]
        if self._old and None in entries:
            for at, entry in enumerate(entries):
                if entry is None and marks[at] in self._old:
                    entries[at] = self._young[marks[at]] = self._old.pop(marks[at])
        return entries


class SharedPrefixes(Prefixes):
    """The same in memory that processes share which were forked from one, and so have the same hashes.

    It is written without a lock: at worst a server is taken for one that has seen what it has not. A mark has one
    place, and goes when another one comes there. `memory` are `CELLS` numbers of eight bytes, all zero at first.
    """

    _PLACES = 1 << 17
    _NAMES = 32  # servers that have a bit of their own
    CELLS = 2 * _PLACES + _NAMES  # the marks, what is known of them, the servers
    _BITS, _NEXT, _SEVERAL, _ALL = (1 << 32) - 1, (1 << 31) - 1, 1 << 63, (1 << 64) - 1

    def __init__(self, memory: "Cells") -> None:
        super().__init__(0)
        self._memory = memory

    def join(self, name: Optional[str]) -> int:
        """Return the bit of a server, which is the same in all processes."""
        wanted = hash(name) & self._ALL or 1
        for number in range(self._NAMES):
            at = 2 * self._PLACES + number
            if not self._memory[at]:
                self._memory[at] = wanted
            if self._memory[at] == wanted:
                return 1 << number
        return 1 << wanted % self._NAMES  # shared with another one: better than none

    def leave(self, bit: int) -> None:
        """Do nothing: it may still be there for another process."""

    def forget(self, bit: int) -> None:
        """Do nothing: what is not used again is overwritten before long."""

    def undo(self, prompt: "Prompt", bit: int) -> None:
        """Note that a server has not seen a prompt after all."""
        for mark in prompt.marks[prompt.place:]:
            at = mark % self._PLACES
            if self._memory[at] == mark & self._ALL:
                self._memory[self._PLACES + at] &= ~bit

    def note(self, prompt: "Prompt", bit: int, place: int) -> None:
        """Note that a server sees a prompt, whose messages before a place it has seen."""
        before = None
        for mark in prompt.marks[max(place - 1, 0):]:
            if before is not None:
                self._follows(before, mark & self._NEXT)
            before = mark % self._PLACES
            self._write(mark, bit, True)
        if prompt.session is not None:
            self._write(prompt.session, bit, False)

    def _write(self, mark: int, bit: int, more: bool) -> None:
        memory, at = self._memory, mark % self._PLACES
        if memory[at] == mark & self._ALL and more:
            memory[self._PLACES + at] |= bit
        else:
            memory[at], memory[self._PLACES + at] = mark & self._ALL, bit

    def _follows(self, at: int, following: int) -> None:
        known = self._memory[self._PLACES + at]
        if not known >> 32 & self._NEXT:
            self._memory[self._PLACES + at] = known | following << 32
        elif known >> 32 & self._NEXT != following:
            self._memory[self._PLACES + at] = known | self._SEVERAL

    def _entries(self, marks: Sequence[int]) -> List[Any]:
        memory, places = self._memory, self._PLACES
        found: List[Any] = []
        for mark in marks:
            at = mark % places
            known = memory[places + at] if memory[at] == mark & self._ALL else 0
            found.append((known & self._BITS, None, known & self._SEVERAL) if known else None)
        return found
