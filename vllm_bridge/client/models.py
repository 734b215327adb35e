"""Asking the servers which models they have: for a list, to find the one that a request is for, and beside the traffic.

They are asked all at once and never waited for longer than `WITHIN`; what is known of one that does not answer stays.
"""

import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence

from ..api import models
from ..api.body import decode
from ..api.records import ModelList
from ..config.settings import Key
from ..errors import APIConnectionError, APIStatusError, APITimeoutError, BridgeError, RequestCancelledError
from .directory import Server
from .fleet import Fleet
from .options import Options
from .reply import Reply
from .retry import never_sent

if TYPE_CHECKING:
    from .call import Caller

__all__ = ["WITHIN", "beside", "collect", "learn", "refresh", "states", "wake"]

PATH = "/v1/models"
WITHIN = 1.8  # seconds that servers have to name their models
REFRESHED = 30.0  # seconds after which they are asked again beside the traffic
_AGAIN = 1.0  # seconds between two times that they are asked because nobody has a model
_REST = 0.3  # seconds that the others have once one has been found that has the model

_Answers = Dict[int, Optional[BridgeError]]  # by the position of a key: what went wrong


def collect(caller: "Caller", options: Options) -> ModelList:
    """Ask every server, all at once, and merge their lists by id; of the lengths of one model the smallest counts.

    A key's allow-list, block-list and aliases apply. With several keys ``key_statuses`` tells which of them answered,
    and the list holds what is known of the others; if nothing is known the last error is raised. A key that the
    options name is the only one asked.
    """
    fleet = caller.fleet
    keys = [key for key in fleet.keys if key.enabled and _is_meant(key, options)]
    if not keys:
        fleet.select(None, frozenset(), options.key_id, options.key_name)  # says what is wrong
    if len(fleet.keys) == 1:
        key = fleet.keys[0]
        reply = caller.reply("GET", PATH, None, None, options)
        payload = _read(reply)
        payload["data"] = _allowed(payload["data"], key)
        return ModelList(payload)
    found = states(caller, options)
    statuses = []
    failure: Optional[BridgeError] = None
    for position, state in enumerate(found):
        key, error = state["key"], state["error"]
        name = key.id or key.name or str(position)
        status: Dict[str, Any] = {
            "key_id": name, "provider": "vllm", "status": "success", "state": state["state"]}
        if error is not None:
            failure = error
            status.update(status="list_models_failed", error={
                "message": error.message, "code": error.code, "status_code": error.status_code})
        statuses.append(status)
    if failure is not None and not any(state["models"] or not state["error"] for state in found):
        raise failure
    data = models.merged(state["models"] or () for state in found)
    return ModelList({"object": "list", "data": data, "key_statuses": statuses})


def states(caller: "Caller", options: Options) -> List[Dict[str, Any]]:
    """Ask every server, all at once, and return how each key stands.

    Each has ``key``; ``state`` (ready, away or sleeping); ``models``, the objects that are known of it, ``None`` if it
    has never named any; ``error``, why it did not name them now.
    """
    fleet = caller.fleet
    keys = [key for key in fleet.keys if key.enabled and _is_meant(key, options)]
    answers = _ask(caller, keys, options)
    found = []
    for position, key in enumerate(keys):
        server = fleet.servers.get(key.url) or Server(str(key.url))
        # Copies: what a caller does to its list is not what the server has.
        known = None if server.models is None else _allowed([dict(model) for model in server.models.values()], key)
        state = fleet.state(server)
        error = answers[position] if position in answers else _no_answer(key, server if state == "away" else None)
        found.append({"key": key, "state": state, "models": known, "error": error})
    return found


def learn(caller: "Caller", model: Optional[str], options: Options) -> None:
    """Ask the servers what they have where that has to be known for a model, and is not."""
    fleet = caller.fleet
    if not fleet.unasked(model) and fleet.has(model):
        return
    held = fleet.asking.acquire(timeout=WITHIN)
    try:
        if fleet.unasked(model) or (not fleet.has(model) and fleet.clock() - (fleet.asked_at or -_AGAIN) >= _AGAIN):
            refresh(caller, options, lambda: model in fleet.known or fleet.has(model))
    finally:
        if held:
            fleet.asking.release()


def refresh(caller: "Caller", options: Options, enough: Optional[Callable[[], bool]] = None) -> None:
    """Ask all servers what they have, and wait for that; once it is `enough` the others have a moment."""
    _ask(caller, _one_each(caller.fleet), _without_caller(options), enough)
    caller.fleet.asked_at = caller.fleet.clock()


def beside(caller: "Caller", options: Options) -> None:
    """Ask the servers that are to be asked, and do not wait for it."""
    fleet, options = caller.fleet, _limited(_without_caller(options), WITHIN)
    for key in _one_each(fleet):
        server = fleet.servers.get(key.url)
        if server is not None and server in fleet.to_ask:
            fleet.to_ask.discard(server)
            try:
                threading.Thread(target=_ask_one, args=(caller, key, options), daemon=True).start()
            except RuntimeError:  # no thread to be had: another time
                return


def _one_each(fleet: Fleet) -> List[Key]:
    """Return a key of each server."""
    return list({key.url: key for key in reversed(fleet.keys) if key.enabled}.values())[::-1]


def _is_meant(key: Key, options: Options) -> bool:
    if options.key_id:
        return key.id == options.key_id
    return not options.key_name or key.name == options.key_name


def _without_caller(options: Options) -> Options:
    """Return the options of a call for questions that are not its own."""
    return options.replaced({
        "trace": None, "client": None, "cancel": None, "key_id": None, "key_name": None, "query": "", "deadline": None,
    })


def _limited(options: Options, seconds: float) -> Options:
    return options.replaced({
        "timeout": (_least(options.timeout[0], seconds), _least(options.timeout[1], seconds)), "deadline": seconds})


def _ask(
    caller: "Caller", keys: Sequence[Key], options: Options, enough: Optional[Callable[[], bool]] = None
) -> _Answers:
    """Ask servers, all at once; return what has come of it within the time there is."""
    seconds = options.deadline or WITHIN
    clock, end = caller.fleet.clock, caller.fleet.clock() + seconds
    options = _limited(options, seconds)
    answers: _Answers = {}
    broken: List[BaseException] = []
    changed = threading.Condition()
    # Nobody waits for a server that is known to be silent, unless there is no other.
    down = caller.fleet.down
    expected = {position for position, key in enumerate(keys) if key.url not in down} or set(range(len(keys)))

    def ask(position: int, key: Key) -> None:
        answer: Optional[BridgeError] = None
        try:
            answer = _ask_one(caller, key, options)
        except BaseException as error:  # nobody sees what a thread raises
            broken.append(error)
        with changed:
            answers[position] = answer
            changed.notify_all()

    for item in enumerate(keys):
        try:
            threading.Thread(target=ask, args=item, daemon=True).start()
        except RuntimeError:  # no thread to be had, as at the end of a process: one after the other
            ask(*item)
    with changed:
        while not (broken or expected.issubset(answers)):
            if enough is not None and answers and enough():
                end, enough = min(end, clock() + _REST), None
            if end <= clock():
                break
            changed.wait(end - clock())
        found = dict(answers)
    if broken:
        raise broken[0]
    return found


def _ask_one(caller: "Caller", key: Key, options: Options) -> Optional[BridgeError]:
    """Ask a server for its models, and whether it sleeps; note what it says, and return what went wrong."""
    fleet, server = caller.fleet, caller.fleet.servers.get(key.url)
    if server is None:  # it has been taken out of the fleet meanwhile
        return _no_answer(key)
    begun = server.asked_at = fleet.clock()
    try:
        found = _read(caller.get(PATH, key, options))["data"]
        fleet.told(server, {str(model.get("id")): model for model in found})
        _ask_for_sleep(caller, key, server, options)
    except BridgeError as error:
        if isinstance(error, RequestCancelledError):
            return error
        silent = isinstance(error, APIConnectionError)
        fleet.untold(server, silent)
        if never_sent(error):
            fleet.failed(key, error.message, since=begun)
        elif silent and server.heard <= begun:
            fleet.failed(key, "it takes connections and says nothing", ask=True, since=begun)
        elif not silent:
            fleet.succeeded(key, worked=False)
        return error
    fleet.succeeded(key, worked=False)
    return None


def wake(caller: "Caller", key: Key, options: Options) -> None:
    """Wake a key's server if it sleeps, and wait until it is awake; whoever comes meanwhile waits too."""
    fleet, server = caller.fleet, caller.fleet.servers.get(key.url)
    if server is None or not server.sleeping:
        return
    held = fleet.waking.acquire(timeout=-1 if options.timeout[1] is None else options.timeout[1])
    try:
        if server.sleeping:
            options = _without_caller(options)
            caller.get("/wake_up", key, options, "POST")
            _ask_for_sleep(caller, key, server, options)
    finally:
        if held:
            fleet.waking.release()


def _ask_for_sleep(caller: "Caller", key: Key, server: Server, options: Options) -> None:
    """Ask whether a server sleeps; vLLM has the route where VLLM_SERVER_DEV_MODE is set."""
    if server.sleeps is False:
        return
    try:
        payload = decode(caller.get("/is_sleeping", key, options).body)
        said = payload.get("is_sleeping") if isinstance(payload, dict) else None
        server.sleeps = isinstance(said, bool)
        caller.fleet.slept(server, said is True)
    except APIStatusError:
        server.sleeps = False
    except BridgeError:
        pass  # another time


def _no_answer(key: Key, server: Optional[Server] = None) -> BridgeError:
    if server is not None and server.reason:  # it is away, so that nobody waits for it
        return APIConnectionError(server.reason, url=key.url)
    return APITimeoutError("%s has not named its models in time" % key.url, url=key.url)


def _least(seconds: Optional[float], most: float) -> float:
    return most if seconds is None else min(seconds, most)


def _read(reply: Reply) -> Dict[str, Any]:
    return reply.read(lambda: models.read(reply.body))


def _allowed(found: List[Dict[str, Any]], key: Key) -> List[Dict[str, Any]]:
    return models.allowed(found, key.aliases, lambda name: Fleet.allows(key, name))
