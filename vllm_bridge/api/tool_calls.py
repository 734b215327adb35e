"""Which call each fragment of a streamed ``tool_calls`` belongs to, whatever its server numbers and names."""

import json
import re
from typing import Any, Dict, List, Optional, Set, Tuple

__all__ = ["ToolCalls", "arguments_text"]

_MARKS = re.compile(r'[\\"{}\[\]]')


def arguments_text(arguments: Any) -> str:
    """Return the arguments of a call as text: as received, ``""`` for null, an object as JSON."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


class ToolCalls:
    """Number the calls of one choice.

    OpenAI's streams tell calls apart by ``index``. Others give parallel calls the same index with ids and names of
    their own (Dynamo, Ollama), no index at all, or a new id to every fragment of one call. So another id *and* name
    begin another call where the one before is complete, and later fragments of that index follow the newest.
    """

    def __init__(self) -> None:
        self._calls: Dict[int, _Call] = {}
        self._next = 0
        self._of_index: Dict[int, int] = {}  # the newest call of an index
        self._of_place: Dict[int, int] = {}  # and that of a place in the list
        self._of_id: Dict[Tuple[Optional[int], str], int] = {}  # by index and id, and by id alone
        self._place = 0
        self._in_delta: Set[int] = set()  # the calls that the delta at hand has told of

    def number(self, fragment: Dict[str, Any], place: int) -> int:
        """Return the call that a fragment belongs to: its index where that is free, else the next number.

        `place` is the fragment's place in the list of its delta.
        """
        index = fragment.get("index")
        index = index if isinstance(index, int) else None
        call_id = _word(fragment.get("id"))
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        name, arguments = _word(function.get("name")), arguments_text(function.get("arguments"))
        if place <= self._place:
            self._in_delta.clear()
        self._place = place
        number = self._of_id.get((index, call_id)) if call_id else None
        if number is None:
            number = self._of_place.get(place) if index is None else self._of_index.get(index)
            if number is None or (name and self._begins(number, index, call_id, name, arguments)):
                number = place if index is None else index
                if number in self._calls:
                    number = self._next
                self._next = max(self._next, number + 1)
                self._calls[number] = _Call()
        self._calls[number].add(call_id, name, arguments)
        self._of_index[number if index is None else index] = self._of_place[place] = number
        if call_id:
            self._of_id.setdefault((index, call_id), number)
            self._of_id.setdefault((None, call_id), number)
        self._in_delta.add(number)
        return number

    def _begins(self, number: int, index: Optional[int], call_id: str, name: str, arguments: str) -> bool:
        """Tell whether a named fragment of no known id is another call than the one it would follow."""
        call = self._calls[number]
        if not call_id or not call.id:
            return call.complete() and arguments.lstrip().startswith("{")
        if index is None or number in self._in_delta or call.complete():
            return True
        return name != call.name and bool(call.name) and not call.open()


class _Call:
    """What is known of one call: how far its arguments are is looked at only when it matters."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self._pieces: List[str] = []  # not looked at so far
        self._began = False
        self._depth = 0
        self._in_string = False
        self._skipped = -1  # where in the next piece a character stands that a backslash escapes

    def add(self, call_id: str, name: str, arguments: str) -> None:
        self.id = self.id or call_id
        self.name = self.name or name
        if arguments:
            self._pieces.append(arguments)

    def complete(self) -> bool:
        """Tell whether the arguments are an object that has been closed."""
        return not self.open() and self._began

    def open(self) -> bool:
        """Tell whether the arguments stop within an object, a list or a string."""
        for piece in self._pieces:
            self._look_at(piece)
        self._pieces = []
        return self._depth > 0 or self._in_string

    def _look_at(self, piece: str) -> None:
        skipped = self._skipped
        for mark in _MARKS.finditer(piece):
            at, sign = mark.start(), mark.group()
            if at == skipped:
                continue
            if sign == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                skipped = at + 1 if sign == "\\" else skipped
            elif sign in "{[":
                self._began = True
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
        self._skipped = skipped - len(piece)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""
