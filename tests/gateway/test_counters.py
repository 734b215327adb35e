"""Numbers shared by processes."""

import os
from typing import Iterator

import pytest

from vllm_bridge.gateway import counters as counters_module
from vllm_bridge.gateway.counters import Counters


@pytest.fixture
def counters() -> Iterator[Counters]:
    found = Counters(3)
    yield found
    found.close()


def count(counters: Counters, name: str, value: float = 1.0) -> None:
    counters.row(name)[0] += value


def test_a_row_counts(counters: Counters) -> None:
    row = counters.row("count a", 3)
    row[0] += 1
    row[2] += 2.5
    counters.row("count a", 3)[0] += 1
    assert counters.totals() == {"count a": [2.0, 0.0, 2.5]}
    row.release()


def test_parts_are_added_up_and_kept_by_a_successor(counters: Counters) -> None:
    count(counters, "count a", 5)
    count(counters, "gauge b", 5)
    counters.claim(2)
    count(counters, "gauge b")
    count(counters, "count ü")
    count(counters, "count a", 7)
    assert counters.totals() == {"count a": [12.0], "gauge b": [6.0], "count ü": [1.0]}
    counters.claim(0)  # a process that replaces the first: what it counted stays, what it had in hand does not
    assert counters.totals() == {"count a": [12.0], "gauge b": [1.0], "count ü": [1.0]}
    count(counters, "count a")
    count(counters, "count c")
    assert counters.totals()["count a"] == [13.0]
    assert counters.totals()["count c"] == [1.0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes share memory here")
def test_children_count_into_the_parents_sums(counters: Counters) -> None:
    count(counters, "count a")
    children = []
    for part in (1, 2):
        pid = os.fork()
        if pid == 0:
            counters.claim(part)
            for _ in range(100):
                count(counters, "count a")
            count(counters, "count of %d" % part, part)
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert counters.totals() == {"count a": [201.0], "count of 1": [1.0], "count of 2": [2.0]}


def test_a_full_part_counts_in_vain(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters_module, "_CELLS", 2)
    counters.row("count a", 2)[0] += 1
    count(counters, "count b")
    assert counters.totals() == {"count a": [1.0, 0.0]}


def test_names_end_where_their_room_ends(counters: Counters) -> None:
    for number in range(3000):
        count(counters, "count " + "x" * 100 + str(number))
    totals = counters.totals()
    assert 2000 < len(totals) < 3000 and set(map(tuple, totals.values())) == {(1.0,)}


def test_closing_with_rows_in_use() -> None:
    counters = Counters()
    row = counters.row("count a")
    counters.close()
    row[0] += 1  # it goes nowhere, and harms nobody
