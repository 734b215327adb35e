"""Where a value breaks a JSON schema (draft 2020-12), as far as a model's answer is concerned."""

import operator
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

__all__ = ["broken"]

_TYPES: Dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())),
}
_DEEPEST = 100  # references that are followed one into another


def broken(schema: Any, value: Any) -> Optional[str]:
    """Return the first place where a value breaks a schema, and how; ``None`` if it does not.

    Keywords that are not known here (``format``, ``if``, ``dependentSchemas``, ...) ask for nothing.
    """
    return next(_Check(schema).problems(schema, value, ""), None)


class _Check:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._depth = 0

    def problems(self, schema: Any, value: Any, path: str) -> Iterator[str]:
        """Yield what is wrong with a value at a path."""
        if schema is False:
            yield "%s: nothing is allowed here" % _place(path)
        if not isinstance(schema, dict):
            return
        self._depth += 1
        if self._depth > _DEEPEST:
            raise RecursionError("the schema refers to itself without end")
        try:
            yield from self._problems(schema, value, path)
        finally:
            self._depth -= 1

    def _problems(self, schema: Dict[str, Any], value: Any, path: str) -> Iterator[str]:
        if "$ref" in schema:
            yield from self.problems(self._resolved(schema["$ref"]), value, path)
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        if types and not any(_TYPES.get(each, _anything)(value) for each in types):
            yield "%s: expected %s, got %s" % (_place(path), " or ".join(types), _shown(value))
            return
        if "const" in schema and not _same(schema["const"], value):
            yield "%s: expected %r, got %s" % (_place(path), schema["const"], _shown(value))
        if "enum" in schema and not any(_same(each, value) for each in schema["enum"]):
            yield "%s: expected one of %s, got %s" % (
                _place(path), ", ".join(repr(each) for each in schema["enum"]), _shown(value))
        yield from self._combined(schema, value, path)
        if isinstance(value, dict):
            yield from self._object(schema, value, path)
        elif isinstance(value, list):
            yield from self._array(schema, value, path)
        elif isinstance(value, str):
            yield from _string(schema, value, path)
        elif not isinstance(value, bool) and value is not None:
            yield from _number(schema, value, path)

    def _combined(self, schema: Dict[str, Any], value: Any, path: str) -> Iterator[str]:
        for each in schema.get("allOf", ()):
            yield from self.problems(each, value, path)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                found = [next(self.problems(each, value, path), None) for each in schema[name]]
                if None not in found:
                    # The branch that went furthest is the one that was meant.
                    yield max((each for each in found if each), key=lambda each: len(each.partition(": ")[0]))
                elif name == "oneOf" and found.count(None) > 1:
                    yield "%s: fits more than one of the forms there are" % _place(path)
        if "not" in schema and next(self.problems(schema["not"], value, path), None) is None:
            yield "%s: is what it must not be, %s" % (_place(path), _shown(value))

    def _object(self, schema: Dict[str, Any], value: Dict[str, Any], path: str) -> Iterator[str]:
        for name in schema.get("required", ()):
            if name not in value:
                yield "%s: is missing" % _place(_within(path, name))
        yield from _counted(schema, "Properties", len(value), path, "members")
        properties = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        for name, item in value.items():
            inner = _within(path, name)
            known = name in properties
            if known:
                yield from self.problems(properties[name], item, inner)
            for pattern, each in patterns.items():
                if re.search(pattern, name):
                    known = True
                    yield from self.problems(each, item, inner)
            if not known and "additionalProperties" in schema:
                if schema["additionalProperties"] is False:
                    yield "%s: there is no such member" % _place(inner)
                yield from self.problems(schema["additionalProperties"] or {}, item, inner)

    def _array(self, schema: Dict[str, Any], value: List[Any], path: str) -> Iterator[str]:
        yield from _counted(schema, "Items", len(value), path, "items")
        first = schema.get("prefixItems", ())
        for index, item in enumerate(value):
            each = first[index] if index < len(first) else schema.get("items", {})
            yield from self.problems(each, item, "%s[%d]" % (path, index))
        if schema.get("uniqueItems") and any(_same(one, other) for at, one in enumerate(value) for other in value[:at]):
            yield "%s: holds something twice" % _place(path)

    def _resolved(self, reference: Any) -> Any:
        """Return what a reference within the schema points at (RFC 6901); one to elsewhere asks for nothing."""
        target = self._root
        if not isinstance(reference, str) or not reference.startswith("#"):
            return {}
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, dict) else None
        return target


def _string(schema: Dict[str, Any], value: str, path: str) -> Iterator[str]:
    yield from _counted(schema, "Length", len(value), path, "characters")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield "%s: does not match %s, got %s" % (_place(path), schema["pattern"], _shown(value))


_LIMITS: Dict[str, Tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "at least"), "maximum": (operator.le, "at most"),
    "exclusiveMinimum": (operator.gt, "more than"), "exclusiveMaximum": (operator.lt, "less than"),
    "multipleOf": (lambda value, step: abs(value / step - round(value / step)) < 1e-9, "a multiple of"),
}


def _number(schema: Dict[str, Any], value: Any, path: str) -> Iterator[str]:
    for name, (good, words) in _LIMITS.items():
        if name in schema and not good(value, schema[name]):
            yield "%s: expected %s %s, got %s" % (_place(path), words, schema[name], value)


def _counted(schema: Dict[str, Any], what: str, count: int, path: str, words: str) -> Iterator[str]:
    if count < schema.get("min" + what, 0):
        yield "%s: expected at least %d %s, got %d" % (_place(path), schema["min" + what], words, count)
    if count > schema.get("max" + what, count):
        yield "%s: expected at most %d %s, got %d" % (_place(path), schema["max" + what], words, count)


def _within(path: str, name: str) -> str:
    return "%s.%s" % (path, name) if path else name


def _place(path: str) -> str:
    return path or "the whole"


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same JSON: true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _anything(value: Any) -> bool:
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
