"""The ways of choosing a server, on numbers alone."""

import array
import collections
import os
import random

import pytest

from vllm_bridge.client import routing
from vllm_bridge.client.fleet import Fleet
from vllm_bridge.client.prefixes import Prefixes, SharedPrefixes
from vllm_bridge.config.settings import ROUTING, Key
from vllm_bridge.api.body import Written

A, B, C = (Key(name, id=name, url="http://" + name) for name in "abc")
PATH = "/v1/chat/completions"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def fleet_of(*keys, way="expected_wait"):
    fleet = Fleet(keys, way=way, clock=Clock(), random=random.Random(7).random)
    for server in fleet.servers.values():
        fleet.told(server, {"m": {"id": "m"}})
    return fleet


def chat(*texts, **wire):
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[min(number, 1 + number % 2)], "content": text} for number, text in enumerate(texts)]
    return {"model": "m", "messages": messages, **wire}


def send(fleet, wire, headers=None, **how):
    prompt = fleet.prompt(PATH, wire, "m", headers or {}, True)
    return fleet.select("m", prompt=prompt, **how).id, prompt


def finish(fleet, prompt, seconds=0.1):
    fleet.clock.now += seconds
    fleet.answered(prompt)
    fleet.done(prompt, 10)


def long(text, size=4000):
    return text * (size // len(text))


def test_the_settings_name_the_ways_that_there_are():
    assert set(routing.WAYS) == set(ROUTING)


@pytest.mark.parametrize("way", ROUTING)
def test_every_way_spreads_requests_by_weight(way):
    fleet = fleet_of(A.replace(weight=3), B, C.replace(weight=0), way=way)
    counts, prompts = collections.Counter(), []
    for number in range(400):
        name, prompt = send(fleet, chat("%d" % number))
        counts[name] += 1
        prompts.append(prompt)
    assert counts["c"] == 0 and counts["a"] / 400 == pytest.approx(0.75, abs=0.06)
    for prompt in prompts:
        finish(fleet, prompt, 0)
    assert all((server.running, server.waiting, server.answering) == (0, pytest.approx(0), pytest.approx(0))
               for server in fleet.servers.values())


def test_idle_servers_take_turns():
    fleet = fleet_of(A, B)
    names = []
    for number in range(20):
        name, prompt = send(fleet, chat("question %d" % number))
        finish(fleet, prompt)
        names.append(name)
    assert names.count("a") == names.count("b") == 10


def test_who_had_nothing_to_do_for_long_is_not_due_for_as_long():
    fleet = fleet_of(A, B)
    for number in range(1000):
        finish(fleet, send(fleet, chat("%d" % number), exclude={B})[1])
    names = []
    for number in range(20):
        name, prompt = send(fleet, chat("question %d" % number))
        finish(fleet, prompt)
        names.append(name)
    assert 7 <= names.count("a") <= 13


def test_a_conversation_stays_where_it_was_seen_until_that_server_has_too_much_to_do():
    fleet = fleet_of(A, B)
    texts = [long("system "), long("first ")]
    home, prompt = send(fleet, chat(*texts))
    finish(fleet, prompt)
    for turn in range(4):
        texts += [long("answer %d " % turn, 400), long("question %d " % turn, 400)]
        name, prompt = send(fleet, chat(*texts))
        assert name == home and prompt.unseen == pytest.approx(200, abs=10)
        finish(fleet, prompt)
    for number in range(40):
        send(fleet, chat("%d" % number, max_tokens=100), exclude={A if home == "b" else B})
    name, prompt = send(fleet, chat(*texts, "and now?", "again"))
    assert name != home and prompt.unseen > 2000


def test_a_system_prompt_of_all_does_not_leave_a_server_cold():
    fleet = fleet_of(A, B, C)
    running = []
    for number in range(12):
        _, prompt = send(fleet, chat(long("the same for all "), long("%d " % number, 800)))
        running.append(prompt)
    assert {prompt.rule.key.id for prompt in running} == {"a", "b", "c"}


def test_a_server_that_shows_itself_slow_gets_fewer():
    fleet = fleet_of(A, B)
    running, counts = [], collections.Counter()
    for number in range(300):
        name, prompt = send(fleet, chat("question %d" % number))
        counts[name] += 1
        running.append((fleet.clock.now + (1.0 if name == "a" else 0.2), prompt))
        fleet.clock.now += 0.05
        for due in [each for each in running if each[0] <= fleet.clock.now]:
            running.remove(due)
            finish(fleet, due[1], 0)
    assert counts["a"] < counts["b"] / 2
    assert fleet.servers["http://a"].slow > 1.5 > fleet.servers["http://b"].slow


@pytest.mark.parametrize("given", [{"X-Session-ID": "s1"}, {"prompt_cache_key": "s1"}, {"user": "s1"}])
def test_who_belongs_together_stays_together_where_it_is_said(given):
    fleet = fleet_of(A, B, C)
    headers = given if "X-Session-ID" in given else {}
    wire = {} if headers else given
    homes = set()
    for number in range(12):
        name, prompt = send(fleet, chat(long("new text %d " % number), **wire), headers)
        homes.add(name)
        finish(fleet, prompt)
        _, other = send(fleet, chat("%d" % number))
        finish(fleet, other)
    assert len(homes) == 1


def test_a_server_that_comes_back_is_filled_gently():
    fleet = fleet_of(A, B)
    fleet.failed(A)
    for number in range(40):
        assert send(fleet, chat("%d" % number))[0] == "b"
    fleet.clock.now += 1.0
    fleet.succeeded(A)
    counts = collections.Counter(send(fleet, chat("more %d" % number))[0] for number in range(40))
    assert 2 <= counts["a"] <= 12, "not all at once"
    for _ in range(30):
        fleet.clock.now += 0.5
        send(fleet, chat("later"), exclude={A})
    counts = collections.Counter(send(fleet, chat("last %d" % number))[0] for number in range(60))
    assert counts["a"] > 40, "after some seconds it has its share"


def test_a_server_that_joins_is_filled_gently_and_one_that_stays_is_not():
    fleet = fleet_of(A, B)
    texts = long("system "), long("first ")
    home, prompt = send(fleet, chat(*texts))
    finish(fleet, prompt)
    fleet.set_keys([A, B, C])
    fleet.told(fleet.servers["http://c"], {"m": {"id": "m"}})
    assert fleet.servers["http://c"].strain > 5 and fleet.servers["http://a"].strain == 1
    assert send(fleet, chat(*texts, "answer", "next"))[0] == home
    fleet.set_keys([C, A])
    bits = {server.bit for server in fleet.servers.values()}
    fleet.set_keys([C, A, B])
    assert len({server.bit for server in fleet.servers.values()}) == 3 and bits < {1, 2, 4}


@pytest.mark.parametrize("wire, tokens", [
    (chat("x" * 400, "y" * 400), 200),
    ({"prompt": "x" * 8000}, 2000),
    ({"prompt": ["x" * 400, "y" * 400]}, 200),
    ({"prompt": list(range(100))}, None),
    ({"input": ["x" * 40] * 10}, 100),
    ({"query": "q", "documents": ["x" * 400]}, 100),
    ({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "x" * 400},
        {"type": "image_url", "image_url": {"url": "data:" + "A" * 1000000}}]}]}, 1124),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, None),
    ({"messages": [], "tools": []}, 0),
    ({"messages": "hello"}, None), ({"messages": [1, None, {}]}, None), ({"messages": {"a": 1}}, None), ({}, 0),
    ({"messages": [{"content": object()}]}, None), (None, 0), (b"form", 0),
    (Written({"messages": ...}, b"x" * 10000), 2500),
])
def test_what_a_request_is_worth(wire, tokens):
    prompt = routing.measured(wire, True)
    assert len(prompt.marks) == len(prompt.sizes)
    assert tokens is None or sum(prompt.sizes) / 4 == pytest.approx(tokens, abs=60)
    assert fleet_of(A, B).select("m", prompt=prompt) in (A, B)


def test_a_long_text_that_begins_alike_is_known_by_its_pieces():
    fleet = fleet_of(A, B)
    document = long("a document of many words ", 40000)
    home, prompt = send(fleet, chat(document + "first question"))
    finish(fleet, prompt)
    name, prompt = send(fleet, chat(document + "second question"))
    assert name == home and prompt.unseen < 1100


def test_only_the_newest_prefixes_are_kept():
    prefixes = Prefixes(kept=100)
    for number in range(1000):
        prompt = routing.measured(chat("the same", "%d" % number), True)
        prefixes.unseen(prompt)
        prefixes.note(prompt, 1, 0)
    assert len(prefixes._young) + len(prefixes._old) < 210
    seen = prefixes.unseen(routing.measured(chat("the same", "0"), True))
    assert [part[0] for part in seen] == [1, -1] and seen[0][3] == 1, "what is used is kept"
    prefixes.forget(1)
    assert [part[0] for part in prefixes.unseen(routing.measured(chat("the same"), True))] == [-1]


def shared():
    return SharedPrefixes(memoryview(array.array("Q", [0]) * SharedPrefixes.CELLS))


def test_shared_memory_knows_what_memory_of_ones_own_knows():
    own, other, lot = Prefixes(), shared(), random.Random(3)
    bits = [(own.join(name), other.join(name)) for name in ("http://a", "http://b", "http://c")]
    assert bits == [(1, 1), (2, 2), (4, 4)] and other.join("http://b") == 2
    different = 0
    conversations = [["system %d" % (number % 2), "question %d" % number] for number in range(20)]
    for _ in range(300):
        texts = lot.choice(conversations)
        texts += [str(lot.random()), str(lot.random())]
        prompt = routing.measured(chat(*texts, user=lot.choice((None, "u"))), True)
        seen = own.unseen(prompt)
        different += seen != other.unseen(prompt)
        bit, place = lot.choice((1, 2, 4)), 0
        for part in seen:
            if part[0] & bit:
                place = prompt.place = part[3]
                break
        for memory in (own, other):
            memory.note(prompt, bit, place)
    assert different <= 30, "two of 131,072 marks may have one place"


def test_what_a_server_has_not_seen_after_all_is_taken_back_in_shared_memory_too():
    for memory in (Prefixes(), shared()):
        prompt = routing.measured(chat("system", "question"), True)
        memory.note(prompt, 2, 0)
        assert [part[0] for part in memory.unseen(prompt)] == [2, -1]
        memory.undo(prompt, 2)
        assert [part[0] for part in memory.unseen(prompt)] == [-1]


def test_more_servers_than_shared_memory_has_bits_for():
    memory = shared()
    bits = [memory.join("http://server-%d" % number) for number in range(100)]
    assert len(set(bits[:32])) == 32 and set(bits) == set(bits[:32])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_know_what_another_one_has_sent_where():
    fleet = fleet_of(A, B, C)
    fleet.share()
    texts = [long("system "), long("first ")]
    pid = os.fork()
    if not pid:
        os._exit("abc".index(send(fleet, chat(*texts), exclude={A, C})[0]))
    assert os.waitpid(pid, 0)[1] >> 8 == 1
    for turn in range(3):
        texts += ["answer %d" % turn, "question %d" % turn]
        name, prompt = send(fleet, chat(*texts))
        assert name == "b"
        finish(fleet, prompt)


def test_a_request_counts_at_one_server_at_a_time():
    fleet = fleet_of(A, B)
    name, prompt = send(fleet, chat("x" * 400, max_tokens=10))
    other = fleet.select("m", exclude={A if name == "a" else B}, prompt=prompt)
    loads = {server.url: (server.running, server.waiting) for server in fleet.servers.values()}
    assert loads == {other.url: (1, 100.0), "http://" + name: (0, 0.0)}
    fleet.answered(prompt)
    assert fleet.servers[other.url].waiting == 0
    fleet.done(prompt)
    fleet.done(prompt)
    fleet.answered(prompt)
    assert fleet.servers[other.url].running == 0
