"""A batch from Python: requests from any iterable, results as they come."""

import threading
from queue import Empty, Full, Queue
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Sized, Union

from ..config.validate import number, whole
from ..errors import ConfigError
from ..provider import BaseOpenAIProvider
from ..vllm import VLLMProvider
from .engine import Engine, Settings
from .pace import MOST
from .progress import progress_of
from .request import OPERATIONS, Defaults, Request
from .result import Result

__all__ = ["run", "settings_of"]

_UNREAD = 64  # results that wait to be taken, where no concurrency is given
_LOOK = 0.5  # seconds


def run(
    requests: Iterable[Union[Mapping[str, Any], str, bytes]],
    provider: Optional[BaseOpenAIProvider] = None,
    *,
    model: Optional[str] = None,
    url: Optional[str] = None,
    parameters: Optional[Mapping[str, Any]] = None,
    concurrency: Optional[int] = None,
    join: int = 1,
    patience: float = 3600.0,
    at_most_once: bool = False,
    ordered: bool = False,
    progress: bool = False,
) -> Iterator[Result]:
    """Ask all `requests` and yield a `Result` for each, as they come or in their order (`ordered`).

    A request is a body, a line of OpenAI's batch format, or a string, which is a prompt; `model`, `url` and
    `parameters` fill in what it leaves out. They are read as they are needed, one at a time, by the threads that ask.
    Without `concurrency` the number of requests at a time is found; up to `join` embeddings or reranks go in one. What
    fails by no fault of its own is asked again for `patience` seconds (0: for ever), with `at_most_once` only if no
    server can have begun with it. Where no server answers for so long the last error is raised, as is what reading
    `requests` raises. `progress` shows a line, by tqdm where that is installed. Closing the iterator breaks everything
    off. Raises `ConfigError`.
    """
    settings = settings_of(Defaults(model, url, parameters or {}), concurrency, join, patience, at_most_once, ordered)
    return _results(requests, provider, settings, progress)


def settings_of(
    defaults: Defaults, concurrency: Optional[int], join: int, patience: float, at_most_once: bool, ordered: bool
) -> Settings:
    """Return the settings of a batch, checked; raise `ConfigError`."""
    if defaults.url is not None and defaults.url not in OPERATIONS:
        raise ConfigError("url: %s is not offered; there are %s" % (defaults.url, ", ".join(OPERATIONS)))
    if concurrency is not None:
        whole(concurrency, "concurrency", least=1, most=MOST)
    whole(join, "join", least=1)
    return Settings(defaults, concurrency, join, number(patience, "patience"), at_most_once, ordered)


class _Numbered:
    """The requests of an iterable."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._requests = iter(requests)
        self._number = 0

    def take(self, most: int) -> List[Request]:
        """Return the next requests."""
        found: List[Request] = []
        for given in self._requests:
            self._number += 1
            key = given.get("custom_id") if isinstance(given, Mapping) else None
            found.append(Request(self._number, given, key.encode("utf-8") if isinstance(key, str) else None))
            if len(found) == most:
                break
        return found


def _results(
    requests: Iterable[Any], provider: Optional[BaseOpenAIProvider], settings: Settings, progress: bool
) -> Iterator[Result]:
    asked = VLLMProvider() if provider is None else provider
    batch = _Driven(requests, asked, settings, progress)
    try:
        yield from batch.results()
    finally:
        batch.close()
        if provider is None:
            asked.close()


class _Driven:
    """An engine with a thread that drives it, and the results that have not been taken yet."""

    def __init__(
        self, requests: Iterable[Any], provider: BaseOpenAIProvider, settings: Settings, progress: bool
    ) -> None:
        self._ready: "Queue[Optional[Result]]" = Queue(settings.concurrency or _UNREAD)
        self._engine = Engine(_Numbered(requests), provider, settings, self._deliver)
        total = len(requests) if isinstance(requests, Sized) else None
        self._shown = progress_of(self._engine, total) if progress else None
        self._thread = threading.Thread(target=self._drive, name="vllm-bridge-batch-driver", daemon=True)
        self._thread.start()

    def results(self) -> Iterator[Result]:
        """Yield results as they come; raise what ended the batch before its end."""
        while True:
            try:
                result = self._ready.get(timeout=_LOOK)
            except Empty:
                if self._thread.is_alive():
                    continue
                break
            if result is None:
                break
            yield result
        self._thread.join()
        failure = self._engine.failure or self._engine.given_up
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Break off what is under way."""
        self._engine.cancel()
        self._thread.join()
        if self._shown is not None:
            self._shown.close()

    def _drive(self) -> None:
        try:
            self._engine.drive(None if self._shown is None else self._shown.update)
        except BaseException as error:
            self._engine.fail(error)
        self._deliver(None)

    def _deliver(self, result: Optional[Result]) -> None:
        while not self._engine.cancelled:
            try:
                return self._ready.put(result, timeout=_LOOK)
            except Full:
                pass
