"""Choosing a key, and so a server: allowed models, weights, cooling off.

A server that cannot be reached cools off: requests avoid it as long as another may answer. When its
time is up one request is let through as a probe, and the rest follow once that has been answered.
Keys with the same URL share the server, and so its cooling off.
"""

import os
import random as _random
import threading
import time
import weakref
from typing import AbstractSet, Callable, Dict, FrozenSet, Iterable, List, Optional, Sequence, Set, Tuple

from ..config.settings import Key
from ..errors import BadRequestError, ConfigError

__all__ = ["FIRST_COOL_OFF", "LONGEST_COOL_OFF", "Fleet"]

FIRST_COOL_OFF = 1.0  # seconds; doubled by every probe that fails
LONGEST_COOL_OFF = 30.0
_NAMES_SHOWN = 10  # models that a message lists
_KNOWN = 1000  # models whose keys are kept

_fleets: "weakref.WeakSet[Fleet]" = weakref.WeakSet()


def _unlocked() -> None:
    """Give the fleets of a forked child locks of their own: the parent's thread that held one is not there."""
    for fleet in _fleets:
        fleet._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlocked)


class _Down:
    """A server that could not be reached: how long it cools off, until when, and who probes it."""

    __slots__ = ("seconds", "until", "probed_until")

    def __init__(self, seconds: float, until: float) -> None:
        self.seconds = seconds
        self.until = until
        self.probed_until: Optional[float] = None

    def free_at(self) -> float:
        """Return the time from which a probe may go out."""
        return self.until if self.probed_until is None else self.probed_until


class Fleet:
    """The keys of one provider; every method may be called from any thread.

    `clock` gives seconds that only grow; `random` gives numbers from 0 up to 1.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.keys: Tuple[Key, ...] = tuple(keys)
        if not self.keys:
            raise ConfigError("keys: expected at least one key")
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        _fleets.add(self)
        self.down: Dict[Optional[str], _Down] = {}
        self._rules = [(key, _Rule(key)) for key in self.keys]
        self._known: Dict[Optional[str], List[Key]] = {}  # the keys for a model, once they have been found

    def select(
        self,
        model: Optional[str],
        exclude: AbstractSet[Key] = frozenset(),
        key_id: Optional[str] = None,
        key_name: Optional[str] = None,
    ) -> Key:
        """Return a key for `model`, by weight; ``None`` stands for a call that names no model.

        Keys in `exclude` (already tried) and cooling servers are used only if nothing else is left,
        of the cooling ones that which is free first. `key_id`, else `key_name`, pins a key. Raise
        ``BadRequestError`` where no key supports the model.
        """
        if model is not None and not isinstance(model, str):
            raise BadRequestError("model: expected a string, got %s" % type(model).__name__, param="model")
        pinned = key_id or key_name
        candidates = None if pinned else self._known.get(model)
        if candidates is None:
            candidates = self._candidates(model, key_id, key_name)
            if not pinned and len(self._known) < _KNOWN:
                self._known[model] = candidates
        if exclude:
            candidates = [key for key in candidates if key not in exclude] or candidates
        if not self.down:  # a dict's truth is read at once; all servers well is the common case
            return candidates[0] if len(candidates) == 1 else self._weighted(candidates)
        with self._lock:
            return self._avoiding(candidates)

    def other_left(self, model: Optional[str], exclude: AbstractSet[Key]) -> bool:
        """Tell whether a key for `model` is left that is not in `exclude`."""
        return any(key not in exclude for key, rule in self._rules if key.enabled and rule.allows(model))

    def failed(self, key: Key) -> None:
        """Let the key's server cool off, because it could not be reached."""
        with self._lock:
            now = self._clock()
            down = self.down.get(key.url)
            if down is None:
                self.down[key.url] = _Down(FIRST_COOL_OFF, now + FIRST_COOL_OFF)
            elif now >= down.until:
                # Requests under way when the server died fail together; only a failure after the
                # cool-off tells something new.
                down.seconds = min(down.seconds * 2, LONGEST_COOL_OFF)
                down.until = now + down.seconds
                down.probed_until = None

    def succeeded(self, key: Key) -> None:
        """Note that the key's server answered, with whatever status."""
        if self.down:
            with self._lock:
                self.down.pop(key.url, None)

    def cooling(self) -> List[Tuple[Key, float]]:
        """Return the keys whose server has not answered again, with the seconds until it is probed."""
        if not self.down:
            return []
        with self._lock:
            now = self._clock()
            return [
                (key, max(0.0, self.down[key.url].until - now)) for key in self.keys if key.url in self.down
            ]

    @staticmethod
    def resolve_alias(key: Key, model: str) -> str:
        """Return the model's real name at the key's server."""
        if not key.aliases:
            return model
        real = key.aliases.get(model)
        if real is None:
            folded = model.lower()
            real = next((name for alias, name in key.aliases.items() if alias.lower() == folded), model)
        return real

    @staticmethod
    def allows(key: Key, model: str) -> bool:
        """Tell whether the key is for a model, or for the alias of one."""
        return _Rule(key).allows(model)

    def _candidates(self, model: Optional[str], key_id: Optional[str], key_name: Optional[str]) -> List[Key]:
        rules = [(key, rule) for key, rule in self._rules if key.enabled]
        if key_id:
            rules = [(key, rule) for key, rule in rules if key.id == key_id]
        elif key_name:
            rules = [(key, rule) for key, rule in rules if key.name == key_name]
        if not rules:
            pinned = key_id or key_name
            raise BadRequestError(
                "no keys found: " + ("none that is enabled is called %r" % pinned if pinned else "all are disabled"),
                param="key",
                code="no_keys_found",
            )
        found = [key for key, rule in rules if rule.allows(model)]
        if not found:
            raise BadRequestError(
                "no keys found that support model: %s (%s)" % (model, _offer([rule for _, rule in rules])),
                param="model",
                code="no_keys_found",
            )
        return found

    def _avoiding(self, candidates: Sequence[Key]) -> Key:
        now = self._clock()
        ready = [key for key in candidates if self._ready(key, now)]
        if ready:
            key = self._weighted(ready)
            down = self.down.get(key.url)
            if down is not None:
                # The probe's answer may never be told (its caller was cancelled); then another goes.
                down.probed_until = now + down.seconds
            return key
        first = min(self.down[key.url].free_at() for key in candidates)
        return self._weighted([key for key in candidates if self.down[key.url].free_at() == first])

    def _ready(self, key: Key, now: float) -> bool:
        down = self.down.get(key.url)
        return down is None or now >= down.free_at()

    def _weighted(self, keys: Sequence[Key]) -> Key:
        if len(keys) == 1:
            return keys[0]
        weights = [_share(key.weight) for key in keys]
        total = sum(weights)
        if total == 0:
            weights, total = [1] * len(keys), len(keys)
        mark = self._random() * total
        for key, weight in zip(keys, weights):
            mark -= weight
            if mark < 0:
                return key
        # A random() that gives 1.0 ends here.
        return next(key for key, weight in zip(reversed(keys), reversed(weights)) if weight)


class _Rule:
    """Which models a key serves, its names folded once."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.all = "*" in key.models
        self.named: FrozenSet[str] = _folded(key.models) | _folded(key.aliases)
        self.barred: FrozenSet[str] = _folded(key.blacklisted_models)

    def allows(self, model: Optional[str]) -> bool:
        if model is None:
            return True
        real = Fleet.resolve_alias(self.key, model)
        if self.key.model_name is not None and self.key.model_name not in (model, real):
            return False
        if self.barred and not self.barred.isdisjoint((model.lower(), real.lower(), "*")):
            return False
        return self.all or model.lower() in self.named

    def offer(self) -> Set[str]:
        if self.key.model_name is not None:
            return {self.key.model_name}
        return set(self.key.models) | set(self.key.aliases)


def _folded(names: Iterable[str]) -> FrozenSet[str]:
    return frozenset(name.lower() for name in names)


def _share(weight: float) -> int:
    """Return the weight in hundredths ; a weight above 0 keeps at least one."""
    return max(1, round(weight * 100)) if weight else 0


def _offer(rules: Sequence[_Rule]) -> str:
    allowed: Set[str] = set()
    for rule in rules:
        allowed |= rule.offer()
    if not allowed:
        return "the keys allow none"
    shown = sorted(allowed)
    more = ", and %d more" % (len(shown) - _NAMES_SHOWN) if len(shown) > _NAMES_SHOWN else ""
    barred = sorted(set().union(*(rule.key.blacklisted_models for rule in rules)))
    text = "the keys allow: %s%s" % (", ".join(shown[:_NAMES_SHOWN]), more)
    return text + ("; blacklisted: %s" % ", ".join(barred[:_NAMES_SHOWN]) if barred else "")
