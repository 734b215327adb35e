"""One question to every server."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict

from ..api.body import decode
from ..config.settings import Key
from ..errors import BridgeError
from .call import Caller
from .options import Options

__all__ = ["of_each"]

_AT_ONCE = 16


def of_each(caller: Caller, path: str, options: Options) -> Dict[str, Any]:
    """Return what each server answers to a GET, parsed, or the error, by its key's id, name or position."""
    found: Dict[str, Key] = {}
    for position, key in enumerate(caller.fleet.keys):
        if key.enabled and all(key.url != other.url for other in found.values()):
            found[key.id or key.name or str(position)] = key

    def ask(key: Key) -> Any:
        try:
            reply = caller.get(path, key, options)
            return reply.read(lambda: decode(reply.body))
        except BridgeError as error:
            return error

    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(found)))) as pool:
        return dict(zip(found, pool.map(ask, found.values())))
