"""keys.py: which key is chosen, and what happens to one whose server is away."""

import collections
import random
import threading

import pytest

from vllm_bridge.config.settings import Key
from vllm_bridge.errors import BadRequestError, ConfigError
from vllm_bridge.client.fleet import Fleet
from vllm_bridge.client.keys import resolve_alias


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def ring(*keys, clock=None, seed=7):
    return Fleet(keys, clock=clock or Clock(), random=random.Random(seed).random)


A = Key("a", id="id-a", name="a", url="http://a")
B = Key("b", id="id-b", name="b", url="http://b")


def shares(keys, count=4000, model="m", **how):
    drawn = collections.Counter(keys.select(model, **how).value for _ in range(count))
    return {value: drawn[value] / count for value in drawn}


def test_weights_are_shares():
    got = shares(ring(A.replace(weight=3), B.replace(weight=1), Key("z", weight=0)))
    assert got == {"a": pytest.approx(0.75, abs=0.03), "b": pytest.approx(0.25, abs=0.03)}


def test_all_weights_zero_is_uniform():
    assert shares(ring(A.replace(weight=0), B.replace(weight=0))) == {
        "a": pytest.approx(0.5, abs=0.03), "b": pytest.approx(0.5, abs=0.03)}


def test_a_small_weight_is_not_none():
    got = shares(ring(A.replace(weight=0.001), B.replace(weight=0.01)))
    assert set(got) == {"a", "b"}


def test_a_random_that_gives_one_stays_among_the_weighted():
    keys = Fleet((A, B, Key("z", weight=0)), random=lambda: 1.0)
    assert keys.select("m") == B


@pytest.mark.parametrize(
    "settings, model, allowed",
    [
        ({}, "any", True),
        ({}, None, True),
        ({"models": []}, "any", False),
        ({"models": ["Qwen/Qwen3-8B"]}, "qwen/qwen3-8b", True),
        ({"models": ["Qwen/Qwen3-8B"]}, "other", False),
        ({"models": ["*"], "blacklisted_models": ["OTHER"]}, "other", False),
        ({"models": ["other"], "blacklisted_models": ["other"]}, "other", False),
        ({"blacklisted_models": ["*"]}, "other", False),
        ({"models": [], "aliases": {"fast": "Qwen/Qwen3-8B"}}, "FAST", True),
        ({"models": [], "aliases": {"fast": "Qwen/Qwen3-8B"}}, "Qwen/Qwen3-8B", False),
        ({"aliases": {"fast": "Qwen/Qwen3-8B"}, "blacklisted_models": ["qwen/qwen3-8b"]}, "fast", False),
        ({"model_name": "m"}, "m", True),
        ({"model_name": "m"}, "M", False),
        ({"model_name": "real", "aliases": {"fast": "real"}}, "fast", True),
        ({"enabled": False}, "m", False),
    ],
)
def test_which_models_a_key_serves(settings, model, allowed):
    key = Key("k", **settings)
    keys = ring(key, Key("never", models=["something else entirely"]))
    if allowed and model is not None:
        assert keys.select(model) == key
    elif model is None:
        assert keys.select(None) in keys.keys
    else:
        with pytest.raises(BadRequestError):
            keys.select(model)
    assert keys.other_left(model, frozenset((keys.keys[1],))) is allowed
    assert not keys.other_left(model, frozenset(keys.keys))


def test_no_key_names_what_there_is():
    keys = ring(A.replace(models=["x", "y"], blacklisted_models=["q"]), B.replace(model_name="z"))
    with pytest.raises(BadRequestError) as caught:
        keys.select("m")
    assert caught.value.message == "no keys found that support model: m (the keys allow: x, y, z; blacklisted: q)"
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (400, "model", "no_keys_found")
    many = ring(A.replace(models=["m%02d" % n for n in range(14)]))
    with pytest.raises(BadRequestError, match="m09, and 4 more"):
        many.select("m")
    with pytest.raises(BadRequestError, match="the keys allow none"):
        ring(A.replace(models=[])).select("m")
    with pytest.raises(BadRequestError, match="all are disabled"):
        ring(A.replace(enabled=False)).select("m")
    with pytest.raises(BadRequestError, match="model: expected a string, got dict"):
        ring(A).select({})
    with pytest.raises(ConfigError, match="keys: "):
        Fleet(())


def test_a_key_is_pinned_by_id_before_name():
    keys = ring(A, B)
    assert shares(keys, 50, key_id="id-b", key_name="a") == {"b": 1.0}
    assert shares(keys, 50, key_name="a") == {"a": 1.0}
    with pytest.raises(BadRequestError, match="called 'nobody'"):
        keys.select("m", key_name="nobody")


def test_tried_keys_come_last():
    keys = ring(A, B)
    assert shares(keys, 50, exclude=frozenset((A,))) == {"b": 1.0}
    assert set(shares(keys, 50, exclude=frozenset((A, B)))) == {"a", "b"}


def test_aliases_stand_for_real_names():
    key = Key("k", aliases={"Fast": "Qwen/Qwen3-8B"})
    assert resolve_alias(key, "Fast") == "Qwen/Qwen3-8B"
    assert resolve_alias(key, "fAST") == "Qwen/Qwen3-8B"
    assert resolve_alias(key, "slow") == "slow"
    assert resolve_alias(A, "slow") == "slow"


def test_a_dead_server_is_avoided_then_probed_once():
    clock = Clock()
    keys = ring(A, B, clock=clock)
    keys.failed(A)
    assert keys.cooling() == [(A, 1.0)]
    assert shares(keys, 100) == {"b": 1.0}
    clock.now += 1.0
    drawn = [keys.select("m").value for _ in range(100)]
    assert drawn.count("a") == 1  # the probe; the others wait for its answer
    keys.succeeded(A)
    assert keys.cooling() == []
    assert shares(keys)["a"] == pytest.approx(0.5, abs=0.03)


def test_a_probe_that_fails_doubles_the_time_up_to_its_limit():
    clock = Clock()
    keys = ring(A, B, clock=clock)
    times = []
    for _ in range(8):
        keys.failed(A)
        left = keys.cooling()[0][1]
        times.append(left)
        clock.now += left
    assert times == [1, 2, 4, 8, 16, 30, 30, 30]
    keys.succeeded(A)
    keys.failed(A)
    assert keys.cooling() == [(A, 1.0)]


def test_failures_of_one_moment_count_once():
    keys = ring(A, B)
    for _ in range(50):
        keys.failed(A)
    assert keys.cooling() == [(A, 1.0)]


def test_a_probe_without_an_answer_is_followed_by_another():
    clock = Clock()
    keys = ring(A, B, clock=clock)
    keys.failed(A)
    for _ in range(2):
        clock.now += 1.0
        assert [keys.select("m").value for _ in range(100)].count("a") == 1


def test_when_all_cool_the_first_to_end_is_used():
    clock = Clock()
    keys = ring(A, B, clock=clock)
    keys.failed(B)
    clock.now += 0.25
    keys.failed(A)
    assert shares(keys, 20) == {"b": 1.0}
    assert keys.select("m", key_name="a") == A  # pinned: there is no other
    assert ring(A).select("m") == A


def test_keys_of_one_server_cool_off_together():
    second = Key("a2", url="http://a")
    keys = ring(A, second, B)
    keys.failed(A)
    assert [key for key, _ in keys.cooling()] == [A, second]
    assert shares(keys, 50) == {"b": 1.0}
    keys.succeeded(B)
    keys.succeeded(second)
    assert keys.cooling() == []


def test_threads_share_a_ring():
    keys = Fleet((A, B))
    broken = []

    def work(number):
        try:
            for step in range(300):
                key = keys.select("m")
                (keys.failed if (number + step) % 3 else keys.succeeded)(key)
                keys.cooling()
        except Exception as error:
            broken.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []
