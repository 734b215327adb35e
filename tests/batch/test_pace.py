"""How many requests at a time are found, in a time that does not pass by itself."""

import pytest

from vllm_bridge.batch.pace import MOST, Pace, queue_of


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def found(slots, seconds=0.1, rounds=400, told=False, change=None, tokens=10):
    """Let servers with so many slots answer, each request after `seconds`; return the numbers tried, in order."""
    clock = Clock()
    pace = Pace(clock=clock)
    tried = []
    for number in range(rounds):
        if change is not None and number == rounds // 2:
            slots = change
        limit = pace.limit
        takes = seconds * max(1.0, limit / slots)  # the others wait
        began = clock.now
        clock.now += takes
        for _ in range(limit):
            pace.answered(began, takes, tokens)
        pace.tick(True, (min(limit, slots), max(0, limit - slots)) if told else None)
        tried.append(pace.limit)
    return tried


def rate(limit, slots):
    return min(limit, slots)


@pytest.mark.parametrize("slots", [1, 3, 8, 24, 32, 100, 256, 700])
@pytest.mark.parametrize("told", [False, True])
def test_it_finds_what_servers_take(slots, told):
    tried = found(slots, told=told)
    late = tried[len(tried) // 2:]
    assert sum(rate(limit, slots) for limit in late) / len(late) >= 0.9 * slots
    assert max(late) <= max(16, 2.5 * slots)


def test_it_never_goes_above_1024():
    assert max(found(10 ** 6)) == MOST == 1024


def test_it_is_found_within_seconds():
    clock = Clock()
    tried = found(64, seconds=0.5, rounds=12)  # 12 rounds of half a second
    assert max(tried) >= 64
    assert clock.now == 100.0


def test_it_goes_up_again_when_there_are_more_servers_and_down_when_there_are_fewer():
    tried = found(16, change=128)
    assert tried[-1] >= 100
    tried = found(128, change=16, told=True)
    assert tried[-1] <= 40


def test_a_refusal_takes_it_down_once_for_all_that_were_under_way():
    clock = Clock()
    pace = Pace(clock=clock)
    began = clock.now
    clock.now += 1
    for _ in range(8):
        pace.refused(began)
    assert pace.limit == 5
    clock.now += 1
    pace.refused(clock.now - 0.5)
    assert pace.limit == 3


def test_before_the_first_answer_it_goes_up_to_64_and_on_where_servers_say_that_nothing_waits():
    for queue, most in ((None, 64), ((8, 0), 1024)):
        clock = Clock()
        pace = Pace(clock=clock)
        for _ in range(20):
            clock.now += 1.1
            pace.tick(True, queue)
        assert pace.limit == most


def test_where_nothing_is_asked_nothing_changes():
    clock = Clock()
    pace = Pace(clock=clock)
    for _ in range(20):
        clock.now += 2
        pace.tick(False)
    assert pace.limit == 8


def test_a_number_that_is_given_stays():
    clock = Clock()
    pace = Pace(5, clock)
    pace.refused(clock.now)
    for _ in range(50):
        clock.now += 1
        for _ in range(10):
            pace.answered(clock.now - 0.1, 0.1, 1)
        pace.tick(True, (5, 500))
    assert pace.limit == 5


def test_the_queue_of_a_server():
    text = (  # as vLLM 0.32.0 writes it
        b"# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        b'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
        b'vllm:num_requests_waiting{engine="0",model_name="m"} 1e+01\n'
        b'vllm:num_requests_waiting_by_reason{engine="0",model_name="m"} 10.0\n'
    )
    assert queue_of(text) == (7, 10)
    assert queue_of(b"python_info 1.0\n") is None and queue_of(b"") is None
