"""Keywords → body → JSON, and JSON → object (vllm_bridge/wire.py; the transcripts' reader is tests/wire.py)."""

import json

import pytest

from vllm_bridge.errors import BadRequestError, ResponseDecodeError
from vllm_bridge.api.record import Record
from vllm_bridge.api.body import as_written, merged, object_of, to_json


@pytest.mark.parametrize(
    "wire, body",
    [
        ({}, {}),
        ({"model": "m", "nonsense": {"a": 1}}, {"model": "m", "nonsense": {"a": 1}}),
        ({"a": None, "b": 0, "c": False, "d": "", "e": [], "f": {"g": None}},
         {"b": 0, "c": False, "d": "", "e": [], "f": {"g": None}}),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_params": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_body": None, "extra_params": {}}, {}),
        ({"top_k": 1, "extra_body": {"top_k": 5}}, {"top_k": 5}),  # the extra value wins (SPEC §2.2)
        ({"a": {"x": 1, "y": {"z": 1}}, "extra_body": {"a": {"y": {"w": 2}}}}, {"a": {"x": 1, "y": {"z": 1, "w": 2}}}),
        ({"a": {"x": 1}, "extra_body": {"a": [1]}}, {"a": [1]}),
        ({"a": [1], "extra_body": {"a": {"x": 1}}}, {"a": {"x": 1}}),
        ({"extra_body": {"a": 1, "b": 1}, "extra_params": {"b": 2}}, {"a": 1, "b": 2}),
        ({"extra_body": {"a": None}}, {"a": None}),  # whoever writes a body writes null for null
        ({"extra_body": Record(a=1)}, {"a": 1}),
    ],
)
def test_merged(wire, body):
    before = json.dumps(wire)
    assert merged(wire) == body
    assert json.dumps(wire) == before


def test_merging_changes_nothing_of_the_callers():
    inner = {"x": {"deep": 1}}
    given = {"a": inner, "extra_body": {"a": {"x": {"more": 2}}}}
    assert merged(given) == {"a": {"x": {"deep": 1, "more": 2}}}
    assert inner == {"x": {"deep": 1}}


@pytest.mark.parametrize("wrapper", ["extra_body", "extra_params"])
@pytest.mark.parametrize("value, name", [([1], "list"), ("x", "str"), (5, "int")])
def test_an_extra_that_is_no_object(wrapper, value, name):
    with pytest.raises(BadRequestError, match="%s must be an object, got %s" % (wrapper, name)) as raised:
        merged({wrapper: value})
    assert raised.value.param == wrapper


def test_an_extra_nested_beyond_all_measure():
    deep, extra = {}, {}
    for _ in range(5000):
        deep, extra = {"a": deep}, {"a": extra}
    with pytest.raises(BadRequestError, match="extra_body is nested too deeply"):
        merged({"a": deep, "extra_body": {"a": extra}})


@pytest.mark.parametrize(
    "wire, body",
    [
        ({"a": [1, "x", None, True]}, b'{"a":[1,"x",null,true]}'),
        ({"a": "\u65e5\ud800"}, b'{"a":"\\u65e5\\ud800"}'),  # half a character has no UTF-8, but it has JSON
        ({"a": Record(b=1), "t": (1, 2), "n": 0.1}, b'{"a":{"b":1},"t":[1,2],"n":0.1}'),
    ],
)
def test_to_json(wire, body):
    assert to_json(wire) == body


LOOP = []
LOOP.append(LOOP)
DEEP = []
for _ in range(100000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value, why",
    [(b"x", "bytes"), (float("nan"), "Out of range float"), (float("inf"), "Out of range float"), ({1, 2}, "set"),
     ({(1, 2): 3}, "keys must be"), (LOOP, "Circular"), (object(), "object"), (DEEP, "recursion")],
)
def test_what_has_no_json_is_named(value, why):
    with pytest.raises(BadRequestError, match="field has no JSON form: .*%s" % why) as raised:
        to_json({"fine": 1, "field": value})
    assert raised.value.param == "field"
    assert raised.value.status_code == 400


def test_a_body_that_has_no_json_as_a_whole():
    with pytest.raises(BadRequestError, match="the request has no JSON form: keys must be"):
        to_json({("a", "b"): 1})


def test_object_of():
    assert object_of(b'{"a": {"b": []}}') == {"a": {"b": []}}


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "the server sent no valid JSON .*: an empty body"),
        (b"<html>", "the server sent no valid JSON .*: <html>"),
        (b'{"a": "\xff"}', "the server sent no valid JSON"),
        (b"[1]", r"the server sent no JSON object: \[1\]"),
        (b'"text"', 'the server sent no JSON object: "text"'),
        (b"null", "the server sent no JSON object: null"),
    ],
)
def test_what_is_no_object(body, message):
    with pytest.raises(ResponseDecodeError, match=message) as raised:
        object_of(body, url="http://h/p", request_id="r")
    assert (raised.value.url, raised.value.request_id) == ("http://h/p", "r")


@pytest.mark.parametrize("depth", [100, 300, 450, 600, 800, 900, 950, 980, 1500, 100000])
def test_lists_nested_to_any_depth_are_no_object(depth):
    with pytest.raises(ResponseDecodeError):
        object_of(b"[" * depth + b"]" * depth)


def test_a_body_that_says_what_it_said_is_not_printed_again():
    data = b'{ "model":"m", "seed" : 1.0e0 }'
    given = {"model": "m", "seed": 1.0}
    body = as_written(dict(given), given, data)
    assert body == given and to_json(body) is data


@pytest.mark.parametrize(
    "body, data",
    [
        ({"model": "m"}, None),
        ({"model": "m", "stream": True}, b'{"model":"m"}'),
        ({"model": "m"}, b'\xef\xbb\xbf{"model":"m"}'),
        ({"model": "m"}, b' {"model":"m"}'),
        ({"model": "m"}, '{"model":"m"}'.encode("utf-16-le")),
    ],
)
def test_what_has_changed_or_is_not_plain_is_printed(body, data):
    assert as_written(body, {"model": "m"}, data) is body
