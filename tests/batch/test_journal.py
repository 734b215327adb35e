"""The file of answers: locked, whole lines, taken up again."""

import errno
import os
import threading
import types

import pytest

from vllm_bridge.batch import journal as rooms
from vllm_bridge.batch.journal import Journal
from vllm_bridge.errors import ConfigError

BEGINS = (b'{"id":"line-',)


def taken_up(path, begins=BEGINS):
    journal, lines = Journal(str(path)), []
    try:
        journal.read(lambda line: not lines.append(line), begins)
    finally:
        journal.close()
    return lines


def test_lines_are_appended_and_read_again(tmp_path):
    path = tmp_path / "out"
    for line in (b'{"id":"line-1"}', b'{"id":"line-2"}'):
        journal = Journal(str(path))
        journal.read(lambda line: True, BEGINS)
        journal.append(line + b"\n")
        journal.sync()
        journal.close()
    assert taken_up(path) == [b'{"id":"line-1"}', b'{"id":"line-2"}']


@pytest.mark.parametrize("torn", [b'{"id":"line-2","custom', b'{"i', b"{", b"\0" * 50, b'{"id":"line-\0\0\0'])
@pytest.mark.parametrize("before", [b"", b'{"id":"line-1"}\n'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn, before):
    path = tmp_path / "out"
    path.write_bytes(before + torn)
    assert taken_up(path) == [before[:-1]] * bool(before)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"something", b"x\ny", b'{"custom_id": "a"}', b'{"messages'])
def test_what_is_no_file_of_ours_is_left_as_it_is(tmp_path, data):
    path = tmp_path / "out"
    path.write_bytes(data)
    journal = Journal(str(path))
    with pytest.raises(ConfigError, match="is there, and its line 1 is no answer"):
        journal.read(lambda line: False, BEGINS)
    journal.close()
    assert path.read_bytes() == data


def test_two_runs_do_not_write_one_file(tmp_path):
    path = str(tmp_path / "out")
    journal = Journal(path)
    with pytest.raises(ConfigError, match="is being written by another run"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_the_lock_on_windows(tmp_path, monkeypatch):
    held = []

    def locking(file, mode, count):
        assert (mode, count) == (2, 1) and os.lseek(file, 0, os.SEEK_CUR) > 2 ** 30  # behind all that is written
        if held:
            raise OSError(errno.EACCES, "Permission denied")
        held.append(file)

    monkeypatch.setattr(rooms, "fcntl", None)
    monkeypatch.setitem(__import__("sys").modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    path = str(tmp_path / "out")
    journal = Journal(path)
    journal.append(b"a\n")
    with pytest.raises(ConfigError, match="is being written by another run"):
        Journal(path)
    journal.close()
    assert (tmp_path / "out").read_bytes() == b"a\n"


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(rooms.fcntl, "flock", flock)
    Journal(str(tmp_path / "out")).close()


@pytest.mark.parametrize("make, said", [
    (lambda path: path.mkdir(), "cannot be written: Is a directory"),
    (lambda path: os.mkfifo(str(path)), "is no file that could be taken up again"),
])
def test_what_is_no_file_is_said(tmp_path, make, said):
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=said):
        Journal(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        Journal(str(tmp_path / "not" / "there"))


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "out"
    journal = Journal(str(path))
    journal.append(b"first\n")
    write, room = os.write, [3]

    def full(file, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, bytes(data)[:room.pop()])

    monkeypatch.setattr(rooms.os, "write", full)
    with pytest.raises(OSError):
        journal.append(b"second\n")
    monkeypatch.undo()
    assert path.read_bytes() == b"first\n"
    journal.close()
    with pytest.raises(ValueError):
        journal.append(b"late\n")


def test_threads_write_every_line_once(tmp_path):
    path = tmp_path / "out"
    journal = Journal(str(path))

    def work(name):
        for number in range(200):
            journal.append(b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (name, number) for name in range(8) for number in range(200))
