"""Lists of models: one server's read, several merged."""

from typing import Any, Callable, Dict, Iterable, List, Mapping

from .body import object_of
from .folding import objects

__all__ = ["allowed", "merged", "read"]

Model = Dict[str, Any]


def read(body: bytes) -> Dict[str, Any]:
    """Return a server's list of models, without what is none; raises `ResponseDecodeError`.

    ``context_length``, as other servers call it, is vLLM's ``max_model_len``.
    """
    payload = object_of(body, "list_models")
    payload["data"] = objects(payload["data"])
    for model in payload["data"]:
        if "max_model_len" in model:
            model.setdefault("context_length", model["max_model_len"])
    return payload


def allowed(models: Iterable[Model], aliases: Mapping[str, str], allows: Callable[[str], bool]) -> List[Model]:
    """Return the models that are let through, each alias beside the model that it stands for."""
    shown = []
    for model in models:
        name = str(model.get("id"))
        for label in [name] + [alias for alias, real in aliases.items() if real == name and "*" not in alias]:
            if allows(label):
                shown.append(model if label == name else {**model, "id": label, "alias": name})
    return shown


def merged(lists: Iterable[Iterable[Model]]) -> List[Model]:
    """Return the models of several lists by their ids: of each the one with the smallest length, else the first."""
    models: Dict[str, Model] = {}
    for found in lists:
        for model in found:
            name = str(model.get("id"))
            if name not in models or _length(model) < _length(models[name]):
                models[name] = model
    return [models[name] for name in sorted(models)]


def _length(model: Model) -> float:
    length = model.get("max_model_len")
    return length if isinstance(length, (int, float)) else float("inf")
