"""The engine: requests from any iterable, asked by threads with connections of their own, until each has its answer."""

import logging
import math
import threading
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Protocol, Tuple

from ..client.cancellation import Cancellation
from ..errors import BadRequestError, BridgeError, RequestCancelledError
from ..provider import BaseOpenAIProvider
from .asking import Outcome, ask, grouped, is_away, is_final, is_refusal, queues
from .backlog import Backlog, Item, pause
from .pace import Pace
from .request import Defaults, Request
from .result import Result
from .totals import Totals, span

__all__ = ["Engine", "Settings", "Source"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0  # seconds between two tries while no server answers
_PROBES = 4  # under way at a time meanwhile
_WINDOW = 1000  # answers that wait for their turn
_TICK = 0.1  # seconds
_LOOK = 1.0  # seconds between two looks at the servers' queues
_SILENT = 3  # looks after which a server that does not tell is not asked any more
_TURN = 0.2  # seconds that a thread waits for its turn to read before it looks for something else to do
_GRACE = 2.0  # seconds that a cancelled run waits for its threads


class Settings(NamedTuple):
    """How a batch is carried out. `patience` is in seconds, 0 for ever; without `concurrency` it is found."""

    defaults: Defaults = Defaults()
    concurrency: Optional[int] = None
    join: int = 1
    patience: float = 3600.0
    at_most_once: bool = False
    ordered: bool = False


class Source(Protocol):
    """Where requests come from."""

    def take(self, most: int) -> List[Request]:
        """Return the next ones, none at the end; one thread at a time asks."""


class _Outage:
    """No server answers: since when, why, and when the next request tries."""

    def __init__(self, error: BridgeError, now: float) -> None:
        self.since = now
        self.error = error
        self.pause = _FIRST_PAUSE
        self.next = now + self.pause

    def longer(self, error: BridgeError) -> None:
        self.error = error
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class Engine:
    """Asks what `source` holds and gives each `Result` to `deliver`, from the thread that has it.

    `drive` does it all and returns at the end; `stop` and `cancel` may be called from any thread. `notice` gets
    sentences for whoever watches. `failure` is what ended it before its end.
    """

    def __init__(
        self,
        source: Source,
        provider: BaseOpenAIProvider,
        settings: Settings,
        deliver: Callable[[Result], None],
        notice: Optional[Callable[[str], None]] = None,
    ) -> None:
        self.totals = Totals()
        self.pace = Pace(settings.concurrency)
        self.failure: Optional[BaseException] = None
        self.stopped: Optional[str] = None  # why
        self.given_up: Optional[BridgeError] = None  # for this: no server answered for too long
        self.running = 0  # threads
        self.under_way: List[Item] = []  # changed in one step, without the lock
        self.outage: Optional[_Outage] = None
        self._source = source
        self._cancellation = Cancellation()
        self._provider = provider.with_options(max_retries=0, cancel=self._cancellation, direct=True)
        self._settings = settings
        self._deliver = deliver
        self._notice = notice or logging.getLogger("vllm_bridge.batch").warning
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._queue: Optional[Tuple[int, int]] = None
        self._exhausted = False
        self._backlog = Backlog()
        self._streak = 0  # failures without an answer between them
        self._turns = 0  # items read
        self._turn = 0  # the next item to be delivered, where the order is kept
        self._held: Dict[int, Item] = {}
        self._order = threading.Lock()

    # ------------------------------------------------------------ from outside

    def drive(self, tick: Optional[Callable[[], None]] = None) -> None:
        """Carry everything out; `tick` is called some times a second."""
        watching = Cancellation()
        watch = threading.Thread(target=self._watch, args=(watching,), daemon=True, name="vllm-bridge-batch-queues")
        if self._settings.concurrency is None:
            watch.start()
        try:
            while self._go_on():
                if tick is not None:
                    tick()
                self._wake.wait(_TICK)
                self._wake.clear()
        finally:
            self._ended.set()
            watching.cancel()
            if watch.ident is not None:
                watch.join(_GRACE)

    def _watch(self, cancel: Cancellation) -> None:
        """Look at the queues of servers that tell them."""
        silent = 0
        while silent < _SILENT and not self._ended.wait(_LOOK):
            self._queue = queues(self._provider, cancel)
            silent = 0 if self._queue is not None or self.outage is not None else silent + 1

    def stop(self, why: str) -> None:
        """Take nothing new; what is under way goes on."""
        self.stopped = self.stopped or why
        self._wake.set()

    def cancel(self, why: str = "the batch was stopped") -> None:
        """Break off what is under way, too."""
        self.stop(why)
        self._cancellation.cancel(why)

    def away(self) -> int:
        """Return how many servers do not answer."""
        return len({key.url for key in self._provider.cooling()})

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancellation.cancelled

    def fail(self, error: BaseException) -> None:
        """Break everything off because of an error."""
        if self.failure is None:
            self.failure = error
        self.cancel()

    # ------------------------------------------------------------ the thread that drives

    def _go_on(self) -> bool:
        """Start what threads there is work for; tell whether it is not over."""
        with self._lock:
            now = time.monotonic()
            if self.outage is not None and self._over(self.outage.since, now) and is_away(self.outage.error):
                self.given_up = self.outage.error
                self.cancel("no server has answered for %s: %s" % (span(self._settings.patience), self.given_up))
            if self.running == 0 and (self.stopped or (self._exhausted and not self._backlog)):
                return False
            wanted = 0 if self.stopped else self._wanted(now)
            queue, self._queue = self._queue, None
            self.pace.tick(len(self.under_way) >= self.pace.limit, queue)
            self.running += wanted
        for started in range(wanted):
            try:
                threading.Thread(target=self._work, daemon=True, name="vllm-bridge-batch").start()
            except RuntimeError as error:  # no more threads to be had
                with self._lock:
                    self.running -= wanted - started
                    if self.running == 0:
                        self.failure = error
                        return False
                break
        if self.cancelled:
            return self._patient()
        return True

    def _patient(self) -> bool:
        """Wait for threads that were told to end; not for one that is held up where it reads or delivers."""
        end = time.monotonic() + _GRACE
        while self.running and time.monotonic() < end:
            self._wake.wait(_TICK)
            self._wake.clear()
        return False

    def _wanted(self, now: float) -> int:
        """Return how many threads to start."""
        if self.outage is not None:
            if now < self.outage.next or self.running >= _PROBES:
                return 0
            self.outage.next = now + self.outage.pause
            return 1
        work = self.pace.limit
        if self._exhausted or not self._has_room():
            work = self._backlog.count_due(now)
        return max(0, min(self.pace.limit - self.running, work))

    def _over(self, since: float, now: float) -> bool:
        return bool(self._settings.patience) and now - since > self._settings.patience

    def _has_room(self) -> bool:
        """Tell whether more requests may be read: not too many wait to be asked again, or for their turn."""
        if self._backlog.is_full:
            return False
        return not self._settings.ordered or self._turns - self._turn < _WINDOW + 4 * self.pace.limit

    # ------------------------------------------------------------ the threads that ask

    def _work(self) -> None:
        probing = self.outage is not None
        try:
            items = self._next(probing)
            while items:
                for item in items:
                    self._carry_out(item)
                items = self._next(False)
        except RequestCancelledError:
            pass
        except BaseException as error:
            self.fail(error)
        finally:
            with self._lock:
                self.running -= 1
                if not self.running or self.outage is not None:
                    self._wake.set()

    def _next(self, probing: bool) -> List[Item]:
        """Return what is to be done next, nothing if this thread has nothing to do."""
        while True:
            with self._lock:
                if self.stopped or self.running > self.pace.limit or (self.outage is not None and not probing):
                    return []
                item = self._retry(probing)
                if item is not None:
                    return [item]
                if self._exhausted or not self._has_room():
                    return []
            if self._reading.acquire(timeout=_TURN):
                try:
                    if not self._exhausted:
                        items = self._read()
                        if items or self._exhausted:
                            return items
                finally:
                    self._reading.release()

    def _retry(self, probing: bool) -> Optional[Item]:
        """Return a request that is to be asked again; for a probe the one that was asked least, due or not."""
        if not probing:
            return self._backlog.due(time.monotonic())
        others = not self._exhausted and self._has_room()  # those that fail often may be to blame themselves
        return self._backlog.least_tried(2 if others else math.inf)

    def _read(self) -> List[Item]:
        """Read the next requests."""
        try:
            requests = self._source.take(self._settings.join)
        except BaseException as error:
            self.failure = self.failure or error
            self.stop("the requests cannot be read")
            requests = []
        if not requests:
            self._exhausted = True
        if self._settings.join > 1:
            for request in requests:
                self._understand(request)
            groups = grouped(requests)
        else:
            groups = [requests] if requests else []
        items = [Item(group, self._turns + place) for place, group in enumerate(groups)]
        self._turns += len(items)
        return items

    def _understand(self, request: Request) -> bool:
        """Make operation and body of what was given; what is wrong with it becomes its error."""
        if not request.operation and request.error is None:
            try:
                self._settings.defaults.read(request)
            except BadRequestError as error:
                request.error = error
        return request.error is None

    def _carry_out(self, item: Item) -> None:
        """Ask what is to be asked, and deliver what has come of it."""
        self.under_way.append(item)
        try:
            self._asked(item)
        finally:
            self.under_way.remove(item)

    def _asked(self, item: Item) -> None:
        requests, results = item.requests, []
        if not all([self._understand(request) for request in requests]):
            results = [Result(request, 0, 0.0, request.error) for request in requests if request.error is not None]
            requests = [request for request in requests if request.error is None]
        outcomes: List[Outcome] = []
        again: List[Request] = []
        started = time.monotonic()
        if requests:
            item.attempts += 1
            outcomes = ask(self._provider, requests)
        now = time.monotonic()
        note = None
        with self._lock:
            for request, answer, error in outcomes:
                result = Result(request, item.attempts, now - item.begun, error)
                if answer is not None:
                    result.answered(*answer)
                elif error is not None and not self._is_over(item, error, now):
                    again.append(request)
                    continue
                results.append(result)
            for result in results:
                tokens = self.totals.add(result, now - started)
                if result.error is None:
                    self.pace.answered(started, now - started, tokens)
            if again and error is not None:
                note = self._failed(item, again, error, started, now)
            elif outcomes:
                note = self._answered(started, now)
        if note is not None:
            self._notice(note)
        self._done(item, results, not again)

    def _done(self, item: Item, results: List[Result], whole: bool) -> None:
        if not self._settings.ordered:
            for result in results:
                self._deliver(result)
            return
        item.results += results
        if whole:
            with self._order:
                self._held[item.turn] = item
                while self._turn in self._held:
                    for result in sorted(self._held.pop(self._turn).results, key=lambda result: result.number):
                        self._deliver(result)
                    self._turn += 1

    # ------------------------------------------------------------ what failed (under the lock)

    def _is_over(self, item: Item, error: BridgeError, now: float) -> bool:
        """Tell whether a request is not asked again: by its own fault, or because patience has ended."""
        if is_final(error, self._settings.at_most_once):
            return True
        if item.failing_since is None:
            item.failing_since = now
        return self._over(item.failing_since, now) and (self.outage is None or not is_away(error))

    def _failed(
        self, item: Item, again: List[Request], error: BridgeError, started: float, now: float
    ) -> Optional[str]:
        """Have requests asked again; return what is to be said where that begins an outage."""
        item.requests = again
        self._backlog.add(item, now + pause(error, item.attempts))
        if is_refusal(error):
            self.pace.refused(started)
        self._streak += 1
        if self.outage is not None:
            self.outage.longer(error)
        elif self._streak >= max(3, self.running):
            self.outage = _Outage(error, now)
            patience = self._settings.patience
            return "%s: %s; trying again%s" % (
                "no server answers" if is_away(error) else "no request succeeds", error,
                " for " + span(patience) if patience else "")
        return None

    def _answered(self, started: float, now: float) -> Optional[str]:
        """Note that a server has answered; return what is to be said where that ends an outage."""
        self._streak = 0
        outage = self.outage
        if outage is None or started < outage.since:  # the last answers of a server that was going away
            return None
        self.outage = None
        self.totals.away_seconds += now - outage.since
        self._backlog.hurry(now)
        return "a server answers again, after %s" % span(now - outage.since)
