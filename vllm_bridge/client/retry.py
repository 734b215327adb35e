"""What may be tried again, and how long to wait first."""

import logging
import random as _random
import re
from typing import Callable, Optional

from ..errors import APIConnectionError, APIStatusError, APITimeoutError, BridgeError, NotFoundError

__all__ = [
    "CONNECTION_NOT_MADE", "LONGEST_WAIT", "TLS_ERROR", "RetryPolicy", "hung_up", "leaving", "never_sent",
    "no_such_model", "parse_retry_after", "silent", "still_working",
]

# The ``code`` of an APIConnectionError raised before any byte was sent: refused, unresolved, a connect timeout; and a
# TLS handshake that failed. Only these prove that the server never saw the request.
CONNECTION_NOT_MADE = "connection_not_made"
TLS_ERROR = "tls_error"

LONGEST_WAIT = 60.0  # seconds; a server that asks for more gets its error handed on at once

_BUSY = frozenset((429, 502, 503))
# What vLLM 0.32 says while it ends ("cannot schedule new futures after shutdown"), and while it scales (503).
_LEAVING = re.compile("shutdown|shutting down|draining|currently scaling|EngineCore encountered an issue", re.I)
_ELSEWHERE = frozenset((500, 504))  # another server may do better
_log = logging.getLogger("vllm_bridge")


def never_sent(error: BridgeError) -> bool:
    """Tell whether a call failed before its server could see it."""
    return isinstance(error, APIConnectionError) and error.code in (CONNECTION_NOT_MADE, TLS_ERROR)


def still_working(error: BridgeError) -> bool:
    """Tell whether a proxy, or a gateway of ours, has given up waiting for a server that may be generating still."""
    return isinstance(error, APIStatusError) and error.status_code == 504


def silent(error: BridgeError) -> bool:
    """Tell whether a server took a request and gave no answer in the time that it had."""
    return isinstance(error, APITimeoutError) and error.code is None


def hung_up(error: BridgeError) -> bool:
    """Tell whether a server took a request and hung up without an answer."""
    return isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError) and error.code is None


def leaving(error: BridgeError) -> bool:
    """Tell whether a server says that it is about to end (kill_sigterm_drain_probe_...), or that its engine has."""
    return error.status_code in (500, 503) and _LEAVING.search(error.message) is not None


def no_such_model(error: BridgeError) -> bool:
    """Tell whether a server says that it lacks the model (err_unknown_model); a missing route is another 404."""
    return isinstance(error, NotFoundError) and (
        error.code == "model_not_found" or ("model" in error.message and "does not exist" in error.message))


class RetryPolicy:
    """Decide after each failure whether and when the request goes out again.

    `random` gives numbers from 0 up to 1.
    """

    def __init__(
        self,
        max_retries: int = 2,
        initial_ms: float = 500,
        max_ms: float = 5000,
        *,
        random: Callable[[], float] = _random.random,
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        self.max_retries = max_retries
        self.initial_ms = initial_ms
        self.max_ms = max_ms
        self.longest_wait = longest_wait
        self._random = random

    def should_retry(
        self,
        error: BridgeError,
        *,
        attempt: int,
        other_key_left: bool = False,
        retry_after: Optional[float] = None,
    ) -> bool:
        """Tell whether a request that failed with `error` may go out again.

        `attempt` counts the tries that came before this one: 0 after the first. `other_key_left`
        says that the next try would use another key. `retry_after` is what the server asked for, in
        seconds. The caller does not ask once a byte of a stream has been handed on.
        """
        if attempt >= self.max_retries:
            return False
        if isinstance(error, APIConnectionError):
            # A server that went silent, or hung up later, may be generating still. A handshake fails again.
            return never_sent(error) and (other_key_left or error.code != TLS_ERROR)
        if not isinstance(error, APIStatusError):
            return False
        if error.status_code in _ELSEWHERE:
            return other_key_left
        if error.status_code not in _BUSY:
            return False
        if retry_after is not None and retry_after > self.longest_wait and not other_key_left:
            _log.info(
                "not retried: the server answered %s and asks to wait %.0f s, more than %.0f s",
                error.status_code, retry_after, self.longest_wait,
            )
            return False
        return True

    def delay(
        self, retry_number: int, retry_after: Optional[float] = None, *, other_key_left: bool = False
    ) -> float:
        """Return the seconds to wait before a retry; `retry_number` is 0 before the first.

        With another key to go to there is no wait: neither the failure nor ``Retry-After`` was that
        key's. Otherwise what the server asked for, else ``min(initial * 2**n, max)`` spread by a
        fifth to both sides and never above the maximum.
        """
        if other_key_left:
            return 0.0
        if retry_after is not None and retry_after > 0:
            return min(retry_after, self.longest_wait)
        # 2**64 ms is more than any maximum, and floats end at 2**1024.
        wait = min(self.initial_ms * 2.0 ** min(retry_number, 64), self.max_ms)
        return min(wait * (0.8 + 0.4 * self._random()), self.max_ms) / 1000.0


def parse_retry_after(
    value: Optional[str], now: float, milliseconds: Optional[str] = None
) -> Optional[float]:
    """Return the seconds that a server asks to wait, or ``None`` where it says nothing readable.

    `value` is its ``Retry-After`` (seconds or an HTTP date, RFC 9110 §10.2.3), `milliseconds` its
    ``retry-after-ms``, which wins as the finer one. `now` is the time in seconds since 1970.
    """
    wait = _plain_number(milliseconds)
    if wait is not None:
        return wait / 1000.0
    wait = _plain_number(value)
    if wait is not None or value is None:
        return wait
    return _until(value, now)


def _plain_number(value: Optional[str]) -> Optional[float]:
    # float() alone would take "nan", "1_0" and digits of other scripts.
    if value is None or not re.match(r"[0-9]{1,15}(\.[0-9]{1,15})?\Z", value.strip(" \t")):
        return None
    return float(value)


def _until(value: str, now: float) -> Optional[float]:
    from email.utils import mktime_tz, parsedate_tz  # only a date needs it

    try:
        parsed = parsedate_tz(value)
        if parsed is None:
            return None
        # An asctime date has no zone, and every HTTP date is GMT.
        return max(0.0, mktime_tz(parsed[:9] + (parsed[9] or 0,)) - now)
    except (ArithmeticError, IndexError, TypeError, ValueError):  # email.utils lets all of them out
        return None
