"""Who may come in: API keys, and the origins of web pages (CORS)."""

import hmac
import re
from hashlib import sha256
from typing import Any, Dict, Iterable, List, Mapping, Optional, Pattern, Tuple

from ..config.validate import is_this_machine
from ..errors import AuthenticationError, BridgeError, PermissionDeniedError

__all__ = ["Doors"]

_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?\Z", re.IGNORECASE)
_METHODS = "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD"
_DAY = "86400"
_EXPOSED = "X-Request-Id, Retry-After"


class Doors:
    """Check API keys in constant time, and web pages by their origin.

    Pages of this machine may always call. An origin is allowed by its exact name, by a name with ``*`` in it, or by
    ``*`` alone.
    """

    def __init__(self, api_keys: Iterable[str] = (), allowed_origins: Iterable[str] = ()) -> None:
        self._digests = [sha256(key.encode("utf-8")).digest() for key in api_keys]
        self._all = False
        self._origins: List[Pattern[str]] = []
        for origin in allowed_origins:
            if origin == "*":
                self._all = True
            pattern = re.escape(origin.rstrip("/")).replace(r"\*", r"[^/]*")
            self._origins.append(re.compile(pattern + r"\Z", re.IGNORECASE))

    def check(self, environ: Mapping[str, Any]) -> Optional[BridgeError]:
        """Return the error for a request that may not come in."""
        if self._digests:
            return None if self._has_key(environ.get("HTTP_AUTHORIZATION", "")) else _unauthorized()
        origin = environ.get("HTTP_ORIGIN")
        # Without a key any page in a browser on this machine could spend its GPU: a browser sends a plain POST
        # first and asks CORS afterwards.
        if origin is not None and not self.allows(origin):
            return PermissionDeniedError(
                "the origin of this web page is not allowed here; add it to allowed_origin",
                type="permission_error", code="origin_not_allowed",
            )
        return None

    def _has_key(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            return False
        digest = sha256(key.strip(" \t").encode("latin-1", "replace")).digest()
        found = False
        for known in self._digests:  # all of them, whichever it is: the time tells nothing
            found |= hmac.compare_digest(known, digest)
        return found

    def allows(self, origin: str) -> bool:
        """Tell whether pages of an origin may call."""
        parts = _ORIGIN.match(origin)
        if self._all or (parts is not None and is_this_machine(parts.group(1))):
            return True
        return any(known.match(origin) for known in self._origins)

    def headers(self, environ: Mapping[str, Any]) -> List[Tuple[str, str]]:
        """Return the CORS headers of a reply; none for a request that comes from no web page."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            return []
        if not self.allows(origin):
            return [("Vary", "Origin")]
        return [
            ("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _EXPOSED), ("Vary", "Origin"),
        ]

    def preflight(self, environ: Dict[str, Any]) -> Optional[Tuple[int, List[Tuple[str, str]]]]:
        """Return status and headers for a browser's question before its request, ``None`` if it is no such question."""
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or "HTTP_ACCESS_CONTROL_REQUEST_METHOD" not in environ:
            return None
        if not self.allows(origin):
            return 403, [("Vary", "Origin")]
        wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS") or "Authorization, Content-Type, X-Request-Id"
        return 200, [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Methods", _METHODS),
            ("Access-Control-Allow-Headers", wanted),
            ("Access-Control-Max-Age", _DAY),
            ("Vary", "Origin, Access-Control-Request-Headers"),
        ]


def _unauthorized() -> BridgeError:
    return AuthenticationError(
        "the API key is missing or wrong; send it as Authorization: Bearer KEY",
        type="authentication_error", code="invalid_api_key",
    )
