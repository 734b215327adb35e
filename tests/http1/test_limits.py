"""What is left of a call's limits."""

import time
from typing import Any, List

import pytest

from vllm_bridge.http1.limits import Limits, TimedOut


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("silence, deadline, left", [
    (None, None, None), (5, None, 5), (None, 103.0, 3.0), (5, 103.0, 3.0), (2, 103.0, 2), (0, None, 0),
])
def test_the_next_wait_is_as_long_as_both_limits_let_it(clock: List[float], silence: Any, deadline: Any, left: Any
                                                        ) -> None:
    assert Limits(None, silence, deadline).left() == left


@pytest.mark.parametrize("now", [103.0, 104.0])
def test_after_the_deadline_nothing_waits(clock: List[float], now: float) -> None:
    limits = Limits(1, 5, 103.0)
    clock[0] = now
    with pytest.raises(TimedOut) as caught:
        limits.left()
    assert caught.value.which == limits.over().which == "deadline"


def test_a_wait_in_vain_says_which_limit_it_was(clock: List[float]) -> None:
    assert Limits(1, 5, 103.0).over().which == Limits().over().which == "silence"


@pytest.mark.parametrize("connect, deadline, left", [
    (2, None, 2.0), (2, 101.0, 1.0), (2, 105.0, 2.0), (None, 105.0, 5.0), (None, None, None),
])
def test_connecting_is_one_limit_for_all_of_it(clock: List[float], connect: Any, deadline: Any, left: Any) -> None:
    limits = Limits(connect, 60, deadline).connecting()
    assert limits.left() == left
    clock[0] += 0.5
    assert limits.left() == (None if left is None else left - 0.5)


def test_no_time_to_connect_is_none(clock: List[float]) -> None:
    with pytest.raises(TimedOut):
        Limits(0).connecting().left()
