"""Tools that the client itself runs: functions on the way up, calls of their own types on the way back.

The types are those of OpenAI's reference of the Responses API; ``computer_use_preview`` with one action a call.
"""

import json
from typing import Any, Dict, NamedTuple, Optional

from ...errors import BadRequestError
from ..tool_calls import arguments_text

__all__ = ["CLIENT_TOOLS", "arguments_of", "call_fields", "function_of", "kind_of_call", "kind_of_output", "output_of"]

Json = Dict[str, Any]

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}
_TEXTS: Json = {"type": "array", "items": _TEXT}
_KEYS: Json = {"keys": _TEXTS}
_AT: Json = {"x": _WHOLE, "y": _WHOLE}


def _object(required: Json, optional: Optional[Json] = None) -> Json:
    return {
        "type": "object", "properties": {**required, **(optional or {})}, "required": list(required),
        "additionalProperties": False,
    }


def _one(kind: str, required: Json, optional: Optional[Json] = None) -> Json:
    """Return the schema of one of several actions, told apart by their ``type``."""
    return _object({"type": {"type": "string", "enum": [kind]}, **required}, optional)


class ClientTool(NamedTuple):
    """How a tool's call is told: the type and id of its item, the field of it that the model fills in, and the rest."""

    call: str
    prefix: str
    field: str
    schema: Json  # of the field; it is the parameters of the function, or their only one where it has several forms
    description: str
    filled: Json = {}  # what the field holds besides,
    beside: Json = {}  # and the item


CLIENT_TOOLS: Dict[str, ClientTool] = {
    "local_shell": ClientTool(
        "local_shell_call", "lsh_", "action",
        _object({"command": {**_TEXTS, "minItems": 1}}, {
            "env": {"type": "object", "additionalProperties": _TEXT}, "timeout_ms": _WHOLE, "user": _TEXT,
            "working_directory": _TEXT,
        }),
        "Run a command, the program and its arguments, on the user's machine.", {"type": "exec", "env": {}},
    ),
    "shell": ClientTool(
        "shell_call", "sh_", "action",
        _object({"commands": {**_TEXTS, "minItems": 1}}, {"timeout_ms": _WHOLE, "max_output_length": _WHOLE}),
        "Run shell commands, each a line of its own, on the user's machine.",
        {"timeout_ms": None, "max_output_length": None},
    ),
    "apply_patch": ClientTool(
        "apply_patch_call", "apc_", "operation",
        {"anyOf": [
            _one("create_file", {"path": _TEXT, "diff": _TEXT}), _one("update_file", {"path": _TEXT, "diff": _TEXT}),
            _one("delete_file", {"path": _TEXT}),
        ]},
        "Create, update or delete a file of the user's. The diff is in the V4A format: lines that begin with '+', '-' "
        "or a space, and '@@' with a line of the file before each section.",
    ),
    "computer_use_preview": ClientTool(
        "computer_call", "cu_", "action",
        {"anyOf": [
            _one("screenshot", {}), _one("wait", {}), _one("type", {"text": _TEXT}), _one("keypress", _KEYS),
            _one("click", {
                "button": {"type": "string", "enum": ["left", "right", "wheel", "back", "forward"]}, **_AT,
            }, _KEYS),
            _one("double_click", _AT, _KEYS), _one("move", _AT, _KEYS),
            _one("scroll", {**_AT, "scroll_x": _WHOLE, "scroll_y": _WHOLE}, _KEYS),
            _one("drag", {"path": {"type": "array", "items": _object(_AT)}}, _KEYS),
        ]},
        "Take one action on the user's computer; a screenshot of what came of it is the answer.",
        beside={"pending_safety_checks": []},
    ),
    "tool_search": ClientTool(
        "tool_search_call", "tsc_", "arguments", _object({"paths": _TEXTS}), "Search for tools and load them.",
        beside={"execution": "client"},
    ),
}

_KINDS = {tool.call: kind for kind, tool in CLIENT_TOOLS.items()}
_OUTPUTS = {tool.call.replace("search_call", "search") + "_output": kind for kind, tool in CLIENT_TOOLS.items()}


def function_of(tool: Json) -> Optional[Json]:
    """Return the chat function for a tool of a request, without its name; ``None`` if it is not the client's to run."""
    kind = tool.get("type")
    known = CLIENT_TOOLS.get(kind) if isinstance(kind, str) else None
    environment = tool.get("environment")
    hosted = kind == "shell" and isinstance(environment, dict) and environment.get("type") != "local"
    if known is None or hosted or (kind == "tool_search" and tool.get("execution") != "client"):
        return None
    description = known.description
    if kind == "computer_use_preview":
        description += " Its display has %s x %s pixels, its system is %s." % (
            tool.get("display_width"), tool.get("display_height"), environment)
    parameters = _object({known.field: known.schema}) if "anyOf" in known.schema else known.schema
    if kind == "tool_search":
        description, parameters = tool.get("description") or description, tool.get("parameters") or parameters
    return {"description": description, "parameters": parameters}


# ---------------------------------------------------------------- from the model


def call_fields(kind: str, arguments: Optional[Json]) -> Optional[Json]:
    """Return the fields of a call's item that its arguments make; ``None`` if they do not fit the tool's schema."""
    tool = CLIENT_TOOLS[kind]
    if arguments is None or kind == "tool_search":  # whose schema is the client's own
        return None if arguments is None else {tool.field: arguments, **tool.beside}
    inner = arguments.get(tool.field)
    if len(arguments) == 1 and isinstance(inner, dict):
        arguments = inner
    given = _given(kind, arguments)
    return {tool.field: {**tool.filled, **given}, **tool.beside} if _fits(given, tool.schema) else None


def _given(kind: str, action: Json) -> Json:
    """Return what the model says of an action: no nulls, and no type where there is but one."""
    one = CLIENT_TOOLS[kind].filled.get("type")
    return {
        key: value for key, value in action.items() if value is not None and not (key == "type" and value == one)
    }


def _fits(value: Any, schema: Json) -> bool:
    """Tell whether a value is as one of the schemas above has it."""
    if "anyOf" in schema:
        return any(_fits(value, one) for one in schema["anyOf"])
    kind = schema["type"]
    if kind == "object":
        known, other = schema.get("properties", {}), schema["additionalProperties"]
        return (
            isinstance(value, dict)
            and all(name in value for name in schema.get("required", ()))
            and all(_fits(value[name], known[name]) if name in known else other and _fits(value[name], other)
                    for name in value)
        )
    if kind == "array":
        least = schema.get("minItems", 0)
        return isinstance(value, list) and len(value) >= least and all(_fits(one, schema["items"]) for one in value)
    if kind == "integer":
        return type(value) is int
    return isinstance(value, str) and value in schema.get("enum", (value,))


# ---------------------------------------------------------------- from the client


def kind_of_call(item: Json) -> Optional[str]:
    """Return the tool whose earlier call an input item is, ``None`` for one that is none."""
    kind = _KINDS.get(str(item.get("type")))
    return None if kind == "tool_search" and item.get("execution") == "server" else kind


def arguments_of(kind: str, item: Json, where: str) -> str:
    """Return the arguments of an earlier call, in the form in which the model made them."""
    field, schema = CLIENT_TOOLS[kind].field, CLIENT_TOOLS[kind].schema
    value, several = item.get(field), item.get("actions")
    if kind == "tool_search":
        return arguments_text(value)
    if value is None and isinstance(several, list) and len(several) == 1:
        value = several[0]
    if not isinstance(value, dict):
        raise BadRequestError("%s.%s must be an object" % (where, field), param="%s.%s" % (where, field))
    given = _given(kind, value)
    return json.dumps({field: given} if "anyOf" in schema else given, ensure_ascii=False)


def kind_of_output(item: Json) -> Optional[str]:
    """Return the tool whose output an input item is, ``None`` for one that is none."""
    kind = _OUTPUTS.get(str(item.get("type")))
    return None if kind == "tool_search" and item.get("execution") == "server" else kind


def output_of(kind: str, item: Json) -> Any:
    """Return what the client's tool gave as the output of a function: a text, or a list of parts."""
    output = item.get("tools" if kind == "tool_search" else "output")
    if kind == "computer_use_preview" and isinstance(output, dict):
        return [dict(output, type="input_image")]
    if kind == "apply_patch":  # completed or failed, and perhaps a log
        return ": ".join(part for part in (item.get("status"), output) if isinstance(part, str) and part)
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
