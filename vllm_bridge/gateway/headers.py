"""Which header fields pass the gateway: up with a client's request, and down with a server's reply.

The operator says what a client's request carries to the servers: what ``extra_headers`` sets no client replaces.
"""

import re
from typing import Dict, Iterable, List, Set, Tuple

from ..config.redaction import is_credential
from ..errors import BadRequestError
from ..http1.head import FIELD_VALUE, HOP_BY_HOP, TOKEN
from .patterns import Patterns

__all__ = ["Headers", "OURS_DOWN", "OURS_UP"]

Fields = List[Tuple[str, str]]

_EXTRA = "x-bf-eh-"  # Bifrost's way to name a header that is to go up
_REMEMBERED = 1000  # names
_SHORT = 100  # characters of a name that is remembered
_JSON = "application/json"
_VALUE = re.compile(FIELD_VALUE)
_FIELD = re.compile("%s\0%s" % (TOKEN, FIELD_VALUE))

# Tracing (W3C's trace context and baggage, B3, and the vendors' own), what vLLM 0.32 reads, and Anthropic's API.
_UP = Patterns((
    "traceparent tracestate baggage b3 x-b3-* uber-trace-id x-cloud-trace-context x-amzn-trace-id x-datadog-* "
    "x-session-id x-vllm-* x-data-parallel-rank endpoint-load-metrics-format anthropic-*"
).split())
# What the gateway's own connection and key are made of: nobody else's, not even where it is allowed.
OURS_UP = Patterns([*HOP_BY_HOP, *(
    "accept accept-encoding api-key authorization content-* expect host http2-settings proxy-* x-api-key x-bf-* "
    "x-request-id"
).split()])
# What a proxy on the way believes of whoever sends it: who a request is from, which page it is for, how it is meant.
_IDENTITY = Patterns((
    "forwarded x-forwarded-* x-real-ip true-client-ip x-client-ip cf-* x-original-* x-rewrite-* x-envoy-* "
    "x-http-method* x-method-override via origin referer sec-* if-* range"
).split())

# Rate limits (OpenAI's and the IETF's names) and what vLLM and OpenAI tell of an answer.
_DOWN = (
    "x-ratelimit-* ratelimit ratelimit-* retry-after retry-after-ms openai-* x-vllm-* endpoint-load-metrics metadata"
).split()
# What belongs to the gateway's own connection and answer.
OURS_DOWN = Patterns([*HOP_BY_HOP, *(
    "access-control-* content-* date server vary www-authenticate x-content-type-options x-frame-options x-request-id"
).split()])


class Headers:
    """Choose header fields; `allowed` and `passed` are the operator's names for more of them, up and down.

    `set_by_operator` are the names that ``extra_headers`` has.
    """

    def __init__(
        self, set_by_operator: Iterable[str] = (), allowed: Iterable[str] = (), passed: Iterable[str] = ()
    ) -> None:
        self._operators = frozenset(name.lower() for name in set_by_operator)
        self._allowed = Patterns(allowed)
        self._passed = Patterns([*_DOWN, *passed])
        self._staying: Set[str] = set()  # names of requests that are known to stay
        self._going_down: Dict[str, bool] = {}

    def up(self, fields: Dict[str, str], headers: Dict[str, str]) -> None:
        """Add to `headers` what of a client's fields goes up with its request; one that is there twice is its fault."""
        staying = self._staying
        for name, value in fields.items():
            if name in staying:
                continue
            asked = name.startswith(_EXTRA)
            plain = name[len(_EXTRA):] if asked else name
            if self._goes_up(plain, value, asked) and _FIELD.fullmatch("%s\0%s" % (plain, value)):
                if plain in headers:
                    raise BadRequestError("the header %s is there twice, once as %s%s" % (plain, _EXTRA, plain),
                                          type="invalid_request_error")
                headers[plain] = value
            elif not asked and len(staying) < _REMEMBERED and len(name) < _SHORT and not is_credential("", value):
                staying.add(name)

    def _goes_up(self, name: str, value: str, asked: bool) -> bool:
        """Tell whether a field goes up; `asked` where the client has named it as one that is to."""
        # Some servers take "_" for "-", and so one name for another.
        if name in self._operators or OURS_UP.match(name) or "_" in name:
            return False
        if self._allowed.match(name):
            return True
        if is_credential("", value):
            return False
        return _UP.match(name) or (asked and not is_credential(name) and not _IDENTITY.match(name))

    def down(self, fields: Iterable[Tuple[str, str]]) -> Fields:
        """Return those fields of a server's reply that its client gets to see, the content type first."""
        kind = _JSON
        found: Fields = []
        known = self._going_down
        for name, value in fields:
            goes = known.get(name)
            if goes is None:
                goes = self._passed.match(name) and not OURS_DOWN.match(name)
                if len(known) < _REMEMBERED and len(name) < _SHORT:
                    known[name] = goes
            if goes and _VALUE.fullmatch(value):
                found.append((name, value))
            elif name.lower() == "content-type" and value and _VALUE.fullmatch(value):
                kind = value
        return [("Content-Type", kind), *found]
