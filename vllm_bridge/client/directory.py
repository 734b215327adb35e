"""Who has what: the models that the servers have named, those that the settings name, and the keys for one of them."""

import logging
import threading
from collections import Counter
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from ..config.redaction import one_line
from ..config.settings import Key
from ..errors import BadRequestError, ConfigError, NotFoundError
from .keys import Rule, listed, offer, resolve_alias
from .routing import Load

__all__ = ["Directory", "Server"]

_KNOWN = 1000  # models whose keys are kept
_PREFIX = "vllm/"  # what OpenAI's clients of several providers write before a model's name

_log = logging.getLogger("vllm_bridge.fleet")


class Server(Load):
    """What is known of one server; `models` is ``None`` until it has named them. Times are of the fleet's clock."""

    def __init__(self, url: Optional[str]) -> None:
        super().__init__()
        self.url = url
        self.models: Optional[Dict[str, Dict[str, Any]]] = None
        self.refused: Set[str] = set()  # models that it said it does not have, whatever the settings say
        self.asked = False
        self.silent = False  # it could not be asked, for it gave no answer at all
        self.sleeping = False
        self.sleeps: Optional[bool] = None  # whether it has the routes of vLLM's sleep mode
        self.reason = ""  # why it is away
        self.heard = 0.0  # when it last gave a sign of life to a request, or had nothing to do before
        self.well_at = 0.0  # when it last answered one as it should
        self.back_at = 0.0  # when it was last back again
        self.ill_since = 0.0  # when the failures began
        self.asked_at = 0.0
        self.since: Optional[float] = None  # when it came, while it is new
        self.failures = 0  # in a row: answers that say that it is broken
        self.relapses = 0  # times in a row that it was away again before it had answered a request

    def __repr__(self) -> str:
        return "Server(%s)" % self.url


class Directory:
    """The keys of one provider and the models that their servers have; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may make a call too
        self.keys: Tuple[Key, ...] = ()
        self.servers: Dict[Optional[str], Server] = {}
        self.changes: "Counter[Tuple[str, str]]" = Counter()  # (server, what happened): they only grow
        self.to_ask: Set[Server] = set()  # servers to be asked for their models beside the requests
        self.known: Dict[Optional[str], List[Rule]] = {}  # the rules for a model, once they have been found
        self.bare: Dict[str, str] = {}  # models that are asked for as vllm/..., and have no such name
        self.several = False
        self._rules: List[Rule] = []

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Put others in the place of the keys; servers that stay keep what is known of them."""
        found: Tuple[Key, ...] = tuple(keys)
        if not found:
            raise ConfigError("keys: expected at least one key")
        with self._lock:
            before, self.keys = self.servers, found
            self.servers = {key.url: before.get(key.url) or self._joined(key.url, before) for key in found}
            self._rules = [Rule(key, self.servers[key.url]) for key in found]
            self.several = len({key.url for key in found if key.enabled}) > 1
            self.known = {}

    def _joined(self, url: Optional[str], before: Dict[Optional[str], Server]) -> Server:
        """Return the server of a URL that is new."""
        return Server(url)

    def known_for(self, model: Optional[str]) -> List[Rule]:
        """Return the rules for a model; raise ``BadRequestError`` or ``NotFoundError`` where there are none."""
        known = self.known
        found = known.get(model)
        if found is None:
            found = self._having(model, self._allowed(model, None, None))
            if len(known) < _KNOWN:
                known[model] = found
        return found

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

    def unasked(self, model: Optional[str]) -> bool:
        """Tell whether servers that may have a model have never been asked for theirs, and it matters."""
        if not self.several or model is None or model in self.known:
            return False
        rules = [rule for rule in self._rules if rule.key.enabled and rule.allows(model)]
        if len({rule.key.url for rule in rules}) < 2 and all(rule.names(model) for rule in rules):
            return False
        return any(not rule.server.asked for rule in rules)

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
                self.known = {}
        gained = models.keys() - (before or {}).keys()
        lost = (before or {}).keys() - models.keys()
        if gained and (before is not None or server.since is not None):  # the first answers are no change
            self._changed(server, "gained", "it has now: %s" % listed(gained))
        if lost:
            self._changed(server, "lost", "it has no longer: %s" % listed(lost))

    def untold(self, server: Server, silent: bool) -> None:
        """Note that a server that was asked for its models has not named them; `silent`: it gave no answer at all."""
        with self._lock:
            server.asked, server.silent = True, silent
            if server.models is None:
                self.known = {}

    def lacks(self, key: Key, model: str) -> None:
        """Note that the key's server has said that it does not have a model which it was believed to have."""
        server = self.servers.get(key.url)
        name = self.name_at(key, model) or model
        if server is None:
            return
        with self._lock:
            there = server.models is not None and server.models.pop(name, None) is not None
            server.refused.add(name)
            self.known = {}
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

    def _having(self, model: Optional[str], rules: List[Rule]) -> List[Rule]:
        """Return the rules of servers that have a model, or may have it as far as is known."""
        if not self.several or model is None:
            return rules
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
        return found

    def _named(self, model: str, rules: List[Rule]) -> List[Rule]:
        """Return the rules of servers that have named a model; those that the settings name count where nobody has."""
        having, named = [], []
        for rule in rules:
            server = rule.server
            real = resolve_alias(rule.key, model)
            if server.models is not None and real in server.models:
                having.append(rule)
            elif real not in server.refused and rule.names(model):
                named.append(rule)
        return having + [rule for rule in named if not having or rule.server.models is None]

    def _perhaps(self, model: str, rules: List[Rule]) -> List[Rule]:
        """Return the rules of servers that have not said what they have: all of them if none has said anything."""
        untold = [
            rule for rule in rules
            if rule.server.models is None and model not in rule.server.refused
        ]
        if any(server.models is not None for server in self.servers.values()):
            untold = [rule for rule in untold if not rule.server.silent]
        return untold

    def nobody_has(self, model: Optional[str]) -> NotFoundError:
        """Return the error for a model that no server has; it lists those that there are."""
        names: Set[str] = set()
        for rule in self._rules:
            server = rule.server
            if rule.key.enabled:
                names.update(name for name in server.models or () if rule.allows(name))
                names.update(alias for alias, real in rule.key.aliases.items() if real in (server.models or ()))
        message = "The model `%.200s` does not exist; " % model
        message += "there are: %s" % listed(names) if names else "the servers have none"
        untold = [str(url) for url, server in self.servers.items() if server.models is None and server.asked]
        if untold:
            message += " (%s: not known, for there is no answer)" % listed(untold)
        return NotFoundError(message, type="NotFoundError", param="model", code="model_not_found")

    def _changed(self, server: Server, change: str, reason: str) -> None:
        self.changes[str(server.url), change] += 1
        level = logging.WARNING if change in ("away", "asleep") else logging.INFO
        _log.log(level, "%s: %s (%s)", server.url, change, one_line(reason))
