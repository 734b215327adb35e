"""The lines of a file or a pipe, and how they are known again."""

import re
from array import array
from bisect import bisect_left
from hashlib import blake2b
from typing import Callable, Iterator, List, Optional, Sequence

from ..nesting import loads

__all__ = ["Hashes", "key_hash", "key_of", "keys_of", "line_blocks", "text_hash"]

_BLOCK = 256 * 1024
_LONGEST = 100 * 1024 * 1024  # bytes of a line
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

_FIRST = re.compile(rb'[ \t]*\{[ \t]*"custom_id"[ \t]*:[ \t]*"([ !#-\[\]-~]*)"')  # printable ASCII without escapes
_NAME = b'"custom_id"'
_ESCAPE = b"\\u00"  # by which the name may be written too


def line_blocks(read: Callable[[int], bytes], longest: int = _LONGEST) -> Iterator[List[Optional[bytes]]]:
    """Yield lines without their ends, as many at a time as have come; ``None`` is one that is too long.

    `read` returns some bytes as soon as there are any, and none at the end. Raises ValueError for UTF-16.
    """
    begun: List[bytes] = []  # the line whose end has not come
    size = 0
    for block in _blocks(read):
        head, *others = block.split(b"\n")
        size += len(head)
        begun.append(head)
        if size > longest:
            begun.clear()
        if others:
            lines: List[Optional[bytes]] = [b"".join(begun) if size <= longest else None]
            last = others.pop()
            lines += others
            begun, size = [last], len(last)
            yield lines
    if size:
        yield [b"".join(begun) if size <= longest else None]


def _blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    block = read(_BLOCK)
    while 0 < len(block) < len(_BOM):
        more = read(_BLOCK)
        if not more:
            break
        block += more
    if block.startswith(_UTF16):
        raise ValueError("it is UTF-16: convert it to UTF-8")
    if block.startswith(_BOM):
        block = block[len(_BOM):] or read(_BLOCK)
    while block:
        yield block
        block = read(_BLOCK)


# ---------------------------------------------------------------- known again


def key_of(line: bytes) -> Optional[bytes]:
    """Return the ``custom_id`` of a line in UTF-8, ``None`` if it has none that can be read."""
    match = _FIRST.match(line)
    if match is not None and line.count(_NAME) == 1 and _ESCAPE not in line:
        return match.group(1)
    if _NAME not in line and _ESCAPE not in line:
        return None
    try:
        found = loads(line)
        key = found.get("custom_id") if isinstance(found, dict) else None
        return key.encode("utf-8") if isinstance(key, str) else None
    except (ValueError, RecursionError):
        return None


def keys_of(lines: Sequence[Optional[bytes]]) -> Optional[List[bytes]]:
    """Return the ``custom_id`` of each line where all begin with one; ``None`` where each has to be looked at."""
    if None in lines:
        return None
    matches = list(map(_FIRST.match, lines))  # type: ignore[arg-type]
    if None in matches:
        return None
    text = b"\n".join(lines)  # type: ignore[arg-type]
    if text.count(_NAME) != len(lines) or _ESCAPE in text:
        return None
    return [match.group(1) for match in matches]  # type: ignore[union-attr]


def key_hash(key: bytes) -> int:
    """Return 8 bytes that stand for a ``custom_id`` while this process runs; never 0."""
    return hash(key) or 1


def text_hash(line: bytes) -> bytes:
    """Return the 16 digits that a line without a ``custom_id`` is known by."""
    return blake2b(line, digest_size=8).hexdigest().encode("ascii")


class Hashes:
    """A set of hashes of 8 bytes, each of which takes 8 bytes."""

    _PARTS = 4096

    def __init__(self) -> None:
        self._parts = [array("q") for _ in range(self._PARTS)]

    def add(self, value: int) -> bool:
        """Add a hash; tell whether it is new."""
        part = self._parts[value & 4095]
        place = bisect_left(part, value)
        if place < len(part) and part[place] == value:
            return False
        part.insert(place, value)
        return True

    def __contains__(self, value: int) -> bool:
        part = self._parts[value & 4095]
        place = bisect_left(part, value)
        return place < len(part) and part[place] == value
