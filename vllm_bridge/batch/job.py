"""The command over files: a file of requests in, a file of answers out, taken up again where it stopped."""

import json
import os
import signal
import stat
import threading
import time
from types import FrameType
from typing import Any, Callable, Dict, List, NamedTuple, NoReturn, Optional

from ..errors import AuthenticationError, BridgeError, ConfigError, NotFoundError, PermissionDeniedError
from ..provider import BaseOpenAIProvider
from .answers import Answered, line_of, text_line
from .asking import ask, is_away, is_refusal
from .engine import Engine, Settings
from .journal import Journal
from .lines import line_blocks
from .progress import Line, report, summary
from .request import Request
from .result import Result
from .source import FileSource
from .totals import span

__all__ = ["Files", "Job"]

_DONE, _FAILED, _WRONG, _STOPPED, _INTERRUPTED = 0, 1, 2, 3, 130
_GRACE = 5.0  # seconds that running answers have after Ctrl-C
_SYNC = 1.0  # seconds between two times that what is written is made to last
_LIST_TIMEOUT = 30.0
_PAUSE = 1.0  # seconds between two tries to list the models
_NAMES = 20  # models that a message names
_IDS = (b'{"id":"line-',)
_TEXTS = (b'"', b"null", b"[", b"{")


class Files(NamedTuple):
    """Where a job reads and writes; ``None`` for IN and OUT is standard input and output."""

    requests: Optional[str]
    answers: Optional[str]
    errors: Optional[str] = None
    report: Optional[str] = None
    retry_failed: Optional[str] = None
    text_out: bool = False


class _Terminated(BaseException):
    """SIGTERM has come."""


class Job:
    """One run of the command; `run` returns its exit code. Raises `ConfigError` for wrong usage.

    `say` gets what whoever runs it has to know; `quiet` leaves out progress and summary.
    """

    def __init__(
        self,
        provider: BaseOpenAIProvider,
        files: Files,
        settings: Settings,
        say: Callable[[str], None],
        quiet: bool = False,
    ) -> None:
        self._provider = provider
        self._files = files
        self._settings = settings
        self._quiet = quiet
        self._say = say
        self._open: List[Any] = []
        self._synced = time.monotonic()
        self._failed_before = 0
        self._texts = 0
        self._line: Optional[Line] = None

    def run(self) -> int:
        """Carry out the job."""
        try:
            return self._run()
        except KeyboardInterrupt:
            self._note("stopped before anything was sent")
            return _INTERRUPTED
        except ConfigError:
            raise
        except BridgeError as error:
            self._note(str(error))
            return _STOPPED
        finally:
            for file in self._open:
                file.close()

    def _run(self) -> int:
        files = self._files
        if files.text_out and files.retry_failed is not None:
            raise ConfigError("--retry-failed knows lines by what OUT says of them, which --text-out leaves out")
        source = FileSource(files.requests, self._settings.defaults)
        self._open.append(source)
        _check_apart(files, source.file)
        self._out = self._journal(files.answers)
        self._errors = None if files.errors is None else self._journal(files.errors)
        source.begin(self._answered(), self._texts)
        settings = self._settings
        if source.models:
            settings = settings._replace(defaults=settings.defaults._replace(model=self._model(source.models)))
        engine = Engine(source, self._provider, settings, self._write, self._note)
        self._line = Line(engine, source.total, source.skipped)
        code = self._driven(engine)
        if not self._quiet:
            self._line.close()
            self._note(summary(engine, source.skipped))
        if files.report is not None:
            with open(files.report, "w", encoding="utf-8") as file:
                json.dump(report(engine, source.skipped), file, indent=1)
                file.write("\n")
        return code

    def _journal(self, path: Optional[str]) -> Journal:
        journal = Journal(path)
        self._open.append(journal)
        return journal

    # ------------------------------------------------------------ before anything is sent

    def _answered(self) -> Answered:
        """Return what OUT, and the file of errors, hold already; the failures of an older OUT are not among it."""
        answered = Answered()

        def count(line: bytes) -> bool:
            self._texts += 1
            self._failed_before += line == b"null"
            return line.startswith(_TEXTS)

        if self._files.text_out:
            self._out.read(count, _TEXTS)
            return answered
        self._out.read(answered.read, _IDS)
        if self._errors is not None:
            self._errors.read(answered.read, _IDS)
        self._failed_before = answered.failed
        if self._files.retry_failed is not None:
            _read_old(self._files.retry_failed, answered)
        return answered

    def _model(self, asked: Dict[Optional[str], Request]) -> Optional[str]:
        """Return the model for lines that name none, once servers are there; raise if they have none of the others."""
        names = self._models()
        given = self._settings.defaults.model
        if names is None:
            return given
        there = ", ".join(names[:_NAMES]) or "none"
        if given is None and None in asked:
            if len(names) != 1:
                raise ConfigError("lines name no model, and there are several: name one with --model: %s" % there)
            given = names[0]
        unlisted = [name for name in asked if name is not None and not _is_there(name, names)]
        lacking = sorted(name for name in unlisted[:_NAMES] if self._is_refused(asked[name]))
        for name in lacking:
            text = "no server has the model %s; there are: %s" % (name, there)
            if len(lacking) == len(asked):
                raise ConfigError(text)
            self._note(text)
        return given

    def _is_refused(self, request: Request) -> bool:
        """Tell whether no server has the model of a request, by asking: some have more models than they list."""
        if request.operation in ("chat_completion", "text_completion"):
            request.body = {**request.body, "max_tokens": 1}
        error = ask(self._provider.with_options(max_retries=0), [request])[0][2]
        return isinstance(error, NotFoundError)

    def _models(self) -> Optional[List[str]]:
        """Return the names of the models, waiting for a server; ``None`` where servers do not tell."""
        provider = self._provider.with_options(max_retries=0, timeout=_LIST_TIMEOUT)
        began = time.monotonic()
        told = False
        while True:
            try:
                return [str(model.get("id")) for model in provider.list_models().data]
            except (ConfigError, AuthenticationError, PermissionDeniedError):
                raise
            except BridgeError as error:
                if not is_away(error) and not is_refusal(error):
                    return None
                patience = self._settings.patience
                if patience and time.monotonic() - began > patience:
                    raise
                if not told:
                    self._note("no server answers: %s; trying again%s" % (
                        error, " for " + span(patience) if patience else ""))
                told = True
            except (AttributeError, TypeError, ValueError):
                return None
            time.sleep(_PAUSE)

    # ------------------------------------------------------------ meanwhile, and at the end

    def _driven(self, engine: Engine) -> int:
        """Carry everything out and return the exit code."""
        handler = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGTERM, _terminated)
        try:
            engine.drive(lambda: self._tick(engine))
        except (KeyboardInterrupt, _Terminated) as error:
            self._interrupted(engine)
            return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _STOPPED
        finally:
            if handler is not None:
                signal.signal(signal.SIGTERM, handler)
        failure = engine.failure
        if isinstance(failure, ConfigError):
            self._note(str(failure))
            return _WRONG
        if isinstance(failure, OSError):
            self._note("the answers cannot be written: %s; what is written stays, the same command goes on" % (
                failure.strerror or failure))
            return _STOPPED
        if failure is not None:
            raise failure
        if engine.stopped is not None:
            self._note("stopped: %s; the same command goes on" % engine.stopped)
            return _STOPPED
        return _FAILED if engine.totals.failed or self._failed_before else _DONE

    def _interrupted(self, engine: Engine) -> None:
        """Let what is under way finish for some seconds, unless there is another Ctrl-C."""
        engine.stop("interrupted")
        try:
            if engine.under_way:
                self._note("stopping: what is under way has %g s; Ctrl-C again ends at once" % _GRACE)
            _wait_for(engine, _GRACE, lambda: self._tick(engine))
        except (KeyboardInterrupt, _Terminated):
            pass
        engine.cancel("interrupted")
        _wait_for(engine, 1.0, lambda: None)

    def _tick(self, engine: Engine) -> None:
        if self._line is not None and not self._quiet:
            self._line.update()
        now = time.monotonic()
        if now - self._synced > _SYNC:
            self._synced = now
            try:
                for journal in (self._out, self._errors):
                    if journal is not None:
                        journal.sync()
            except OSError as error:
                engine.fail(error)

    def _write(self, result: Result) -> None:
        failed = result.error is not None
        if self._files.text_out:
            self._out.append(text_line(result))
        if failed and self._errors is not None:
            self._errors.append(line_of(result))
        elif not self._files.text_out:
            self._out.append(line_of(result))

    def _note(self, text: str) -> None:
        if self._line is not None:
            self._line.clear()
        self._say(text)


def _terminated(number: int, frame: Optional[FrameType]) -> NoReturn:
    raise _Terminated()


def _wait_for(engine: Engine, seconds: float, tick: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while engine.under_way and time.monotonic() < end:
        time.sleep(0.02)
        tick()


def _check_apart(files: Files, requests: int) -> None:
    """Raise `ConfigError` where two of the files are one."""
    names = [name for name in (files.answers, files.errors, files.report, files.retry_failed) if name is not None]
    if len({os.path.realpath(name) for name in names}) < len(names):
        raise ConfigError("OUT, --errors, --report and --retry-failed must be different files")
    for name in names:
        try:
            same = os.path.samestat(os.stat(name), os.fstat(requests))
        except OSError:
            continue  # not there yet
        if same and stat.S_ISREG(os.fstat(requests).st_mode):
            raise ConfigError("%s is IN: give the answers a file of their own" % name)


def _read_old(path: str, answered: Answered) -> None:
    """Note what has been answered well in an older OUT, whose last line may be torn."""
    found = 0
    try:
        with open(path, "rb", buffering=0) as file:
            for lines in line_blocks(file.read):
                found += sum([answered.read(line, well=True) for line in lines if line is not None])
    except OSError as error:
        raise ConfigError("%s cannot be read: %s" % (path, error.strerror)) from None
    if not found:
        raise ConfigError("%s holds no answers" % path)


def _is_there(name: str, names: List[str]) -> bool:
    return name in names or (name.startswith("vllm/") and name[5:] in names)
