"""What the gateway tells of itself and of the servers behind it."""

from typing import Any, Dict

from ..api.body import to_json
from ..client.readiness import missing_models
from ..errors import APIConnectionError, BridgeError
from ..provider import BaseOpenAIProvider
from ..server.request import Answer, Request
from ..version import __version__
from .errors import Errors
from .journal import Entry, Journal
from .metrics import CONTENT_TYPE

__all__ = ["Status"]

_JSON = [("Content-Type", "application/json")]
_WITHIN = 2.0  # seconds that a server has to say that it is there


class Status:
    """Answers to ``/health``, ``/ready``, ``/metrics``, ``/version`` and ``/load``."""

    def __init__(self, provider: BaseOpenAIProvider, errors: Errors, journal: Journal) -> None:
        self._provider = provider
        self._errors = errors
        self._journal = journal

    def health(self, request: Request, entry: Entry) -> Answer:
        """Say that the process is there."""
        return Answer(200, _JSON, b'{"status":"ok"}')

    def ready(self, request: Request, entry: Entry) -> Answer:
        """Say whether there is a server, and one for each model that the keys name; name those that lack one."""
        found = self._provider.with_options(deadline=_WITHIN).server_states()
        missing = missing_models(found)
        if not missing and not all(state["error"] for state in found):
            return Answer(200, _JSON, b'{"status":"ready"}')
        error = found[-1]["error"] if found else APIConnectionError("all keys are disabled")
        if not all(state["error"] for state in found):
            error = APIConnectionError("no server has: %s" % ", ".join(missing), code="model_missing")
        payload = {"status": "unavailable", "missing": missing, "error": self._errors.payload(entry, error)[1]["error"]}
        return _json(503, payload)

    def metrics(self, request: Request, entry: Entry) -> Answer:
        """Give the numbers, for Prometheus."""
        return Answer(200, [("Content-Type", CONTENT_TYPE)], self._journal.text())

    def version(self, request: Request, entry: Entry) -> Answer:
        """Give the gateway's version and those of the servers."""
        return _json(200, {"version": __version__, "servers": self._of_each("/version", entry)})

    def load(self, request: Request, entry: Entry) -> Answer:
        """Give what the servers say of their load."""
        return _json(200, {"servers": self._of_each("/load", entry)})

    def _of_each(self, path: str, entry: Entry) -> Dict[str, Any]:
        """Return what each server answers, or why it does not, by the name of its key."""
        provider = self._provider.with_options(timeout=_WITHIN, deadline=_WITHIN)
        return {
            name: self._errors.payload(entry, found)[1] if isinstance(found, BridgeError) else found
            for name, found in provider.of_each(path).items()
        }


def _json(status: int, payload: Dict[str, Any]) -> Answer:
    return Answer(status, _JSON, to_json(payload))
