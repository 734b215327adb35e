"""API keys of the gateway's own clients."""

import hmac
from hashlib import sha256
from typing import Dict, Iterable

from ..errors import AuthenticationError

__all__ = ["Authentication"]


class Authentication:
    """Check API keys, in a time that tells nothing of them."""

    def __init__(self, api_keys: Iterable[str] = ()) -> None:
        self._digests = [sha256(key.encode("utf-8")).digest() for key in api_keys]
        self.required = bool(self._digests)

    def check(self, fields: Dict[str, str]) -> None:
        """Raise `AuthenticationError` for a request without one of the keys."""
        given = fields.get("authorization")
        if given is None:  # as Anthropic's and Azure's clients send it
            given = "Bearer " + (fields.get("x-api-key") or fields.get("api-key") or "")
        scheme, _, key = given.partition(" ")
        digest = sha256(key.strip(" \t").encode("latin-1", "replace")).digest()
        found = False
        for known in self._digests:  # all of them, whichever it is
            found |= hmac.compare_digest(known, digest)
        if not found or scheme.lower() != "bearer":
            raise AuthenticationError(
                "the API key is missing or wrong; send it as Authorization: Bearer KEY, or as x-api-key",
                type="authentication_error", code="invalid_api_key",
            )
