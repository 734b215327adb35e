"""What the attempts of one call have shown: of the servers, for the calls that come, and whether there is another."""

from typing import FrozenSet, List, Optional, Tuple

from ..config.redaction import one_line
from ..config.settings import Key, NetworkConfig
from ..errors import BridgeError
from .fleet import Fleet
from .log import LOG
from .options import Options
from .retry import RetryPolicy, hung_up, leaving, never_sent, no_such_model, silent, still_working
from .routing import Prompt

__all__ = ["Attempts"]


class Attempts:
    """What the attempts of one call have shown so far, and so what comes next."""

    def __init__(self, network: NetworkConfig, fleet: Fleet, model: Optional[str], options: Options) -> None:
        self.tried: FrozenSet[Key] = frozenset()  # in this round
        self._fleet = fleet
        self._model = model
        self._direct = options.direct
        self._pinned = bool(options.key_id or options.key_name)
        self._policy = RetryPolicy(options.max_retries, network.retry_backoff_initial_ms, network.retry_backoff_max_ms)
        self._retries = 0
        self._working: FrozenSet[Key] = frozenset()  # at servers that said 504: they are never asked again
        self._answer: Optional[BridgeError] = None  # the last one with a status
        self._broken: List[Tuple[Key, str]] = []  # those that have failed, and how
        self._missing: Optional[BridgeError] = None  # the first one that says that there is no such model

    def failed(self, key: Key, error: BridgeError, prompt: Optional[Prompt] = None) -> Optional[float]:
        """Return the seconds to wait before the next attempt, ``None`` if there is to be none."""
        fleet, model = self._fleet, self._model
        if model is not None and no_such_model(error):
            return self._without(key, model, error)
        self.tried |= {key}
        since = None if prompt is None else prompt.started
        same = frozenset(other for other in fleet.keys if other.url == key.url)
        if never_sent(error):
            fleet.failed(key, error.message, since=since)
            self.tried |= same  # no other way to go
        elif error.status_code is not None:
            self._answer = error
            if error.status_code < 500:
                fleet.succeeded(key)
            elif leaving(error) and fleet.several:
                fleet.failed(key, error.message, broken=True, since=since)
            else:
                fleet.succeeded(key, worked=False)
                self._broken.append((key, "it answers %d: %s" % (error.status_code, error.message)))
            if still_working(error):
                self._working |= same
        elif silent(error):
            fleet.broke(key, model, error.message, since)
        elif hung_up(error) and fleet.several:
            fleet.failed(key, error.message, since=since)
        other = not self._pinned and fleet.other_left(model, self.tried | self._working)
        if other and fleet.several and never_sent(error):
            self.tried |= self._working
            return 0.0  # nobody has taken it, so this was no attempt
        # Beside a server that is down the one that answered says how long to wait.
        shown = error if other else self.failure(error)
        wait = shown.retry_after
        elsewhere = other or (still_working(error) and not self._pinned and fleet.other_left(model, self._working))
        if not self._policy.should_retry(shown, attempt=self._retries, other_key_left=elsewhere, retry_after=wait):
            return None
        pause = self._policy.delay(self._retries, wait, other_key_left=other)
        self._retries += 1
        LOG.info("tried again in %.2f s, %s: %s", pause, "elsewhere" if other else "there", one_line(error.message))
        self.tried = (self.tried if other else frozenset()) | self._working
        return pause

    def ended(self, well: bool) -> None:
        """Note that no attempt follows: a request that has failed at several servers says nothing of any of them."""
        if well or len({key.url for key, _ in self._broken}) == 1:
            for key, reason in self._broken:
                self._fleet.broke(key, self._model, reason)

    def _without(self, key: Key, model: str, error: BridgeError) -> Optional[float]:
        """Go on at once where another server may have a model that this one does not have, or has without ``vllm/``."""
        fleet, again = self._fleet, self._missing is not None
        if self._missing is None:
            self._missing = error
        if self._pinned or not fleet.several:
            # A gateway has taken off what it takes off.
            return 0.0 if not self._direct and fleet.renames(model, not again) else None
        fleet.succeeded(key)
        fleet.lacks(key, model)
        again = key in self.tried
        self.tried |= {key}
        # Where nobody is left the servers are asked once more, and the error lists what there is.
        return None if again or (fleet.has(model) and not fleet.other_left(model, self.tried)) else 0.0

    def failure(self, error: BridgeError) -> BridgeError:
        """Return the error to raise: of a server that is down and one that is busy the busy one's."""
        if self._missing is not None and no_such_model(error):
            return self._missing
        return self._answer if self._answer is not None and never_sent(error) else error
