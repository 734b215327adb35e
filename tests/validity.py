"""Checks a Response and its events against the Open Responses schema and the openai package's types."""

import json
import pathlib
from typing import Any, Dict

try:
    import jsonschema
except ImportError:  # the oldest Python of the test matrix goes without
    jsonschema = None
try:
    import openai.types.responses as openai_types
    import pydantic
except ImportError:
    openai_types = None

SCHEMA = pathlib.Path(__file__).parent / "data" / "openresponses-openapi.json"
CHECKED = jsonschema is not None or openai_types is not None

# Kinds that the schema of the shared specification does not have, by what carries them.
_OPENAI_ONLY = (
    "custom", "namespace", "custom_tool_call", "local_shell", "local_shell_call", "shell", "shell_call", "apply_patch",
    "apply_patch_call", "computer_use_preview", "computer_call", "tool_search", "tool_search_call",
)
# The specification says response.reasoning.delta where OpenAI and vLLM say reasoning_text.
_RENAMED = {
    "response.reasoning_text.delta": "response.reasoning.delta",
    "response.reasoning_text.done": "response.reasoning.done",
}
_validators: Dict[str, Any] = {}


def _schemas() -> Dict[str, Any]:
    document = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    # Published with {"type": "null"} alone, which no json_schema format can meet.
    schemas["JsonSchemaResponseFormat"]["properties"]["schema"]["anyOf"].append({"type": "object"})
    return {"components": {"schemas": schemas}}


def _validator(name: str) -> Any:
    if name not in _validators:
        document = dict(_schemas(), **{"$ref": "#/components/schemas/" + name})
        _validators[name] = jsonschema.Draft202012Validator(document)
    return _validators[name]


def _event_schemas() -> Dict[str, str]:
    if "names" not in _validators:
        _validators["names"] = {
            schema["properties"]["type"]["enum"][0]: name
            for name, schema in _schemas()["components"]["schemas"].items()
            if name.endswith("StreamingEvent")
        }
    names: Dict[str, str] = _validators["names"]
    return names


def _in_schema(response: Dict[str, Any]) -> bool:
    kinds = [item.get("type") for item in response["output"] + response["tools"]]
    choice = response["tool_choice"]
    kinds.append(choice.get("type") if isinstance(choice, dict) else None)
    return not any(kind in _OPENAI_ONLY for kind in kinds)


def check_response(response: Dict[str, Any]) -> None:
    """Assert that a Response is complete and of the right shape, and that JSON can carry it."""
    json.dumps(response, allow_nan=False)
    if jsonschema is not None and _in_schema(response):
        _validator("ResponseResource").validate(response)
    if openai_types is not None:
        openai_types.Response.model_validate(response)


def check_event(event: Dict[str, Any]) -> None:
    """Assert that an event is of the right shape, and its Response too."""
    json.dumps(event, allow_nan=False)
    kind = event["type"]
    if "response" in event:
        check_response(event["response"])
    if jsonschema is not None:
        names = _event_schemas()
        shown = dict(event, type=_RENAMED.get(kind, kind))
        item_kind = (event.get("item") or {}).get("type")
        known = "custom_tool_call_input" not in kind and item_kind not in _OPENAI_ONLY
        if known and ("response" not in event or _in_schema(event["response"])):
            _validator(names[shown["type"]]).validate(shown)
    if openai_types is not None:
        adapter = _validators.get("adapter")
        if adapter is None:
            adapter = _validators["adapter"] = pydantic.TypeAdapter(openai_types.ResponseStreamEvent)
        adapter.validate_python(event)
