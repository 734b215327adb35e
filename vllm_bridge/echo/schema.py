"""A small value that fits a JSON schema: arguments for tool calls, content for structured outputs."""

from typing import Any, Dict

_DEEPEST = 8


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """Return a value that ``schema`` allows, always the same one.

    Knows const, enum, anyOf, oneOf, allOf, local $ref, the types, required, minItems, minLength, maxLength,
    minimum, exclusiveMinimum, maximum and multipleOf; ``pattern`` and ``format`` are not looked at. Properties
    that are not required are left out, unless the schema has no ``required`` at all.

    >>> example({"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer"}}})
    {'city': 'Paris', 'days': 0}
    """
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if "$ref" in schema:
        return example(_resolve(str(schema["$ref"]), root), root, depth + 1)
    if schema.get("allOf"):
        return example(_merged(schema, root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return example(schema[key][0], root, depth + 1)
    return _of_type(_type(schema), schema, root, depth)


def _resolve(reference: str, root: Any) -> Any:
    found = root
    for part in reference.lstrip("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _merged(schema: Dict[str, Any], root: Any) -> Dict[str, Any]:
    merged: Dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        part = _resolve(str(part["$ref"]), root) if "$ref" in part else part
        for key, value in (part or {}).items():
            if key == "properties":
                merged["properties"] = dict(merged.get("properties", {}), **value)
            elif key == "required":
                merged["required"] = list(merged.get("required", [])) + list(value)
            else:
                merged.setdefault(key, value)
    return merged


def _type(schema: Dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind is None:
        kind = "array" if "items" in schema else "object" if "properties" in schema else "string"
    return str(kind)


def _of_type(kind: str, schema: Dict[str, Any], root: Any, depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: example(properties.get(name, {}), root, depth + 1)
                for name in schema.get("required", properties)}
    if kind == "array":
        return [example(schema.get("items", {}), root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return "echo".ljust(schema.get("minLength", 0), ".")[:schema.get("maxLength")]
    if kind in ("integer", "number"):
        return _number(kind, schema)
    return False if kind == "boolean" else None


def _number(kind: str, schema: Dict[str, Any]) -> Any:
    step = schema.get("multipleOf", 1)
    value = max(schema.get("minimum", 0), schema.get("exclusiveMinimum", -step) + step)
    if "maximum" in schema:
        value = min(value, schema["maximum"])
    if "multipleOf" in schema and value % step:
        value += step - value % step
    return int(value) if kind == "integer" else value
