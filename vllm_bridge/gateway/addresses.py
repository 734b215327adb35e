"""Servers given by a name (``dns+http://vllm.default.svc:8000``): all of its addresses, asked for again and again."""

import logging
import os
import socket
import threading
from typing import Callable, Dict, Iterable, List, Optional, Tuple
from urllib.parse import urlsplit

from ..config.settings import Key
from ..config.validate import DNS

__all__ = ["Addresses"]

logger = logging.getLogger("vllm_bridge.fleet")

_EVERY = 10.0  # seconds
# What says for sure that a name has no address; anything else may be the resolver's own trouble.
_NONE = frozenset(getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name))

_Name = Tuple[str, int]


class Addresses:
    """Keep the keys of a provider up to date with the addresses that names have, from a thread in each process.

    `changed` gets all keys each time that they have become others. A name without an address stands for itself, and so
    does one whose address is another name's already: what connects to it says what is wrong.
    """

    def __init__(self, keys: Iterable[Key], changed: Callable[[List[Key]], None]) -> None:
        self._keys = tuple(keys)
        self._changed = changed
        self._found: Dict[_Name, List[str]] = {}
        self.names = list(dict.fromkeys(_name_in(key) for key in self._keys if _is_name(key)))
        self._ended = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._pid = 0

    def begin(self) -> None:
        """Ask for the addresses from now on, unless there is no name."""
        if self.names and self._pid != os.getpid():
            self._pid = os.getpid()
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._run, daemon=True, name="vllm-bridge-addresses")
            try:
                self._thread.start()
            except RuntimeError:  # the system has no thread left: with a later request perhaps
                self._pid = 0

    def close(self) -> None:
        """Ask no more; an answer that is under way is not waited for."""
        self._ended.set()

    def succeed(self, before: "Addresses") -> None:
        """Go on with what another one has found."""
        self._found = {name: found for name, found in before._found.items() if name in self.names}
        if self._found:
            self._changed(self.keys())

    def keys(self) -> List[Key]:
        """Return the keys, one for each address of those that are given by a name."""
        keys: List[Key] = []
        whose: Dict[str, _Name] = {}
        for key in self._keys:
            if not _is_name(key):
                keys.append(key)
                continue
            name, plain = _name_in(key), str(key.url)[len(DNS):]
            urls = [_with_host(plain, address, name[1]) for address in self._found.get(name, ())]
            urls = [url for url in urls if whose.setdefault(url, name) == name]
            keys += [key.replace(url=url, server_name=key.server_name or name[0]) for url in urls]
            if not urls:
                keys.append(key.replace(url=plain))
        return keys

    def look(self) -> None:
        """Ask for all names once."""
        before = dict(self._found)
        for name in self.names:
            found = _lookup(name)
            if found is not None and found != self._found.get(name):
                self._found[name] = found
                logger.info("%s: its addresses are: %s", name[0], ", ".join(found) or "none")
        if self._found != before and not self._ended.is_set():
            self._changed(self.keys())

    def _run(self) -> None:
        ended = self._ended
        while not ended.is_set():
            try:
                self.look()
            except Exception:
                logger.error("the addresses of servers could not be looked at", exc_info=True)
            ended.wait(_EVERY)


def _is_name(key: Key) -> bool:
    return str(key.url).startswith(DNS)


def _name_in(key: Key) -> _Name:
    parts = urlsplit(str(key.url)[len(DNS):])
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _with_host(url: str, address: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc="%s:%d" % ("[%s]" % address if ":" in address else address, port)).geturl()


def _lookup(name: _Name) -> Optional[List[str]]:
    """Return the addresses that a name has, none of them twice; ``None`` if nobody could tell."""
    try:
        found = socket.getaddrinfo(name[0], name[1], 0, socket.SOCK_STREAM)
    except socket.gaierror as error:
        return [] if error.errno in _NONE else None
    except (OSError, UnicodeError):
        return None
    return sorted({str(address[0]) for _, _, _, _, address in found})
