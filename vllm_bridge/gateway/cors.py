"""Web pages that call the gateway: whose may, and what their browser is told (Fetch standard, CORS)."""

import re
from typing import Dict, Iterable, Optional

from ..config.validate import is_this_machine
from ..errors import PermissionDeniedError
from ..server.request import Answer
from .patterns import Patterns

__all__ = ["Cors"]

_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?\Z", re.IGNORECASE)
_METHODS = "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD"
_DAY = "86400"
_EXPOSED = "X-Request-Id, Retry-After"
_PREFLIGHT = ("Vary", "Origin, Access-Control-Request-Headers")
_EMPTY = ("Content-Type", "text/plain; charset=utf-8")


class Cors:
    """Judge web pages by their origin.

    Pages of this machine may always call. An origin is allowed by its exact name, by a name with ``*`` in it, or by
    ``*`` alone.
    """

    def __init__(self, allowed_origins: Iterable[str] = ()) -> None:
        allowed = list(allowed_origins)
        self._all = "*" in allowed
        self._allowed = Patterns(origin.rstrip("/") for origin in allowed)

    def allows(self, origin: str) -> bool:
        """Tell whether pages of an origin may call."""
        return self._all or _is_local(origin) or self._allowed.match(origin)

    def check(self, origin: str) -> None:
        """Raise `PermissionDeniedError` for the request of a page that may not call.

        Without an API key any page in a browser on this machine could spend its GPU: a browser sends a plain POST
        first and asks CORS afterwards.
        """
        if not self.allows(origin):
            raise PermissionDeniedError(
                "the origin of this web page is not allowed here; add it to allowed_origin",
                type="permission_error", code="origin_not_allowed",
            )

    def mark(self, answer: Answer, origin: str) -> None:
        """Put the CORS headers on an answer to a web page."""
        if self.allows(origin):
            answer.fields += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _EXPOSED)]
        if _PREFLIGHT not in answer.fields:
            answer.fields.append(("Vary", "Origin"))

    def preflight(self, fields: Dict[str, str]) -> Optional[Answer]:
        """Answer a browser's question before its request, ``None`` if it is no such question."""
        origin = fields.get("origin")
        if origin is None or "access-control-request-method" not in fields:
            return None
        if not self.allows(origin):
            return Answer(403, [_EMPTY])
        wanted = fields.get("access-control-request-headers") or "Authorization, Content-Type, X-Request-Id"
        return Answer(200, [
            _EMPTY,
            ("Access-Control-Allow-Methods", _METHODS),
            ("Access-Control-Allow-Headers", wanted),
            ("Access-Control-Max-Age", _DAY),
            _PREFLIGHT,
        ])


def _is_local(origin: str) -> bool:
    match = _ORIGIN.match(origin)
    return match is not None and is_this_machine(match.group(1))
