"""The servers of one provider: which of them are there, and the one that a request goes to.

A server that cannot be reached cools off: requests avoid it as long as another may answer. When its time is up it is
probed: by one request where a failure costs that nothing, else by being asked for its models beside the requests.
Keys with the same URL share the server, and so all that is known of it.
"""

import mmap
import os
import random as _random
import threading
import time
import weakref
from typing import AbstractSet, Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from ..config.settings import Key
from ..errors import BadRequestError, InternalServerError, NotFoundError, RateLimitError
from . import routing
from .directory import Directory, Server
from .keys import Rule
from .prefixes import Prefixes, SharedPrefixes
from .routing import Prompt

__all__ = ["FIRST_COOL_OFF", "LONGEST_COOL_OFF", "Fleet"]

FIRST_COOL_OFF = 1.0  # seconds; doubled by every probe that fails
LONGEST_COOL_OFF = 30.0
_BROKEN = 5  # failures in a row after which a server is avoided, if others answer well
_FILLED = 10.0  # seconds in which a server that is new gets its full share
_GENTLY = 0.1  # of its share with which it begins
_LOOK = 0.5  # seconds between two looks at how the servers stand
_QUIET = 1.0  # seconds of silence after which a server that has work is asked whether it is there
_ASKED = 3.0  # and between two such questions
_HEAVIEST = 4.0  # how much heavier work weighs at most where there is silence
_TOLD = 8  # events of a stream that say how fast they come
_PAUSE = 1.0  # seconds that clients are asked to wait where no server may be given another request
_CALMED = 0.02  # of its slowness that a server loses with a look
_ANSWERING = ("completions", "responses", "messages", "batch")  # the ends of the paths where an answer is a text

_fleets: "weakref.WeakSet[Fleet]" = weakref.WeakSet()


def _forked() -> None:
    """Give the fleets of a forked child locks of their own: the parent's thread that held one is not there."""
    for fleet in list(_fleets):
        fleet.forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class _Down:
    """A server that is away: how long it cools off, until when, and who probes it."""

    __slots__ = ("seconds", "until", "probed_until", "ask", "broken")

    def __init__(self, seconds: float, until: float, ask: bool, broken: bool) -> None:
        self.seconds = seconds
        self.until = until
        self.probed_until: Optional[float] = None
        self.ask = ask  # a request that went there might wait for long
        self.broken = broken  # it can be reached, and does not work

    def free_at(self) -> float:
        """Return the time from which a probe may go out."""
        return self.until if self.probed_until is None else self.probed_until


class Fleet(Directory):
    """The keys of one provider, and their servers; every method may be called from any thread.

    `clock` gives seconds that only grow; `random` gives numbers from 0 up to 1; `way` is one of `routing.WAYS`.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        *,
        way: str = "expected_wait",
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        super().__init__()
        self.clock = clock
        self._random = random
        self._way = routing.WAYS[way]
        self.most: Optional[int] = None  # requests that a server gets at once
        self.asking = threading.Lock()  # held by the one who asks for models while others wait for the answer
        self.waking = threading.Lock()
        self.asked_at: Optional[float] = None
        self.down: Dict[Optional[str], _Down] = {}
        self.resting: Set[Server] = set()  # the servers that sleep
        self._prefixes: Prefixes = Prefixes()
        self._pace = routing.Pace()
        self._answer = routing.ANSWER  # tokens of an answer, on average
        self._looked_at = 0.0
        self.set_keys(keys)
        _fleets.add(self)

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Put others in the place of the keys; servers that stay keep what is known of them."""
        with self._lock:
            gone = list(self.servers.values())
            super().set_keys(keys)
            self._weightless = not all(key.weight for key in self.keys)
            for server in gone:
                if self.servers.get(server.url) is not server:
                    self._prefixes.leave(server.bit)
            self.down = {url: down for url, down in self.down.items() if url in self.servers}
            self.resting.intersection_update(self.servers.values())
            self.to_ask.intersection_update(self.servers.values())

    def share(self) -> None:
        """Share what the servers have seen with the processes that are forked from this one from now on."""
        with self._lock:
            memory = mmap.mmap(-1, 8 * SharedPrefixes.CELLS)  # what is not written to costs nothing
            self._prefixes = SharedPrefixes(memoryview(memory).cast("Q"))
            for server in self.servers.values():
                server.bit = self._prefixes.join(server.url)

    def settle_for(self, other: "Fleet") -> None:
        """Take the keys, the way and the limit of another one, and keep what is known of the servers."""
        self._way, self.most = other._way, other.most
        self.set_keys(other.keys)

    def forked(self) -> None:
        """Begin anew in a child process: threads and requests are the parent's."""
        self._lock = threading.RLock()
        self.asking = threading.Lock()
        self.waking = threading.Lock()
        self.to_ask = set()
        for server in self.servers.values():
            server.waiting, server.running, server.answering = 0.0, 0, 0.0

    def _joined(self, url: Optional[str], before: Dict[Optional[str], Server]) -> Server:
        server = super()._joined(url, before)
        server.bit = self._prefixes.join(url)
        if before:
            self._begin_gently(server)
        return server

    # ------------------------------------------------------------ which key

    def select(
        self,
        model: Optional[str],
        exclude: AbstractSet[Key] = frozenset(),
        key_id: Optional[str] = None,
        key_name: Optional[str] = None,
        prompt: Optional[Prompt] = None,
    ) -> Key:
        """Return a key for `model`; ``None`` stands for a call that names no model.

        It is chosen in the fleet's way for a `prompt`, which counts at its server from now on (and at the one before no
        longer), and else by weight. Keys in `exclude` (already tried) and cooling servers are used only if nothing else
        is left, of the cooling ones that which is free first. `key_id`, else `key_name`, pins a key. Raise
        ``BadRequestError`` where no key supports the model, ``NotFoundError`` where no server has it,
        ``InternalServerError`` where those that have it sleep, ``RateLimitError`` where they have enough to do.
        """
        if model is not None and not isinstance(model, str):
            raise BadRequestError("model: expected a string, got %s" % type(model).__name__, param="model")
        if key_id or key_name:
            rules = self._allowed(model, key_id, key_name)
        else:
            rules = self.known.get(model) or self.known_for(model)
        if exclude:
            rules = [rule for rule in rules if rule.key not in exclude] or rules
        if prompt is None and not self.down and not self.resting:  # their truth is read at once
            return rules[0].key if len(rules) == 1 else self._by_lot(rules).key
        with self._lock:
            now = self.clock()
            if prompt is not None:
                if prompt.rule is not None:
                    self._leave(prompt)
                if now - self._looked_at >= _LOOK:
                    self._look(now)
            if self.down or self.resting:
                rules = self._there(rules, now)
            if prompt is None:
                rule = rules[0] if len(rules) == 1 else self._by_lot(rules)
            else:
                rule = self._enter(rules, prompt, now)
            down = self.down.get(rule.key.url) if self.down else None
            if down is not None and now >= down.free_at():
                # The probe's answer may never be told (its caller was cancelled); then another goes.
                down.probed_until = now + down.seconds
        return rule.key

    def other_left(self, model: Optional[str], exclude: AbstractSet[Key]) -> bool:
        """Tell whether a key for `model` is left that is not in `exclude`."""
        try:
            return any(rule.key not in exclude for rule in self.known_for(model))
        except (BadRequestError, NotFoundError):
            return False

    def _by_lot(self, rules: Sequence[Rule]) -> Rule:
        rules = [rule for rule in rules if rule.key.weight] or rules
        return routing.by_lot(rules, None, self._prefixes, self._random)

    def _there(self, rules: List[Rule], now: float) -> List[Rule]:
        """Return those whose servers are there, or may be there again, else those that are free first."""
        awake = [rule for rule in rules if not rule.server.sleeping]
        if not awake:
            wakeable = [rule for rule in rules if rule.key.wake]
            if wakeable:
                return wakeable
            raise InternalServerError(
                "the server that has the model sleeps (vLLM's sleep mode); wake it by POST /wake_up, or let its key "
                "have wake: true",
                type="service_unavailable", code="server_sleeping", status_code=503)
        ready = [rule for rule in awake if self._ready(rule.server, now)]
        if ready:
            probed = [rule for rule in ready if rule.server.url in self.down]
            return probed or ready
        first = min(self.down[rule.server.url].free_at() for rule in awake)
        return [rule for rule in awake if self.down[rule.server.url].free_at() == first]

    def _enter(self, rules: List[Rule], prompt: Prompt, now: float) -> Rule:
        if self.most is not None:
            rules = self._with_room(rules, self.most)
        if self._weightless:
            rules = [rule for rule in rules if rule.key.weight] or rules
        # One alone is chosen too: what it has seen counts for the requests that come.
        rule = self._way(rules, prompt, self._prefixes, self._random)
        if not rule.server.running:
            rule.server.heard = now
        routing.enter(rule, prompt, now)
        return rule

    def _with_room(self, rules: List[Rule], most: int) -> List[Rule]:
        """Return those whose servers may be given another request; raise ``RateLimitError`` if there are none."""
        found = [rule for rule in rules if rule.server.running < most]
        if not found:
            error = RateLimitError(
                "every server that has the model has as many requests as it gets at once (%d); try again later" % most,
                type="rate_limit_error", code="rate_limit_exceeded", status_code=429)
            error.retry_after = _PAUSE
            raise error
        return found

    def _ready(self, server: Server, now: float) -> bool:
        down = self.down.get(server.url)
        if down is None or now < down.free_at():
            return down is None
        if not down.ask:
            return True
        down.probed_until = now + down.seconds
        self.to_ask.add(server)
        return False

    # ------------------------------------------------------------ what a request is, and does to a server

    def prompt(
        self, path: str, wire: Any, model: Optional[str], headers: Mapping[str, str], streams: bool
    ) -> Prompt:
        """Return what has to be known of a request to choose its server."""
        if self._way is not routing.expected_wait:
            return Prompt((), (), 0.0)
        session = headers.get("X-Session-ID") or headers.get("x-session-id") if headers else None
        prompt = routing.measured(wire, path.endswith(_ANSWERING), session)
        if prompt.answer > 2 * self._answer:  # most ask for many more than they get
            prompt.answer = 2 * self._answer
        prompt.kind = model, streams
        return prompt

    def answered(self, prompt: Prompt) -> None:
        """Note that the first token of an answer has come, or the whole."""
        with self._lock:
            rule, now = prompt.rule, self.clock()
            if rule is not None and prompt.waits:
                server = rule.server
                server.heard = server.well_at = now
                server.failures = server.relapses = 0
                routing.begin(prompt)
                prompt.begun = now
                self._pace.observe(server, prompt.kind, (now - prompt.started) / prompt.expected)

    def done(self, prompt: Prompt, tokens: int = 0) -> None:
        """Count a request no longer; `tokens` is the length of its answer, where that is known."""
        with self._lock:
            if prompt.rule is not None and tokens:
                server, now = prompt.rule.server, self.clock()
                server.heard = now
                if tokens >= _TOLD and prompt.kind is not None and prompt.kind[1]:  # a stream
                    self._pace.observe(server, prompt.kind[0], (now - prompt.begun) / tokens)
                self._answer += 0.05 * (tokens - self._answer)
            self._leave(prompt)

    def _leave(self, prompt: Prompt) -> None:
        if prompt.rule is not None:
            if prompt.waits:  # it was refused, or given up
                self._prefixes.undo(prompt, prompt.rule.server.bit)
            routing.leave(prompt)

    def _look(self, now: float) -> None:
        """See how the servers stand: what was slow is tried again, who is new gets more, who is silent is asked."""
        self._looked_at = now
        for rule in self._rules:
            rule.sent *= 0.5  # who had nothing to do for long is not due for as long
        for server in self.servers.values():
            server.slow += _CALMED * (1.0 - server.slow)
            silence = now - server.heard if server.running else 0.0
            server.strain = 1.0 + min(max(silence - _QUIET / 2, 0.0), _HEAVIEST - 1)
            if server.since is not None:
                grown = (now - server.since) / _FILLED
                server.strain *= 1.0 if grown >= 1 else 1.0 / (_GENTLY + (1 - _GENTLY) * grown)
                server.since = None if grown >= 1 else server.since
            quiet = silence > _QUIET and now - server.asked_at > _ASKED
            if quiet or (server.sleeps and now - server.asked_at > _QUIET):
                server.asked_at = now
                self.to_ask.add(server)

    def _begin_gently(self, server: Server) -> None:
        server.since, server.strain, server.slow, server.idle = self.clock(), 1.0 / _GENTLY, 1.0, 1.0
        for rule in self._rules:
            if rule.server is server:  # or it would be due all the time
                rule.sent = max(rule.sent, max(other.sent for other in self._rules))

    # ------------------------------------------------------------ who is there

    def failed(
        self, key: Key, reason: str = "it cannot be reached", ask: bool = False, broken: bool = False,
        since: Optional[float] = None,
    ) -> None:
        """Let the key's server cool off; with `ask` no request is to find out whether it is back.

        `since` is when the request began that has shown it: it says nothing if the server has come back meanwhile.
        """
        with self._lock:
            now = self.clock()
            down, server = self.down.get(key.url), self.servers.get(key.url)
            if server is None or (since is not None and since < server.back_at):
                return
            if down is None:
                seconds = min(FIRST_COOL_OFF * 2 ** min(server.relapses, 10), LONGEST_COOL_OFF)
                self.down[key.url] = _Down(seconds, now + seconds, ask, broken)
                server.relapses += 1
            elif now >= down.until:
                # Requests under way when the server died fail together; only a failure after the
                # cool-off tells something new.
                down.seconds = min(down.seconds * 2, LONGEST_COOL_OFF)
                down.until = now + down.seconds
                down.probed_until = None
                down.ask, down.broken = ask, broken
            if not (ask or broken):
                self._prefixes.forget(server.bit)  # a process that begins anew has an empty cache
        if down is None:
            server.reason = reason
            self._changed(server, "away", reason)

    def broke(self, key: Key, model: Optional[str], reason: str, since: Optional[float] = None) -> None:
        """Note an answer that says that the key's server is broken, or none since a time.

        It cools off after some of them in a row, or one silence, if another one answers well: else it is the request.
        """
        server = self.servers.get(key.url)
        if server is None or not self.several:
            return
        if not server.failures:
            server.ill_since = self.clock() if since is None else since
        server.failures += 1
        others = [rule.server for rule in self.known.get(model) or () if rule.server is not server]
        well = any(other.well_at > server.ill_since and other.url not in self.down for other in others)
        if well and (server.failures >= _BROKEN or (since is not None and server.well_at <= since)):
            self.failed(key, reason, broken=True)

    def succeeded(self, key: Key, worked: bool = True) -> None:
        """Note that the key's server answered, with whatever status; `worked`: to a request, and not with a failure."""
        if self.down:
            with self._lock:
                down, server = self.down.get(key.url), self.servers.get(key.url)
                if down is None or server is None or (down.broken and not worked):
                    return
                del self.down[key.url]
                server.back_at = self.clock()
                if worked:
                    server.relapses = 0
                if self.several:
                    self.to_ask.add(server)  # it may have come back with another model
                    self._begin_gently(server)
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

    def slept(self, server: Server, sleeping: bool) -> None:
        """Note whether a server sleeps (vLLM's sleep mode): it is not asked then, and is not dead."""
        with self._lock:
            changed = server.sleeping is not sleeping
            server.sleeping = sleeping
            (self.resting.add if sleeping else self.resting.discard)(server)
            if changed and not sleeping:
                self._begin_gently(server)
        if changed:
            self._changed(server, "asleep" if sleeping else "awake", "it says so itself")

    def state(self, server: Server) -> str:
        """Return ``ready``, ``sleeping`` or ``away``."""
        return "away" if server.url in self.down else "sleeping" if server.sleeping else "ready"
