"""The models of all servers in one list."""

import threading
from typing import Any, Dict, List, Optional, Tuple

from .call import Caller
from .options import Options
from ..config.settings import Key
from ..errors import BridgeError
from .fleet import Fleet
from ..api import models
from ..api.records import ModelList
from .reply import Reply

__all__ = ["collect"]

PATH = "/v1/models"


def collect(caller: Caller, options: Options) -> ModelList:
    """Ask every server, all at once, and merge their lists by id.

    A key's allow-list, block-list and aliases apply. With several keys ``key_statuses`` tells which of them answered;
    if none did, the last error is raised. A key that the options name is the only one asked.
    """
    keys = [key for key in caller.fleet.keys if key.enabled and _is_meant(key, options)]
    if not keys:
        caller.fleet.select(None, frozenset(), options.key_id, options.key_name)  # says what is wrong
    if len(caller.fleet.keys) == 1:
        key = caller.fleet.keys[0]
        reply = caller.reply("GET", PATH, None, None, options)
        payload = _read(reply)
        payload["data"] = _allowed(payload["data"], key)
        return ModelList(payload)
    answers = _ask_all(caller, keys, options)
    statuses = []
    failure: Optional[BridgeError] = None
    for position, (key, (_, error)) in enumerate(zip(keys, answers)):
        name = key.id or key.name or str(position)
        status: Dict[str, Any] = {"key_id": name, "provider": "vllm", "status": "success"}
        if error is not None:
            failure = error
            status.update(status="list_models_failed", error={"message": error.message, "code": error.code})
        statuses.append(status)
    if failure is not None and not any(status["status"] == "success" for status in statuses):
        raise failure
    data = models.merged(_allowed(found, key) for key, (found, _) in zip(keys, answers))
    return ModelList({"object": "list", "data": data, "key_statuses": statuses})


def _is_meant(key: Key, options: Options) -> bool:
    if options.key_id:
        return key.id == options.key_id
    return not options.key_name or key.name == options.key_name


_Answer = Tuple[List[Dict[str, Any]], Optional[BridgeError]]


def _ask_all(caller: Caller, keys: List[Key], options: Options) -> List[_Answer]:
    answers: List[_Answer] = [([], None)] * len(keys)
    broken: List[BaseException] = []

    def ask(position: int, key: Key) -> None:
        try:
            answers[position] = (_read(caller.get(PATH, key, options))["data"], None)
        except BridgeError as error:
            answers[position] = ([], error)
        except BaseException as error:  # nobody sees what a thread raises
            broken.append(error)

    threads = []
    for item in enumerate(keys):
        thread = threading.Thread(target=ask, args=item, daemon=True)
        try:
            thread.start()
            threads.append(thread)
        except RuntimeError:  # no thread to be had, as at the end of a process: one after the other
            ask(*item)
    for thread in threads:
        thread.join()
    if broken:
        raise broken[0]
    return answers


def _read(reply: Reply) -> Dict[str, Any]:
    return reply.read(lambda: models.read(reply.body))


def _allowed(found: List[Dict[str, Any]], key: Key) -> List[Dict[str, Any]]:
    return models.allowed(found, key.aliases, lambda name: Fleet.allows(key, name))
