"""The journal: each request is entered once, where it has ended; lines and numbers are made of that soon afterwards."""

import logging
import os
import random
import re
import threading
import time
import weakref
from collections import Counter, deque
from typing import Any, Deque, Dict, List, Optional, Set, Tuple

from ..client.options import Trace
from ..provider import BaseOpenAIProvider
from ..server.request import Request
from . import access_log
from .metrics import Metrics

__all__ = ["Entry", "Journal"]

_ID = re.compile(r"[!-~]{1,200}\Z")
_TICK = 0.2  # seconds after which an ended request is counted and in the log
_IDLE_TICKS = 50  # ticks without a request after which the thread ends
_MOST_WAITING = 5000  # ended requests that wait for the thread; the next one makes lines and numbers itself
_ON_THE_WAY = 0.005  # seconds for threads whose answer has just left to say so: whoever has it counts on that
_LAST_WORDS = 1.0  # seconds that whoever reads the log has for the last lines


class Entry:
    """One request: what is known of it, filled in while it runs."""

    def __init__(self, request: Request) -> None:
        given = request.fields.get("x-request-id")
        self.id = given if given is not None and _ID.match(given) else "%032x" % random.getrandbits(128)
        self.client = request.client
        self.method = request.method
        self.path = request.path
        self._version = request.fields.get("anthropic-version")
        self.trace = Trace()
        self.started = time.monotonic()
        self.ended = 0.0
        self.operation = ""
        self.model: Optional[str] = None
        self.status = 0  # the status that the log and the metrics have
        self.first: Optional[float] = None  # seconds until the first event of its stream
        self.fallbacks = 0
        self.refused_by: Optional[str] = None  # the server that refused the gateway's key
        self.counted = False  # in the metrics

    @property
    def anthropic(self) -> bool:
        """Whether the client speaks Anthropic's API."""
        path = self.path
        return self._version is not None or "/v1/messages" in path or path.startswith("/anthropic/v1/models")


class Journal:
    """Count and log requests, without any of them waiting for it.

    One thread does it, five times a second; it starts with the first request of a process, and ends when there is
    nothing to do. Where the system has no thread left, the requests do it themselves.
    """

    def __init__(self, metrics: Metrics, provider: BaseOpenAIProvider, log_format: str) -> None:
        self.provider = provider  # whose connections are looked after
        self._metrics = metrics
        self._log_format = log_format
        self._running: Set[Entry] = set()
        self._ended: Deque[Entry] = deque()
        self._known: Dict[str, int] = {}  # operation → requests under way, as it was told last
        self._with: Dict[str, int] = {}  # server → requests that are with it, as it was told last
        self._changes: Dict[Tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._clock = (0, "")  # the second that was written last, and how
        _journals.add(self)

    def begin(self, entry: Entry) -> None:
        """Enter a request as running, now that its operation is known."""
        entry.counted = True
        self._running.add(entry)

    def end(self, entry: Entry) -> None:
        """Enter a request as ended, after its answer has left."""
        entry.ended = time.monotonic()
        self._ended.append(entry)
        if self._thread is None:
            self._start()
        if len(self._ended) > _MOST_WAITING:
            self.settle()

    def settle(self) -> None:
        """Make lines and numbers of all that has ended."""
        with self._lock:
            self._settle()

    def write_out(self) -> None:
        """Settle, and give whoever reads the log a last moment."""
        self.settle()
        access_log.flush(_LAST_WORDS)

    def text(self) -> bytes:
        """Return the metrics as they stand."""
        time.sleep(_ON_THE_WAY)
        with self._lock:
            self._settle()
            return self._metrics.text()

    def claim(self, worker: int) -> None:
        """Count for this worker; to be called once in each process after the fork."""
        with self._lock:
            self._metrics.claim(worker)
            self._known, self._with = {}, {}

    def close(self) -> None:
        """Settle, end the thread and give the memory of the metrics back."""
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self.write_out()
        with self._lock:
            self._metrics.close()

    def forked(self) -> None:
        """Begin anew in a child process: threads and requests are the parent's."""
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread = None
        self._running, self._ended = set(), deque()

    # ------------------------------------------------------------ the thread

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._wake.is_set():
                return
            thread = threading.Thread(target=self._run, daemon=True, name="vllm-bridge-journal")
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left: later perhaps
                return
            self._thread = thread

    def _run(self) -> None:
        idle = 0
        try:
            while idle < _IDLE_TICKS and not self._wake.wait(_TICK):
                idle = 0 if self._ended or self._running else idle + 1
                self.settle()
                self.provider.tidy()
                access_log.flush()
        finally:
            self._thread = None

    def _settle(self) -> None:
        entries: List[Entry] = []
        try:
            while True:
                entries.append(self._ended.popleft())
        except IndexError:
            pass  # no others
        self._running.difference_update(entries)
        for entry in entries:
            if entry.counted:
                self._metrics.count(
                    entry.operation, entry.model, entry.status, entry.ended - entry.started, entry.first,
                    (entry.trace.prompt_tokens, entry.trace.completion_tokens),
                    max(0, entry.trace.attempts - 1 - entry.fallbacks), entry.fallbacks,
                )
                self._count_servers(entry)
            if entry.refused_by is not None:
                self._metrics.refused(entry.refused_by)
        self._state(entries)
        if entries and access_log.logger.isEnabledFor(logging.INFO):
            since = time.time() - time.monotonic()
            access_log.write([access_log.line(self._fields(entry, since), self._log_format) for entry in entries])

    def _count_servers(self, entry: Entry) -> None:
        trace = entry.trace
        for key in trace.failed:
            self._metrics.attempted(str(key.url))
        if trace.key is None:
            return
        before = None if trace.sent is None else max(0.0, trace.sent - entry.started)
        self._metrics.count_for(
            str(trace.key.url), entry.status, before,
            None if entry.first is None or before is None else entry.first - before,
            (trace.prompt_tokens, trace.completion_tokens, trace.cached_tokens),
            1 if trace.attempts > len(trace.failed) or not trace.failed else 0,  # the last one has not failed
        )

    def _state(self, ended: List[Entry]) -> None:
        none = dict.fromkeys([entry.operation for entry in ended if entry.counted], 0)
        told = {**none, **dict.fromkeys(self._known, 0), **Counter(entry.operation for entry in self._running.copy())}
        changed = {operation: number for operation, number in told.items() if number != self._known.get(operation)}
        self._known = told
        running = Counter(str(entry.trace.key.url) for entry in self._running.copy() if entry.trace.key is not None)
        if running != self._with:
            self._with = running
            self._metrics.with_servers(running)
        changes = self.provider.changes()
        if changes != self._changes:
            for (server, change), times in changes.items():
                self._metrics.changed(server, change, times - self._changes.get((server, change), 0))
            self._changes = changes
        self._metrics.state(changed, len(self.provider.cooling()), access_log.dropped())

    def _fields(self, entry: Entry, since: float) -> Dict[str, Any]:
        return {
            "time": self._time(int(since + entry.ended)),
            "client": entry.client,
            "method": entry.method,
            "path": entry.path,
            "status": entry.status,
            "model": entry.model,
            "server": entry.trace.server,
            "attempts": entry.trace.attempts or None,
            "gateway_ms": None if entry.trace.sent is None else round((entry.trace.sent - entry.started) * 1000, 1),
            "first_token_ms": None if entry.first is None else round(entry.first * 1000, 1),
            "total_ms": round((entry.ended - entry.started) * 1000, 1),
            "tokens_in": entry.trace.prompt_tokens or None,
            "tokens_out": entry.trace.completion_tokens or None,
            "tokens_cached": entry.trace.cached_tokens or None,
            "request_id": entry.id,
        }

    def _time(self, second: int) -> str:
        if self._clock[0] != second:
            self._clock = (second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)))
        return self._clock[1]


_journals: "weakref.WeakSet[Journal]" = weakref.WeakSet()


def _forked() -> None:
    for journal in list(_journals):
        journal.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
