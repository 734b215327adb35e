"""Where a value breaks a JSON schema: the verdicts are those of jsonschema, the words say where."""

import pytest

from vllm_bridge.api.schema import broken

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["good", "bad", None, 1]},
        "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2, "uniqueItems": True},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}], "items": False},
        "size": {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5}, {"type": "null"}]},
        "either": {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]},
        "kind": {"const": True},
        "both": {"allOf": [{"type": ["string", "null"]}, {"not": {"const": "no"}}]},
        "odd": {"$ref": "#/$defs/a~1b"},
    },
    "required": ["name"],
    "patternProperties": {"^x_": {"type": "boolean"}},
    "additionalProperties": False,
    "$defs": {"a/b": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1,
                      "maxProperties": 2}},
}
VALUES = [
    {"name": "Ann"}, {"name": "Ann", "age": 5, "mood": None, "x_a": True}, {"name": "Ann", "age": 5.0},
    {"name": "Ann", "children": [{"name": "Bob"}, {"name": "Eve", "children": []}]}, {"name": "Ann", "pair": ["a", 1]},
    {"name": "Ann", "size": 1.5}, {"name": "Ann", "size": None}, {"name": "Ann", "either": 7},
    {"name": "Ann", "either": 2.5}, {"name": "Ann", "kind": True}, {"name": "Ann", "both": None},
    {"name": "Ann", "odd": {"a": 1}}, {"name": "Ann", "mood": 1}, {"name": "Ann", "pair": []},
    [], None, "Ann", 5, {}, {"name": ""}, {"name": "ann"}, {"name": "A" * 21}, {"name": 5}, {"name": "Ann", "age": "5"},
    {"name": "Ann", "age": 5.5}, {"name": "Ann", "age": -1}, {"name": "Ann", "age": 151}, {"name": "Ann", "age": True},
    {"name": "Ann", "mood": "so"}, {"name": "Ann", "mood": True}, {"name": "Ann", "children": [{"name": 5}]},
    {"name": "Ann", "children": [{"name": "Bob"}, {"name": "Bob"}]}, {"name": "Ann", "children": [{}] * 3},
    {"name": "Ann", "pair": ["a", "b"]}, {"name": "Ann", "pair": ["a", 1, 2]}, {"name": "Ann", "size": 0},
    {"name": "Ann", "size": 0.7}, {"name": "Ann", "size": "big"}, {"name": "Ann", "either": 3},
    {"name": "Ann", "kind": 1}, {"name": "Ann", "both": "no"}, {"name": "Ann", "both": 5}, {"name": "Ann", "odd": {}},
    {"name": "Ann", "odd": {"a": "b"}}, {"name": "Ann", "odd": {"a": 1, "b": 2, "c": 3}}, {"name": "Ann", "x_a": 1},
    {"name": "Ann", "nick": "A"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_verdict_is_that_of_jsonschema(value):
    jsonschema = pytest.importorskip("jsonschema")
    assert (broken(PERSON, value) is None) == jsonschema.Draft202012Validator(PERSON).is_valid(value)


@pytest.mark.parametrize("value, where", [
    ({"name": "Ann", "age": "5"}, "age: expected integer, got '5'"),
    ({"name": "Ann", "children": [{"name": "Bob"}, {"name": 5}]}, "children[1].name: expected string, got 5"),
    ({}, "name: is missing"),
    ({"name": "Ann", "nick": "A"}, "nick: there is no such member"),
    ([], "the whole: expected object, got []"),
    ({"name": "Ann", "mood": "so"}, "mood: expected one of 'good', 'bad', None, 1, got 'so'"),
    ({"name": "Ann", "age": 151}, "age: expected at most 150, got 151"),
    ({"name": "Ann", "children": [{"name": "A"}, {"name": "B"}, {"name": "C"}]},
     "children: expected at most 2 items, got 3"),
])
def test_it_says_where_and_what(value, where):
    assert broken(PERSON, value) == where


@pytest.mark.parametrize("schema", [{}, True, {"format": "date"}, {"$ref": "http://elsewhere"}, {"$ref": "#/nowhere"}])
def test_what_is_not_known_asks_for_nothing(schema):
    assert broken(schema, {"a": 1}) is None


def test_a_schema_that_refers_to_itself_without_end_ends():
    with pytest.raises(RecursionError):
        broken({"$ref": "#"}, 5)
