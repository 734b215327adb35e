"""The servers of one provider: which of them has what, which of them are there, and the one that a request goes to.

A server that cannot be reached cools off: requests avoid it as long as another may answer. When its time is up it is
probed: by one request where a failure costs that nothing, else by being asked for its models beside the requests.
Keys with the same URL share the server, and so all that is known of it.
"""

import logging
import os
import random as _random
import threading
import time
import weakref
from collections import Counter
from typing import AbstractSet, Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from ..config.redaction import one_line
from ..config.settings import Key
from ..errors import BadRequestError, ConfigError, NotFoundError
from .keys import Rule, listed, offer, resolve_alias, share

__all__ = ["FIRST_COOL_OFF", "LONGEST_COOL_OFF", "Fleet", "Server"]

FIRST_COOL_OFF = 1.0  # seconds; doubled by every probe that fails
LONGEST_COOL_OFF = 30.0
_KNOWN = 1000  # models whose keys are kept
_PREFIX = "vllm/"  # what OpenAI's clients of several providers write before a model's name

_log = logging.getLogger("vllm_bridge.fleet")
_fleets: "weakref.WeakSet[Fleet]" = weakref.WeakSet()


def _forked() -> None:
    """Give the fleets of a forked child locks of their own: the parent's thread that held one is not there."""
    for fleet in list(_fleets):
        fleet.forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class _Down:
    """A server that is away: how long it cools off, until when, and who probes it."""

    __slots__ = ("seconds", "until", "probed_until", "ask")

    def __init__(self, seconds: float, until: float, ask: bool = False) -> None:
        self.seconds = seconds
        self.until = until
        self.probed_until: Optional[float] = None
        self.ask = ask  # a request that went there might be lost, or wait for long

    def free_at(self) -> float:
        """Return the time from which a probe may go out."""
        return self.until if self.probed_until is None else self.probed_until


class Server:
    """What is known of one server; `models` is ``None`` until it has named them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.models: Optional[Dict[str, Dict[str, Any]]] = None
        self.refused: Set[str] = set()  # models that it said it does not have, whatever the settings say
        self.asked = False
        self.silent = False  # it could not be asked, for it gave no answer at all
        self.sleeping = False
        self.sleeps: Optional[bool] = None  # whether it has the routes of vLLM's sleep mode
        self.reason = ""  # why it is away

    def __repr__(self) -> str:
        return "Server(%s)" % self.url


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
        self.clock = clock
        self._random = random
        self._lock = threading.Lock()
        self.asking = threading.Lock()  # held by the one who asks for models while others wait for the answer
        self.asked_at: Optional[float] = None
        self.down: Dict[Optional[str], _Down] = {}
        self.servers: Dict[Optional[str], Server] = {}
        self.changes: "Counter[Tuple[str, str]]" = Counter()  # (server, what happened): they only grow
        self.to_ask: Set[Server] = set()  # servers to be asked for their models beside the requests
        self.known: Dict[Optional[str], List[Key]] = {}  # the keys for a model, once they have been found
        self.bare: Dict[str, str] = {}  # models that are asked for as vllm/..., and have no such name
        self.set_keys(keys)
        _fleets.add(self)

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Put others in the place of the keys; servers that stay keep what is known of them."""
        found: Tuple[Key, ...] = tuple(keys)
        if not found:
            raise ConfigError("keys: expected at least one key")
        with self._lock:
            self.keys = found
            self.servers = {key.url: self.servers.get(key.url) or Server(str(key.url)) for key in found}
            self.down = {url: down for url, down in self.down.items() if url in self.servers}
            self._rules = [Rule(key) for key in found]
            self.several = len({key.url for key in found if key.enabled}) > 1
            self._forget()

    def forked(self) -> None:
        """Begin anew in a child process: threads are the parent's."""
        self._lock = threading.Lock()
        self.asking = threading.Lock()
        self.to_ask = set()

    # ------------------------------------------------------------ which key

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
        ``BadRequestError`` where no key supports the model, ``NotFoundError`` where no server has it.
        """
        if model is not None and not isinstance(model, str):
            raise BadRequestError("model: expected a string, got %s" % type(model).__name__, param="model")
        pinned, known = key_id or key_name, self.known
        candidates = None if pinned else known.get(model)
        if candidates is None:
            rules = self._allowed(model, key_id, key_name)
            candidates = [rule.key for rule in rules]
            if not pinned:
                candidates = self._having(model, rules)
                if len(known) < _KNOWN:
                    known[model] = candidates
        if exclude:
            candidates = [key for key in candidates if key not in exclude] or candidates
        if not self.down:  # a dict's truth is read at once; all servers well is the common case
            return candidates[0] if len(candidates) == 1 else self._weighted(candidates)
        with self._lock:
            return self._avoiding(candidates)

    def other_left(self, model: Optional[str], exclude: AbstractSet[Key]) -> bool:
        """Tell whether a key for `model` is left that is not in `exclude`."""
        rules = [rule for rule in self._rules if rule.key.enabled and rule.allows(model)]
        try:
            keys = self.known.get(model) or (self._having(model, rules) if rules else ())
        except NotFoundError:
            return False
        return any(key not in exclude for key in keys)

    def name_at(self, key: Key, model: str) -> Optional[str]:
        """Return the model's name at the key's server where it is another one there."""
        name = resolve_alias(key, self.bare.get(model, model))
        return None if name == model else name

    @staticmethod
    def allows(key: Key, model: str) -> bool:
        """Tell whether the key is for a model, or for the alias of one."""
        return Rule(key).allows(model)

    def _allowed(self, model: Optional[str], key_id: Optional[str], key_name: Optional[str]) -> List[Rule]:
        rules = [rule for rule in self._rules if rule.key.enabled]
        if key_id:
            rules = [rule for rule in rules if rule.key.id == key_id]
        elif key_name:
            rules = [rule for rule in rules if rule.key.name == key_name]
        if not rules:
            pinned = key_id or key_name
            raise BadRequestError(
                "no keys found: " + ("none that is enabled is called %r" % pinned if pinned else "all are disabled"),
                param="key",
                code="no_keys_found",
            )
        found = [rule for rule in rules if rule.allows(model)]
        if not found and model is not None and model.startswith(_PREFIX):
            bare = model[len(_PREFIX):]
            found = [rule for rule in rules if rule.allows(bare)]
            if found:
                self.bare[model] = bare
        if not found:
            raise BadRequestError(
                "no keys found that support model: %s (%s)" % (model, offer(rules)),
                param="model",
                code="no_keys_found",
            )
        return found

    # ------------------------------------------------------------ who has what

    def unasked(self, model: Optional[str]) -> bool:
        """Tell whether servers that may have a model have never been asked for theirs, and it matters."""
        if not self.several or model is None or model in self.known:
            return False
        rules = [rule for rule in self._rules if rule.key.enabled and rule.allows(model)]
        if len({rule.key.url for rule in rules}) < 2 and all(rule.names(model) for rule in rules):
            return False
        return any(not self.servers[rule.key.url].asked for rule in rules)

    def has(self, model: Optional[str]) -> bool:
        """Tell whether there is a server for a model, as far as is known."""
        if not self.several or model is None or model in self.known or not isinstance(model, str):
            return True
        rules = [rule for rule in self._rules if rule.key.enabled and rule.allows(model)]
        try:
            return not rules or bool(self._having(model, rules))
        except NotFoundError:
            return False

    def told(self, server: Server, models: Dict[str, Dict[str, Any]]) -> None:
        """Note which models a server has, by their ids."""
        with self._lock:
            before = server.models
            server.models, server.asked, server.silent = models, True, False
            server.refused = set()
            if before is None or before.keys() != models.keys():
                self._forget()
        gained = models.keys() - (before or {}).keys()
        lost = (before or {}).keys() - models.keys()
        if gained:
            self._changed(server, "gained", "it has now: %s" % listed(gained))
        if lost:
            self._changed(server, "lost", "it has no longer: %s" % listed(lost))

    def untold(self, server: Server, silent: bool) -> None:
        """Note that a server that was asked for its models has not named them; `silent`: it gave no answer at all."""
        with self._lock:
            server.asked, server.silent = True, silent
            if server.models is None:
                self._forget()

    def lacks(self, key: Key, model: str) -> None:
        """Note that the key's server has said that it does not have a model which it was believed to have."""
        server = self.servers.get(key.url)
        name = self.name_at(key, model) or model
        if server is None:
            return
        with self._lock:
            there = server.models is not None and server.models.pop(name, None) is not None
            server.refused.add(name)
            self._forget()
            self.to_ask.add(server)
        if there:
            self._changed(server, "lost", "it says that it has no model %.200s" % name)

    def renames(self, model: str, begin: bool) -> bool:
        """Ask for ``vllm/...`` without the prefix, or with it again; tell whether the name is another one now."""
        if begin and model.startswith(_PREFIX):
            self.bare[model] = model[len(_PREFIX):]
            return True
        self.bare.pop(model, None)
        return False

    def _forget(self) -> None:
        self.known = {}

    def _having(self, model: Optional[str], rules: List[Rule]) -> List[Key]:
        """Return the keys whose servers have a model, or may have it as far as is known."""
        if not self.several or model is None:
            return [rule.key for rule in rules]
        found = self._named(model, rules)
        if found:
            self.bare.pop(model, None)
        elif model.startswith(_PREFIX):
            bare = model[len(_PREFIX):]
            found = self._named(bare, [rule for rule in rules if rule.allows(bare)])
            if found and len(self.bare) < _KNOWN:
                self.bare[model] = bare
        if not found:
            found = self._perhaps(model, rules)
        if not found:
            raise self.nobody_has(model)
        return [rule.key for rule in found]

    def _named(self, model: str, rules: List[Rule]) -> List[Rule]:
        """Return the rules of servers that have named a model; those that the settings name count where nobody has."""
        having, named = [], []
        for rule in rules:
            server = self.servers[rule.key.url]
            real = resolve_alias(rule.key, model)
            if server.models is not None and real in server.models:
                having.append(rule)
            elif real not in server.refused and rule.names(model):
                named.append(rule)
        return having + [rule for rule in named if not having or self.servers[rule.key.url].models is None]

    def _perhaps(self, model: str, rules: List[Rule]) -> List[Rule]:
        """Return the rules of servers that have not said what they have: all of them if none has said anything."""
        untold = [
            rule for rule in rules
            if self.servers[rule.key.url].models is None and model not in self.servers[rule.key.url].refused
        ]
        if any(server.models is not None for server in self.servers.values()):
            untold = [rule for rule in untold if not self.servers[rule.key.url].silent]
        return untold

    def nobody_has(self, model: str) -> NotFoundError:
        """Return the error for a model that no server has; it lists those that there are."""
        names: Set[str] = set()
        for rule in self._rules:
            server = self.servers[rule.key.url]
            if rule.key.enabled:
                names.update(name for name in server.models or () if rule.allows(name))
                names.update(alias for alias, real in rule.key.aliases.items() if real in (server.models or ()))
        message = "The model `%.200s` does not exist; " % model
        message += "there are: %s" % listed(names) if names else "the servers have none"
        untold = [str(url) for url, server in self.servers.items() if server.models is None and server.asked]
        if untold:
            message += " (%s: not known, for there is no answer)" % listed(untold)
        return NotFoundError(message, type="NotFoundError", param="model", code="model_not_found")

    # ------------------------------------------------------------ who is there

    def failed(self, key: Key, reason: str = "it cannot be reached", ask: bool = False) -> None:
        """Let the key's server cool off; with `ask` no request is to find out whether it is back."""
        with self._lock:
            now = self.clock()
            down = self.down.get(key.url)
            if down is None:
                self.down[key.url] = _Down(FIRST_COOL_OFF, now + FIRST_COOL_OFF, ask)
                server = self.servers.get(key.url)
            elif now >= down.until:
                # Requests under way when the server died fail together; only a failure after the
                # cool-off tells something new.
                down.seconds = min(down.seconds * 2, LONGEST_COOL_OFF)
                down.until = now + down.seconds
                down.probed_until = None
                down.ask = ask
        if down is None and server is not None:
            server.reason = reason
            self._changed(server, "away", reason)

    def succeeded(self, key: Key) -> None:
        """Note that the key's server answered, with whatever status."""
        if self.down:
            with self._lock:
                down = self.down.pop(key.url, None)
                server = self.servers.get(key.url)
                if down is None or server is None:
                    return
                if self.several:
                    self.to_ask.add(server)  # it may have come back with another model
            self._changed(server, "back", "it answers again")

    def cooling(self) -> List[Tuple[Key, float]]:
        """Return the keys whose server has not answered again, with the seconds until it is probed."""
        if not self.down:
            return []
        with self._lock:
            now = self.clock()
            return [
                (key, max(0.0, self.down[key.url].until - now)) for key in self.keys if key.url in self.down
            ]

    def sleeps(self, server: Server, sleeping: bool) -> None:
        """Note whether a server sleeps (vLLM's sleep mode): it is not asked then, and is not dead."""
        if server.sleeping is not sleeping:
            server.sleeping = sleeping
            self._changed(server, "asleep" if sleeping else "awake", "it says so itself")

    def state(self, server: Server) -> str:
        """Return ``ready``, ``sleeping`` or ``away``."""
        return "away" if server.url in self.down else "sleeping" if server.sleeping else "ready"

    def _changed(self, server: Server, change: str, reason: str) -> None:
        self.changes[server.url, change] += 1
        level = logging.WARNING if change in ("away", "asleep") else logging.INFO
        _log.log(level, "%s: %s (%s)", server.url, change, one_line(reason))

    def _avoiding(self, candidates: Sequence[Key]) -> Key:
        now = self.clock()
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
        if down is None or now < down.free_at():
            return down is None
        if not down.ask:
            return True
        down.probed_until = now + down.seconds
        self.to_ask.add(self.servers[key.url])
        return False

    def _weighted(self, keys: Sequence[Key]) -> Key:
        if len(keys) == 1:
            return keys[0]
        weights = [share(key.weight) for key in keys]
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
