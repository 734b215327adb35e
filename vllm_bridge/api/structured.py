"""Answers of a given form: what ``response_format=`` may be, and the object that a reply's text is read as.

Beside what servers take it may be a JSON schema, a dataclass, a TypedDict, or a model of pydantic's, which is used
where it is given and never imported here.
"""

import json
from collections.abc import Mapping
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, Union, cast, get_args, get_origin, get_type_hints

from ..errors import BadRequestError, ResponseDecodeError
from ..nesting import loads
from .schema import broken

__all__ = ["parsed", "wire_format"]

Schema = Dict[str, Any]

# What a server takes by itself (vLLM 0.32).
_TAKEN = ("text", "json_object", "json_schema", "structural_tag")
_TELLING = ("$ref", "$defs", "allOf", "anyOf", "const", "enum", "items", "oneOf", "properties")
_PLAIN: Dict[Any, Schema] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    type(None): {"type": "null"}, Any: {}, dict: {"type": "object"}, list: {"type": "array"},
}


def wire_format(given: Any) -> Tuple[Any, Any]:
    """Return a ``response_format`` as servers take it, and what `parsed` is told of it.

    Raises `BadRequestError` for a type that has no JSON schema.
    """
    if isinstance(given, type):
        name, schema = given.__name__, _schema_of_type(given)
        return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}, given
    if not isinstance(given, dict):
        return given, None
    if given.get("type") == "json_schema":
        inner = given.get("json_schema")
        return given, inner.get("schema") if isinstance(inner, dict) else None
    if given.get("type") in _TAKEN or not ("type" in given or any(name in given for name in _TELLING)):
        return given, None
    name = given["title"] if isinstance(given.get("title"), str) else "answer"
    name = "".join(char if char.isalnum() and char.isascii() else "_" for char in name)[:64]  # as OpenAI has it
    return {"type": "json_schema", "json_schema": {"name": name, "schema": given, "strict": True}}, given


def parsed(text: Any, wanted: Any, reason: Any) -> Any:
    """Return what the text of an answer says: an object of the wanted type, or else plain JSON that fits the schema.

    `reason` is why the answer ended. Raises `ResponseDecodeError`, which says where it is not what was wanted.
    """
    try:
        if not isinstance(text, str) or not text:
            raise ValueError("it has no text")
        return _read(text, wanted)
    except (ValueError, RecursionError) as error:  # pydantic.ValidationError is a ValueError
        cut = "; it was cut off (finish_reason %r): raise max_tokens" % reason if reason == "length" else ""
        problem = "the answer is not what response_format asks for: %s%s" % (error, cut)
        raise ResponseDecodeError(problem, payload=text) from error


def _read(text: str, wanted: Any) -> Any:
    if hasattr(wanted, "model_validate_json"):
        return wanted.model_validate_json(text)
    if hasattr(wanted, "parse_raw"):  # pydantic 1
        return wanted.parse_raw(text)
    value = loads(text)
    schema = wanted if isinstance(wanted, dict) else {} if wanted is None else _schema_of_type(wanted)
    problem = broken(schema, value)
    if problem is not None:
        raise ValueError(problem)
    return _built(wanted, value) if isinstance(wanted, type) else value


# ---------------------------------------------------------------- types → JSON schema


def _schema_of_type(given: Any) -> Schema:
    for method in ("model_json_schema", "schema"):  # pydantic 2 and 1
        if hasattr(given, method):
            return cast(Schema, getattr(given, method)())
    names: Dict[Any, str] = {}
    definitions: Dict[str, Schema] = {}
    schema = _schema(given, given.__name__, names, definitions)
    if "$ref" not in schema:
        raise BadRequestError(
            "response_format: expected a JSON schema, a dataclass, a TypedDict or a pydantic model, got %s"
            % given.__name__, param="response_format",
        )
    top = definitions[names[given]]
    if json.dumps(schema["$ref"]) not in json.dumps(definitions):  # nothing in it is of the same class
        del definitions[names[given]]
    return {**top, "$defs": definitions} if definitions else top


def _schema(hint: Any, where: str, names: Dict[Any, str], definitions: Dict[str, Schema]) -> Schema:
    """Return the schema of a type; classes go into `definitions`, under their names in `names`."""
    def inner(hint: Any) -> Schema:
        return _schema(hint, where, names, definitions)

    try:
        if hint in _PLAIN:
            return _PLAIN[hint]
    except TypeError:
        pass  # it has no hash
    generic = _schema_of_generic(hint, inner)
    if generic is not None:
        return generic
    members = getattr(hint, "__members__", None)
    if isinstance(hint, type) and members:
        return {"enum": [each.value for each in members.values()]}
    if _is_class(hint):
        if hint not in names:
            names[hint] = hint.__name__ if hint.__name__ not in definitions else "%s_%d" % (hint.__name__, len(names))
            definitions[names[hint]] = {}  # so that it may refer to itself
            definitions[names[hint]].update(_schema_of_class(hint, names, definitions))
        return {"$ref": "#/$defs/%s" % names[hint]}
    problem = "response_format: %s: there is no JSON schema for %r" % (where, hint)
    raise BadRequestError(problem, param="response_format")


def _schema_of_generic(hint: Any, inner: Callable[[Any], Schema]) -> Optional[Schema]:
    """Return the schema of ``List[int]``, ``Optional[str]``, ``Literal["a"]`` and their like."""
    origin, arguments = get_origin(hint), get_args(hint)
    if _is_union(origin):
        return {"anyOf": [inner(each) for each in arguments]}
    if _is_literal(hint):
        return {"enum": list(arguments)}
    if not isinstance(origin, type) or not arguments:
        return None
    if len(arguments) == 2 and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": inner(arguments[1])}
    if origin is not tuple or arguments[1:] == (...,):
        return {"type": "array", "items": inner(arguments[0])}
    items = [inner(each) for each in arguments]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _schema_of_class(given: Any, names: Dict[Any, str], definitions: Dict[str, Schema]) -> Schema:
    hints, required, described = _fields(given)
    properties = {
        name: {**_schema(hint, "%s.%s" % (given.__name__, name), names, definitions), **described.get(name, {})}
        for name, hint in hints.items()
    }
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _fields(given: Any) -> Tuple[Dict[str, Any], List[str], Dict[str, Schema]]:
    """Return the fields of a dataclass or TypedDict with their types, those that are required, and descriptions."""
    try:
        hints = get_type_hints(given)
    except NameError as error:  # written as strings, of classes within a function
        problem = "response_format: %s: the type of a field cannot be found: %s" % (given.__name__, error)
        raise BadRequestError(problem, param="response_format") from None
    if not hasattr(given, "__dataclass_fields__"):
        keys = getattr(given, "__required_keys__", hints if given.__total__ else ())  # not on Python 3.8
        return hints, [name for name in hints if name in keys], {}
    import dataclasses

    fields = [field for field in dataclasses.fields(given) if field.init]
    missing = dataclasses.MISSING
    required = [each.name for each in fields if each.default is missing and each.default_factory is missing]
    described: Dict[str, Schema] = {each.name: {"description": each.metadata["description"]} for each in fields
                                    if "description" in each.metadata}
    return {each.name: hints[each.name] for each in fields}, required, described


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type) and (
        hasattr(hint, "__dataclass_fields__") or (issubclass(hint, dict) and hasattr(hint, "__total__")))


def _is_union(origin: Any) -> bool:
    return origin is Union or getattr(origin, "__name__", "") == "UnionType"  # X | Y, from Python 3.10 on


def _is_literal(hint: Any) -> bool:
    return getattr(get_origin(hint), "_name", "") == "Literal"


# ---------------------------------------------------------------- JSON → objects of those types


def _built(hint: Any, value: Any) -> Any:
    """Return JSON that fits a type as an object of it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if _is_union(origin):
        return _built(next(each for each in arguments if _fits(each, value)), value)
    if hint is float and not isinstance(value, bool):
        return float(value)
    if origin is tuple and arguments[1:] != (...,):
        return tuple(_built(each, item) for each, item in zip(arguments, value))
    if isinstance(value, list) and arguments and not _is_literal(hint):
        make: Callable[[Any], Any] = list if origin is None or getattr(origin, "__abstractmethods__", None) else origin
        return make(_built(arguments[0], item) for item in value)
    if isinstance(value, dict) and len(arguments) == 2:
        return {name: _built(arguments[1], item) for name, item in value.items()}
    if isinstance(hint, type) and getattr(hint, "__members__", None):
        return cast(Type[Any], hint)(value)
    if _is_class(hint):
        hints = _fields(hint)[0]
        return hint(**{name: _built(hints[name], item) for name, item in value.items()})
    return value


def _fits(hint: Any, value: Any) -> bool:
    definitions: Dict[str, Schema] = {}
    schema = _schema(hint, "", {}, definitions)
    return broken({**schema, "$defs": definitions}, value) is None
