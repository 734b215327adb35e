"""The names under which a gateway without API keys is asked: a web page must not reach it under one of its own.

A page of ``attacker.example`` whose name then leads to this machine (DNS rebinding) is of one origin with the gateway
for its browser, which sends no ``Origin`` with a GET and lets the page read the answer.
"""

import re
from typing import Dict, Iterable, Set

from ..config.validate import is_address, is_this_machine
from ..errors import PermissionDeniedError
from .patterns import Patterns

__all__ = ["Hosts"]

_UNDOTTED = re.compile(r"[a-z0-9_-]{1,63}\Z", re.IGNORECASE)
_LONGEST = 300  # characters: a name has at most 253
_REMEMBERED = 100


class Hosts:
    """Judge requests by their ``Host``.

    Addresses pass, and names without a dot, which nobody can have in the public DNS; so do this machine's names and
    those that are allowed, with ``*`` in them or not.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = Patterns(allowed)
        self._passed: Set[str] = set()  # values of Host that have passed

    def check(self, fields: Dict[str, str]) -> None:
        """Raise `PermissionDeniedError` for a request under a foreign name; without a name it passes."""
        given = fields.get("host", "")
        if given in self._passed:
            return
        if given and not self._passes(given):
            raise PermissionDeniedError(
                "this gateway is not asked under the name %.100s; name it with --allowed-host, or set an API key" % (
                    ascii(given)),
                type="permission_error", code="host_not_allowed",
            )
        if len(self._passed) < _REMEMBERED:
            self._passed.add(given)

    def _passes(self, given: str) -> bool:
        if len(given) > _LONGEST:
            return False
        if given.startswith("["):
            host, _, rest = given[1:].partition("]")
        else:
            host, _, rest = given.partition(":")
            host = host[:-1] if host.endswith(".") else host
        if rest and not rest.lstrip(":").isdigit():
            return False  # under other servers it may be anything
        known = _UNDOTTED.match(host) is not None or is_address(host) or is_this_machine(host)
        return known or self._allowed.match(host)
