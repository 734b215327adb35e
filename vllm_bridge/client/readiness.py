"""Whether the servers are there with what is wanted of them, and waiting until they are."""

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from ..api.records import ModelList
from ..errors import APITimeoutError, AuthenticationError, PermissionDeniedError, RequestCancelledError
from .models import WITHIN, collect, states
from .options import Options

if TYPE_CHECKING:
    from .call import Caller

__all__ = ["missing_models", "wait_ready"]

_PAUSE = 1.0  # seconds between two times that they are asked
_LEAST = 0.1  # seconds that they have for an answer, however little time is left
_MOMENT = 0.05  # seconds between two looks at who may break the waiting off
_PREFIX = "vllm/"  # before the names that a gateway lists

State = Dict[str, Any]


def missing_models(found: List[State]) -> List[str]:
    """Return the models that keys name and no server that is there has; `found` is as `models.states` gives it."""
    wanted: Dict[str, str] = {}
    for state in found:
        key = state["key"]
        names = [key.model_name] if key.model_name is not None else [name for name in key.models if name != "*"]
        wanted.update((name.lower(), name) for name in names + [name for name in key.aliases if "*" not in name])
    for state in found:
        if is_there(state):
            for model in state["models"] or ():
                wanted.pop(str(model.get("id")).lower(), None)
    return sorted(wanted.values())


def is_there(state: State) -> bool:
    """Tell whether a server answers requests, or would be woken by one."""
    return state["error"] is None and (state["state"] != "sleeping" or bool(state["key"].wake))


def wait_ready(
    caller: "Caller",
    options: Options,
    model: Optional[str],
    timeout: Optional[float],
    tell: Optional[Callable[[str], Any]],
) -> ModelList:
    """Wait until the servers are there; see `BaseOpenAIProvider.wait_ready`."""
    end = None if timeout is None else time.monotonic() + timeout
    told = None
    while True:
        left = WITHIN if end is None else min(WITHIN, max(_LEAST, end - time.monotonic()))
        asking = options.replaced({"deadline": left, "trace": None})
        found = states(caller, asking)
        waits = _waits(found, model)
        if not waits:
            return collect(caller, asking)
        what = "; ".join(waits)
        for state in found:
            if isinstance(state["error"], (AuthenticationError, PermissionDeniedError)):
                raise state["error"]  # that does not change by itself
        if tell is not None and what != told:
            tell(what)
            told = what
        left = _PAUSE if end is None else min(_PAUSE, end - time.monotonic())
        if left <= 0:
            raise APITimeoutError("not ready after %g seconds: %s" % (timeout or 0, what))
        _pause(left, options)


def _waits(found: List[State], model: Optional[str]) -> List[str]:
    """Say what is not there yet: a model, or, where none is named, each of the servers and the models of the keys."""
    if model is not None:
        names = {str(each.get("id")) for state in found if is_there(state) for each in state["models"] or ()}
        if names & {model, _PREFIX + model}:
            return []
        return ["no server has the model %s" % model] + [
            "%s has %s" % (state["key"].url, _listed(state["models"] or [])) if is_there(state) else _why(state)
            for state in found
        ]
    waits = [_why(state) for state in found if not is_there(state)]
    empty = [state for state in found if is_there(state) and not state["models"]]
    waits += ["%s has no model" % state["key"].url for state in empty]
    return waits or ["no server has the model %s" % name for name in missing_models(found)]


def _why(state: State) -> str:
    error = state["error"]
    return "%s sleeps" % state["key"].url if error is None else str(error.message)


def _listed(models: List[Dict[str, Any]]) -> str:
    return ", ".join(str(model.get("id")) for model in models[:5]) or "no model"


def _pause(seconds: float, options: Options) -> None:
    end, cancel = time.monotonic() + seconds, options.cancel
    while time.monotonic() < end:
        if cancel is not None and cancel.why is not None:
            raise RequestCancelledError(cancel.why)
        time.sleep(seconds if cancel is None else min(seconds, _MOMENT))
