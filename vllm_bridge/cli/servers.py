"""The servers: which of them are there, what each has and how much it has to do; and waiting for them."""

from typing import Any, Dict, List

from .answers import Asked, print_json
from .terminal import Terminal, one_line
from ..vllm import VLLMProvider

__all__ = ["look_at", "models", "told_of", "wait"]

_PATIENCE = 600.0  # seconds
_WITHIN = 2.0  # seconds that servers have to say how much they have to do

Standing = Dict[str, Any]


def look_at(provider: VLLMProvider) -> List[Standing]:
    """Return of each server its ``url``, ``state``, ``models``, ``load`` (``running`` and ``queued``) and ``error``."""
    found: List[Standing] = []
    states = provider.server_states()
    loads = provider.with_options(timeout=_WITHIN, deadline=_WITHIN).loads()
    for state in states:
        url, error = str(state["key"].url), state["error"]
        away = error is not None and state["state"] == "ready"
        found.append({
            "url": url, "state": "away" if away else state["state"],
            "models": [str(model.get("id")) for model in state["models"] or ()],
            "load": loads.get(url), "error": None if error is None else error.message,
        })
    return found


def told_of(standing: Standing) -> str:
    """Return in words what is known of a server."""
    if standing["state"] == "away":
        return one_line("is away: %s" % standing["error"])
    words = ["sleeps"] if standing["state"] == "sleeping" else []
    load = standing["load"]
    if load is not None:
        words.append(", ".join("%d %s" % (load[name], name) for name in ("running", "queued") if name in load))
    return "; ".join(words)


def models(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Print the names of the models, one a line; of several servers with the server, and how much that has to do."""
    reply = provider.list_models()
    several = "key_statuses" in reply
    standings = look_at(provider) if several else []
    if asked.json:
        print_json({**reply, "servers": standings} if several else reply, terminal)
        return 0
    if not several:
        for model in reply.data:
            terminal.line(one_line(str(model.get("id"))))
    for standing in standings:
        told = told_of(standing)
        if standing["state"] == "away":
            terminal.complain("%s %s" % (standing["url"], told))
        else:
            for name in standing["models"]:
                terminal.line("\t".join([one_line(name), standing["url"]] + ([told] if told else [])))
    return 0


def wait(provider: VLLMProvider, asked: Asked, terminal: Terminal) -> int:
    """Wait until the servers are there, or one that has the model asked for; say what it waits for."""
    timeout = _PATIENCE if asked.timeout is None else asked.timeout
    reply = provider.wait_ready(
        asked.model, timeout=timeout, tell=lambda missing: terminal.complain("waiting: %s" % missing))
    if asked.json:
        print_json(reply, terminal)
    else:
        terminal.line("ready: %s" % ", ".join(one_line(str(model.get("id"))) for model in reply.data))
    return 0
