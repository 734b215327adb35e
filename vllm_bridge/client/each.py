"""One question to every server."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Optional

from ..api import load
from ..api.body import decode
from ..config.settings import Key
from ..errors import BridgeError
from .call import Caller
from .options import Options

__all__ = ["loads", "of_each"]

_AT_ONCE = 16


def of_each(caller: Caller, path: str, options: Options) -> Dict[str, Any]:
    """Return what each server answers to a GET, parsed, or the error, by its key's id, name or position."""
    def parsed(key: Key) -> Any:
        reply = caller.get(path, key, options)
        return reply.read(lambda: decode(reply.body))

    found: Dict[str, Key] = {}
    for position, key in enumerate(caller.fleet.keys):
        if key.enabled and all(key.url != other.url for other in found.values()):
            found[key.id or key.name or str(position)] = key

    return _asked(found, parsed)


def loads(caller: Caller, options: Options) -> Dict[str, Optional[Dict[str, int]]]:
    """Return how much each server has to do, by its URL; ``None`` for one that does not say."""
    def counted(key: Key) -> Any:
        return load.read(caller.get("/metrics", key, options).body.decode("utf-8", "replace"))

    found = _asked({str(key.url): key for key in caller.fleet.keys if key.enabled}, counted)
    return {url: None if isinstance(answer, BridgeError) else answer for url, answer in found.items()}


def _asked(keys: Dict[str, Key], ask: Callable[[Key], Any]) -> Dict[str, Any]:
    """Return what becomes of a question to each of some servers, all at once: an answer, or an error."""
    def asked(key: Key) -> Any:
        try:
            return ask(key)
        except BridgeError as error:
            return error

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(keys)))) as pool:
        return dict(zip(keys, pool.map(asked, keys.values())))
