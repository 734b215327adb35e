"""Numbers shared by processes."""

import os
import sys
import threading
from typing import Iterator

import pytest

from vllm_bridge.server import board as board_module
from vllm_bridge.server.board import Board


@pytest.fixture
def board() -> Iterator[Board]:
    found = Board(3)
    yield found
    found.close()


def test_a_row_counts(board: Board) -> None:
    row = board.series("count a", 3)
    row.add(1)
    row.add(2.5, 2)
    board.series("count a", 3).add(1)
    assert board.totals() == {"count a": [2.0, 0.0, 2.5]}


def test_parts_are_added_up_and_kept_by_a_successor(board: Board) -> None:
    board.series("count a").add(5)
    board.series("gauge b").set(5)
    board.claim(2)
    board.series("gauge b").set(1)
    board.series("count ü").add(1)
    board.series("count a").add(7)
    assert board.totals() == {"count a": [12.0], "gauge b": [6.0], "count ü": [1.0]}
    board.claim(0)  # a process that replaces the first: what it counted stays, what it had in hand does not
    assert board.totals() == {"count a": [12.0], "gauge b": [1.0], "count ü": [1.0]}
    board.series("count a").add(1)
    board.series("count c").add(1)
    assert board.totals()["count a"] == [13.0]
    assert board.totals()["count c"] == [1.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes share memory here")
def test_children_count_into_the_parents_sums(board: Board) -> None:
    board.series("count a").add(1)
    children = []
    for part in (1, 2):
        pid = os.fork()
        if pid == 0:
            board.claim(part)
            for _ in range(100):
                board.series("count a").add(1)
            board.series("count of %d" % part).add(part)
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert board.totals() == {"count a": [201.0], "count of 1": [1.0], "count of 2": [2.0]}


def test_a_full_part_counts_in_vain(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "_CELLS", 2)
    board.series("count a", 2).add(1)
    board.series("count b").add(1)
    assert board.totals() == {"count a": [1.0, 0.0]}


def test_names_end_where_their_room_ends(board: Board) -> None:
    for number in range(3000):
        board.series("count " + "x" * 100 + str(number)).add(1)
    totals = board.totals()
    assert 2000 < len(totals) < 3000 and set(map(tuple, totals.values())) == {(1.0,)}


def test_threads_make_each_row_once(board: Board) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [board.series("count %d" % number) for number in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert board.totals() == {"count %d" % number: [0.0] for number in range(200)}


def test_closing_with_rows_in_use() -> None:
    board = Board()
    row = board.series("count a")
    board.close()
    with pytest.raises(ValueError):
        row.add(1)
