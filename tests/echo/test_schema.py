"""Values that fit a JSON schema, checked by a validator where there is one."""

import pytest

try:
    from jsonschema import validate
except ImportError:  # the expected values below stand on their own
    validate = None

from vllm_bridge.echo.schema import example

SCHEMAS = [
    ({"const": 5}, 5),
    ({"enum": ["a", "b"]}, "a"),
    ({"type": "string"}, "echo"),
    ({"type": "string", "minLength": 6}, "echo.."),
    ({"type": "string", "maxLength": 2}, "ec"),
    ({"type": "integer"}, 0),
    ({"type": "integer", "minimum": 3, "maximum": 9}, 3),
    ({"type": "integer", "exclusiveMinimum": 3}, 4),
    ({"type": "integer", "maximum": -2}, -2),
    ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
    ({"type": "number", "minimum": 0.5, "maximum": 0.75}, 0.5),
    ({"type": "boolean"}, False),
    ({"type": "null"}, None),
    ({"type": ["string", "null"]}, "echo"),
    ({"type": "array", "items": {"type": "integer"}}, []),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
    ({"items": {"type": "integer"}, "minItems": 1}, [0]),
    ({"properties": {"a": {"type": "integer"}}}, {"a": 0}),
    ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, {"a": 0}),
    ({"type": "object", "required": ["a"]}, {"a": "echo"}),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
    ({"oneOf": [{"type": "null"}]}, None),
    ({"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"}, 0),
    ({"definitions": {"a/b": {"const": 1}}, "allOf": [{"$ref": "#/definitions/a~1b"}]}, 1),
    ({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                {"properties": {"b": {"const": 2}}, "required": ["b"]}]}, {"a": 1, "b": 2}),
]


@pytest.mark.parametrize("schema, value", SCHEMAS)
def test_the_value_fits(schema, value):
    found = example(schema)
    assert value is None or (found == value and type(found) is type(value))
    if validate is not None:
        validate(found, schema)


def test_a_schema_without_end_is_cut():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    value, depth = example(schema), 0
    while value is not None:
        value, depth = value["next"], depth + 1
    assert 0 < depth < 10


@pytest.mark.parametrize("schema", [True, None, {"$ref": "#/nowhere"}, {"$ref": "#/a/b", "a": 1}])
def test_what_is_no_schema_gives_null(schema):
    assert example(schema) is None


def test_an_empty_list_of_types_is_any():
    assert example({"type": []}) == "echo"
