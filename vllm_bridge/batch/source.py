"""IN: the requests of a file or a pipe, without those that have their answer."""

import os
import stat
from array import array
from collections import Counter
from operator import eq
from typing import Dict, Iterator, List, Optional, Set

from ..errors import BadRequestError, ConfigError
from .answers import DUPLICATE, Answered, hex_hash
from .lines import Hashes, key_hash, key_of, keys_of, line_blocks, text_hash
from .request import Defaults, Request, invalid

__all__ = ["FileSource"]

_PARTS = 256  # that hashes are compared in
_BITS = 0xFFFFFFFF
_ANSWERED, _BLANK = 1, 2
_LOOKED_AT = 1000  # lines whose model is looked at before anything is sent


class FileSource:
    """The requests of a file, or of standard input without a `path`; raises `ConfigError` for what cannot be read.

    `skipped` counts the lines that had their answer, `total` all that a file has. `models` are those that the first
    lines ask for, each with the first line that does; ``None`` is among them if some name none.
    """

    def __init__(self, path: Optional[str], defaults: Defaults) -> None:
        self.name = "standard input" if path is None else path
        self.total: Optional[int] = None
        self.skipped = 0
        self.models: Dict[Optional[str], Request] = {}
        self._defaults = defaults
        self._text = defaults.text
        self._file = 0 if path is None else _opened(path)
        self._answered = Answered()
        self._texts = 0
        self._elsewhere = True  # lines may have been answered under another number
        self._number = 0
        self._lines: List[Optional[bytes]] = []
        self._at = 0
        self._blocks: Iterator[List[Optional[bytes]]] = iter(())
        self._done = bytearray()  # by line, as far as it was surveyed
        self._ids = Hashes()

    @property
    def file(self) -> int:
        """The descriptor."""
        return self._file

    def begin(self, answered: Answered, texts: int = 0) -> None:
        """Leave out what is answered: those lines, or the first `texts`. A file is looked through before.

        Raises `ConfigError` where two lines of a file have one ``custom_id``, or it is not the one of these answers.
        """
        self._answered = answered
        self._texts = texts
        if stat.S_ISREG(os.fstat(self._file).st_mode):
            start = os.lseek(self._file, 0, os.SEEK_CUR)
            self._survey()
            os.lseek(self._file, start, os.SEEK_SET)
            self._blocks = self._read()
        else:
            self._blocks = self._read()
            self._lines = next(self._blocks, [])
            for place, line in enumerate(self._lines[:_LOOKED_AT]):
                self._look(place + 1, line, None)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            os.close(self._file)

    def take(self, most: int) -> List[Request]:
        """Return the next requests, at least one as long as there are any."""
        found: List[Request] = []
        while len(found) < most:
            if self._at == len(self._lines):
                if found:
                    break  # the next may be long in coming
                self._lines, self._at = next(self._blocks, []), 0
                if not self._lines:
                    break
            line = self._lines[self._at]
            self._at += 1
            self._number += 1
            if self._number <= len(self._done) and self._done[self._number - 1]:
                continue
            request = self._request(line)
            if request is not None:
                found.append(request)
        return found

    def _read(self) -> Iterator[List[Optional[bytes]]]:
        try:
            yield from line_blocks(lambda most: os.read(self._file, most))
        except ValueError as error:
            raise ConfigError("%s cannot be read: %s" % (self.name, error)) from None
        except OSError as error:
            raise ConfigError("%s cannot be read: %s" % (self.name, error.strerror)) from None

    def _request(self, line: Optional[bytes]) -> Optional[Request]:
        number = self._number
        too_long = line is None
        line = _stripped(line)
        if line is None:
            return None
        key = None if self._text else key_of(line)
        surveyed = number <= len(self._done)
        if self._is_answered(number, line, key, not surveyed or self._elsewhere):
            self.skipped += 1
            return None
        if too_long:
            return Request(number, b"", error=invalid(number, "is longer than 100 MB", "line_too_long"))
        if key is not None and not surveyed and not self._ids.add(key_hash(key)):
            reason = "has the custom_id %r, which a line before it has" % key.decode("utf-8")
            return Request(number, line, key, invalid(number, reason, DUPLICATE))
        return Request(number, line, key)

    def _is_answered(self, number: int, line: bytes, key: Optional[bytes], elsewhere: bool) -> bool:
        if self._texts:
            self._texts -= 1
            return True
        at = self._answered.at(number)
        if key is not None:
            known = key_hash(key)
            return at == known or (elsewhere and known in self._answered)
        if at and at != hex_hash(text_hash(line)):
            raise ConfigError(
                "line %d of %s is not the one that was answered: IN has changed; give another OUT, or the lines a "
                "custom_id" % (number, self.name))
        return bool(at)

    # ------------------------------------------------------------ before anything is sent

    def _survey(self) -> None:
        """Look through a file: how many lines, which are answered, and that no two have one ``custom_id``."""
        parts = [array("I") for _ in range(_PARTS)]  # 32 bits in one of 256 parts; what is alike there is compared
        number = 0
        done = self._done = bytearray()
        for lines in self._read():
            keys = None if self._text else keys_of(lines)
            if keys is not None:
                hashes = list(map(key_hash, keys))
                done.extend(map(eq, hashes, self._answered.between(number + 1, number + 1 + len(lines))))
                for known in hashes:
                    parts[known & 255].append(known >> 8 & _BITS)
            else:
                self._survey_lines(lines, number, parts)
            for place, line in enumerate(lines[:max(0, _LOOKED_AT - number)]):
                if not done[number + place]:
                    self._look(number + place + 1, line, None)
            number += len(lines)
        self.total = number - done.count(_BLANK)
        self.skipped = done.count(_ANSWERED)
        self._elsewhere = self.skipped < self._answered.lines
        twice = {
            value << 8 | place for place, part in enumerate(parts) if len(set(part)) < len(part)
            for value, times in Counter(part).items() if times > 1
        }
        if twice:
            self._compare(twice)

    def _survey_lines(self, lines: List[Optional[bytes]], number: int, parts: "List[array[int]]") -> None:
        """Look through lines one by one."""
        for line in lines:
            number += 1
            key = None if line is None or self._text else key_of(line)
            if key is not None:
                known = key_hash(key)
                parts[known & 255].append(known >> 8 & _BITS)
                self._done.append(self._answered.at(number) == known)
                continue
            line = _stripped(line)
            self._done.append(_BLANK if line is None else self._is_answered(number, line, None, False))

    def _look(self, number: int, line: Optional[bytes], key: Optional[bytes]) -> None:
        """Note which model a line asks for."""
        request = Request(number, line or b"", key)
        try:
            self._defaults.read(request)
        except BadRequestError:
            return  # which is told in its turn
        model = request.body.get("model")
        if model is None or isinstance(model, str):
            self.models.setdefault(model, request)

    def _compare(self, twice: Set[int]) -> None:
        """Read those lines again whose hash is that of another one; raise `ConfigError` if it is the same id."""
        os.lseek(self._file, 0, os.SEEK_SET)
        first: Dict[bytes, int] = {}
        number = 0
        for lines in self._read():
            for line in lines:
                number += 1
                key = None if line is None else key_of(line)
                if key is not None and key_hash(key) & (_BITS << 8 | 255) in twice:
                    if key in first:
                        raise ConfigError("%s: the lines %d and %d have one custom_id, %r; nothing was sent" % (
                            self.name, first[key], number, key.decode("utf-8")))
                    first[key] = number


def _stripped(line: Optional[bytes]) -> Optional[bytes]:
    """Return a line without a carriage return, ``None`` for a blank one; one that is too long is known as ``b""``."""
    if line is None:
        return b""
    if line[-1:] == b"\r":
        line = line[:-1]
    return None if not line or line.isspace() else line


def _opened(path: str) -> int:
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ConfigError("%s cannot be read: %s" % (path, error.strerror)) from None
    if stat.S_ISDIR(os.fstat(file).st_mode):
        os.close(file)
        raise ConfigError("%s cannot be read: it is a directory" % path)
    return file
