"""Which call a fragment belongs to."""

import json

import pytest

from vllm_bridge.api.tool_calls import ToolCalls, arguments_text


def fragment(index=None, id=None, name=None, arguments=None):
    made = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in made.items() if value is not None}


def calls(*deltas):
    """Return (id, name, arguments) of each call that these deltas tell of."""
    told, found = ToolCalls(), {}
    for delta in deltas:
        for place, part in enumerate(delta):
            call = found.setdefault(told.number(part, place), ["", "", ""])
            call[0] = call[0] or part.get("id") or ""
            call[1] = call[1] or part["function"]["name"] or ""
            call[2] += arguments_text(part["function"]["arguments"])
    return [tuple(found[number]) for number in sorted(found)]


PARIS, ROME = '{"city": "Paris"}', '{"city": "Rome"}'


@pytest.mark.parametrize("index", [0, None, 3])
@pytest.mark.parametrize("name", ["weather", "time"])
@pytest.mark.parametrize("arguments", [PARIS, "{}", '{"a": "}{\\\\"}', '{"a": [{"b": "\\""}]}'])
def test_whole_calls_of_one_index(index, name, arguments):
    two = [("a", "weather", arguments), ("b", name, ROME)]
    parts = [fragment(index, *call) for call in two]
    assert calls(*[[part] for part in parts]) == two  # Ollama: a chunk for each
    assert calls(parts) == two                        # all in one


def pieces(text, size=2):
    return [text[start:start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("first", [PARIS, '{"a": "\\\\"}', '{"a": "\\"}"}', '{"a": ["]", {}]}'])
def test_later_fragments_follow_the_newest(first, size):
    deltas = []
    for call_id, arguments in (("a", first), ("b", ROME), ("c", PARIS)):
        deltas.append([fragment(0, call_id, "weather", "")])
        deltas += [[fragment(0, None, None, piece)] for piece in pieces(arguments, size)]
    assert calls(*deltas) == [("a", "weather", first), ("b", "weather", ROME), ("c", "weather", PARIS)]


def test_a_call_without_arguments_is_followed_by_another():
    assert calls([fragment(0, "a", "now", "")], [fragment(0, "b", "weather", "")], [fragment(0, None, None, ROME)]) == [
        ("a", "now", ""), ("b", "weather", ROME)]
    assert calls([fragment(0, "a", "now"), fragment(0, "b", "now")]) == [("a", "now", ""), ("b", "now", "")]


def test_the_id_finds_the_older_of_two_calls_of_an_index():
    assert calls([fragment(0, "a", "f", '{"x": '), fragment(0, "b", "g", '{"y": ')], [fragment(0, "a", None, "1}")],
                 [fragment(0, "b", None, "2}")]) == [("a", "f", '{"x": 1}'), ("b", "g", '{"y": 2}')]


@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("name", [None, "", "weather"])
def test_ids_that_change_within_a_call(index, name):
    if index is None and name:
        return  # nothing but the id is there to tell calls apart
    deltas = [[fragment(index, "id%d" % at, name or (None if at else "weather"), piece)]
              for at, piece in enumerate(pieces(PARIS, 3))]
    assert calls(*deltas) == [("id0", "weather", PARIS)]


@pytest.mark.parametrize("last", [("z", None, ""), ("z", "", ""), (None, "weather", ""), (None, "weather", None),
                                  ("a", "weather", ""), (None, None, " ")])
def test_a_last_fragment_of_a_complete_call_is_no_other(last):
    assert len(calls([fragment(0, "a", "weather", PARIS)], [fragment(0, *last)])) == 1


def test_names_alone_tell_complete_calls_apart():
    assert calls([fragment(0, None, "f", PARIS)], [fragment(0, None, "f", ROME)]) == [("", "f", PARIS), ("", "f", ROME)]


def test_neither_index_nor_id():
    assert calls([fragment(None, None, "f", '{"x": '), fragment(None, None, "g", '{"y": ')],
                 [fragment(None, None, None, "1}"), fragment(None, None, None, "2}")]) == [
        ("", "f", '{"x": 1}'), ("", "g", '{"y": 2}')]


def test_an_index_that_comes_late_or_not_again():
    assert calls([fragment(None, "a", "f", "{")], [fragment(0, None, None, "}")]) == [("a", "f", "{}")]
    assert calls([fragment(1, "a", "f", "{")], [fragment(None, None, None, "}")]) == [("a", "f", "{}")]


def test_the_index_is_the_number_where_it_is_free():
    told = ToolCalls()
    assert [told.number(fragment(index, call_id, "f", "{}"), 0) for index, call_id in
            ((2, "a"), (0, "b"), (0, "c"), (3, "d"), (2, "a"))] == [2, 0, 3, 4, 2]
    assert told.number(fragment(3, None, None, " "), 0) == 4


def test_arguments_that_are_no_text():
    assert arguments_text(None) == "" and json.loads(arguments_text({"a": "ä"})) == {"a": "ä"}
    assert calls([fragment(0, "a", "f", {"x": 1})], [fragment(0, "b", "f", {"x": 2})]) == [
        ("a", "f", '{"x": 1}'), ("b", "f", '{"x": 2}')]


@pytest.mark.parametrize("part", [
    {}, {"index": "0", "id": 5, "function": "x"}, {"function": {"name": [], "arguments": 5}}])
def test_odd_fragments(part):
    told = ToolCalls()
    assert told.number(part, 0) == told.number(part, 0) == 0
