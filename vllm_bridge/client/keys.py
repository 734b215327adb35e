"""What a key is for: allowed models, other names for them, its share of the requests."""

import re
from functools import lru_cache
from typing import Any, Callable, Dict, FrozenSet, Iterable, Mapping, Optional, Sequence, Set
from urllib.parse import urlsplit

from ..config.settings import Key
from ..version import USER_AGENT
from .options import joined

__all__ = ["Rule", "headers_for", "offer", "resolve_alias", "server_names"]

_NAMES_SHOWN = 10  # models that a message lists


class Rule:
    """Which models a key serves, its names folded once; and how often it was chosen, by its weight."""

    def __init__(self, key: Key, server: Any = None) -> None:
        self.key = key
        self.server = server
        self.ease = 1.0 / max(key.weight, 1e-6) if key.weight else 1.0  # how little a request is, for its weight
        self.sent = 0.0
        self.all = "*" in key.models
        self.named: FrozenSet[str] = _folded(key.models) | _folded(key.aliases)
        self.barred: FrozenSet[str] = _folded(key.blacklisted_models)

    def allows(self, model: Optional[str]) -> bool:
        """Tell whether the key is for a model, or for the alias of one; ``None`` is whatever the server has."""
        if model is None:
            return True
        real = resolve_alias(self.key, model)
        if self.key.model_name is not None and self.key.model_name not in (model, real):
            return False
        if self.barred and not self.barred.isdisjoint((model.lower(), real.lower(), "*")):
            return False
        return self.all or real != model or model.lower() in self.named

    def names(self, model: str) -> bool:
        """Tell whether the settings name a model that the key allows, so that its server need not be asked for it."""
        named = model.lower() in self.named or resolve_alias(self.key, model) != model
        return self.key.model_name is not None or named

    def offer(self) -> Set[str]:
        """Return the names that the settings have."""
        if self.key.model_name is not None:
            return {self.key.model_name}
        return set(self.key.models) | set(self.key.aliases)


def resolve_alias(key: Key, model: str) -> str:
    """Return the model's real name at the key's server; an alias such as ``claude-*`` is for all names like it."""
    if not key.aliases:
        return model
    real = key.aliases.get(model)
    if real is None:
        folded = model.lower()
        real = next((name for alias, name in key.aliases.items() if alias.lower() == folded), None)
    if real is None:
        real = next((name for alias, name in key.aliases.items() if "*" in alias and _like(alias)(model)), model)
    return real


@lru_cache(maxsize=1000)
def _like(alias: str) -> Callable[[str], Any]:
    return re.compile(re.escape(alias).replace(r"\*", ".*"), re.IGNORECASE | re.DOTALL).fullmatch


def offer(rules: Sequence[Rule]) -> str:
    """Say which models the keys allow."""
    allowed: Set[str] = set()
    for rule in rules:
        allowed |= rule.offer()
    if not allowed:
        return "the keys allow none"
    barred: Set[str] = set().union(*(rule.key.blacklisted_models for rule in rules))
    text = "the keys allow: %s" % listed(allowed)
    return text + ("; blacklisted: %s" % ", ".join(sorted(barred)[:_NAMES_SHOWN]) if barred else "")


def listed(names: Iterable[str]) -> str:
    """Return names in order, as many as a message can bear."""
    shown = sorted(names)
    more = ", and %d more" % (len(shown) - _NAMES_SHOWN) if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more


def _folded(names: Iterable[str]) -> FrozenSet[str]:
    return frozenset(name.lower() for name in names)


def headers_for(key: Key, extra: Mapping[str, str]) -> Dict[str, str]:
    """Return the headers of every request with a key; it has its say over the `extra` ones."""
    # Accept-Encoding: vLLM never compresses, and a proxy that does would hold a stream's events back.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    if key.value:
        headers["Authorization"] = "Bearer %s" % key.value
    named: Dict[str, str] = {}
    if key.server_name is not None:
        port = urlsplit(str(key.url)).port
        usual = port is None or port == (443 if str(key.url).startswith("https:") else 80)
        named["Host"] = key.server_name if usual else "%s:%d" % (key.server_name, port or 0)
    return joined(named, extra, headers)


def server_names(keys: Iterable[Key]) -> Dict[str, str]:
    """Return the names of hosts, by the ``host:port`` of the URLs that have their addresses."""
    return {urlsplit(str(key.url)).netloc: key.server_name for key in keys if key.server_name is not None}
