"""The file of answers: appended to in whole lines, one run at a time, and taken up again where a run stopped."""

import errno
import os
import stat
import threading
from collections import deque
from typing import Callable, Deque, List, Optional, Tuple

from ..errors import ConfigError
from .lines import line_blocks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal"]

_LOCKED_BYTE = 0x7FFFFFFE  # behind what a file is going to hold: Windows keeps others from a byte that is locked
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Journal:
    """A file of lines, open for appending, that no other run has; without a `path` standard output.

    Raises `ConfigError` for what is no such file, and where another run has it.
    """

    def __init__(self, path: Optional[str]) -> None:
        self.path = path
        self._lines: Deque[bytes] = deque()
        self._writing = threading.Lock()
        self._synced = True
        self._closed = False
        self.size = 0  # where the last whole line ends
        if path is None:
            self._file = 1
            return
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise ConfigError("%s cannot be written: %s" % (path, error.strerror)) from None
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise ConfigError("%s is no file that could be taken up again; for a pipe give -" % path)
            _lock(self._file, path)
        except BaseException:
            os.close(self._file)
            raise

    def read(self, heed: Callable[[bytes], bool], begins: Tuple[bytes, ...]) -> None:
        """Give `heed` each line that there is; it tells whether it is one of ours, else `ConfigError` is raised.

        A last line without its end is cut off, if it begins like ours.
        """
        if self.path is None:
            return
        self.size = os.lseek(self._file, 0, os.SEEK_END)
        os.lseek(self._file, 0, os.SEEK_SET)
        number = 0
        lines: List[Optional[bytes]] = []
        for following in line_blocks(lambda most: os.read(self._file, most), self.size):
            number = self._heeded(lines, heed, number)
            lines = following
        if self.size:
            os.lseek(self._file, -1, os.SEEK_END)
            if os.read(self._file, 1) != b"\n":
                last = lines.pop() or b""
                if not _is_torn(last, begins):
                    raise self._not_ours(number + len(lines) + 1)
                self.size -= len(last)
                os.ftruncate(self._file, self.size)
        self._heeded(lines, heed, number)

    def _heeded(self, lines: List[Optional[bytes]], heed: Callable[[bytes], bool], number: int) -> int:
        for place, line in enumerate(lines):
            if line is None or not heed(line):
                raise self._not_ours(number + place + 1)
        return number + len(lines)

    def _not_ours(self, number: int) -> ConfigError:
        return ConfigError("%s is there, and its line %d is no answer of such a job; give another OUT" % (
            self.path, number))

    def append(self, line: bytes) -> None:
        """Write a line; when this returns it is written, or another thread is about to.

        Raises OSError, after which the file still ends with a whole line.
        """
        self._lines.append(line)
        while self._lines and self._writing.acquire(False):
            try:
                self._write(b"".join(self._lines.popleft() for _ in range(len(self._lines))))
            finally:
                self._writing.release()

    def _write(self, data: bytes) -> None:
        if self._closed:
            raise ValueError("%s is closed" % self.path)  # the number of the file may be another's by now
        self._synced = False
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest):]
        except OSError:
            if self.path is not None:
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Have what is written outlast a power cut."""
        if self.path is not None and not self._synced:
            self._synced = True
            os.fsync(self._file)

    def close(self) -> None:
        """Let the file go, and with it its lock."""
        with self._writing:
            self._closed = True
            if self.path is not None:
                try:
                    self.sync()
                finally:
                    os.close(self._file)


def _is_torn(line: bytes, begins: Tuple[bytes, ...]) -> bool:
    begun = line.rstrip(b"\0")  # which a power cut may leave
    return any(begun.startswith(mark) or mark.startswith(begun) for mark in begins)


def _lock(file: int, path: str) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _UNKNOWN_HERE and fcntl is not None:
            return  # a file system without locks
        raise ConfigError("%s is being written by another run" % path) from None
