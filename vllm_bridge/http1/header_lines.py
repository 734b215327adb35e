"""Header lines, read and written: strictly, and those that come again with every message only once; no sockets."""

import re
from typing import Any, Dict, ItemsView, Iterator, List, Mapping, Optional, Tuple

__all__ = ["FIELD_LINE", "Fields", "Pairs", "TOKEN", "checked_fields", "field_block", "keep", "read_lines"]

Pairs = List[Tuple[str, str]]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# A line's parts share no character with what follows them, so a failed match backs off once over the text: the time
# is linear in the length whatever the input.
FIELD_LINE = re.compile(r"%s:[\t -~\x80-\xff]*" % TOKEN)
_FIELD_LINES = re.compile(r"(?:%s:[\t -~\x80-\xff]*\r\n)*" % TOKEN)

# Lines that come again with every message are taken apart once; none that holds a secret or an id.
_RECURRING = frozenset((
    "accept accept-encoding accept-language cache-control connection content-length content-type date host keep-alive "
    "pragma server transfer-encoding user-agent vary x-content-type-options x-frame-options"
).split())
_LINES_KEPT = 1000
_lines: Dict[str, Tuple[str, str]] = {}
_written: Dict[Tuple[str, str], str] = {}


class Fields(Mapping[str, str]):
    """Header fields, found by their names in any case; iterating gives the names in lower case."""

    __slots__ = ("_lower",)

    def __init__(self, lower: Dict[str, str]) -> None:
        self._lower = lower

    def __getitem__(self, name: str) -> str:
        return self._lower[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default`."""
        return self._lower.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lower)

    def __len__(self) -> int:
        return len(self._lower)

    def __repr__(self) -> str:
        return "Fields(%r)" % self._lower

    def lower_items(self) -> ItemsView[str, str]:
        """Return (lower-case name, value) of each field, as requests' own mapping does."""
        return self._lower.items()


def checked_fields(block: str) -> Pairs:
    """Return (lower-case name, value) of header or trailer lines; raises ValueError."""
    if _FIELD_LINES.fullmatch(block) is None:
        raise ValueError("a header name or value has a character that HTTP does not allow")
    return [_pair(line) for line in block.split("\r\n")[:-1]]


def _pair(line: str) -> Tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip(" \t")


def read_lines(lines: List[str]) -> Optional[Pairs]:
    """Return (lower-case name, value) of each line, ``None`` if one of them is no header line."""
    headers = list(map(_lines.get, lines))
    while None in headers:
        at = headers.index(None)
        pair = _new_pair(lines[at])
        if pair is None:
            return None
        headers[at] = pair
    return headers  # type: ignore[return-value]  # no None is left


def _new_pair(line: str) -> Optional[Tuple[str, str]]:
    if FIELD_LINE.fullmatch(line) is None:
        return None
    pair = _pair(line)
    if pair[0] in _RECURRING and len(line) < 200:
        keep(_lines, line, pair)
    return pair


def field_block(headers: Pairs) -> str:
    """Write header lines; raises ValueError where one would not be read back as it is."""
    lines = list(map(_written.get, headers))
    while None in lines:
        at = lines.index(None)
        lines[at] = _write(headers[at])
    return "".join(lines)  # type: ignore[arg-type]  # no None is left


def _write(pair: Tuple[str, str]) -> str:
    line = "%s: %s" % pair
    if FIELD_LINE.fullmatch(line) is None:
        raise ValueError("a header name or value has a character that HTTP does not allow")
    line += "\r\n"
    if pair[0].lower() in _RECURRING and len(line) < 200:
        keep(_written, pair, line)
    return line


def keep(kept: Dict[Any, Any], line: Any, parts: Any) -> None:
    """Keep the parts of a line, and not without limit."""
    if len(kept) >= _LINES_KEPT:
        kept.clear()
    kept[line] = parts
