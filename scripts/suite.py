"""The steps of ./scripts/test: linters and coverage on this Python, then the tests on the Pythons given as arguments.

The tests of one Python are three runs of pytest at a time: the files of `WAITING` mostly wait for limits of time, those
of `STARTING` for programs, the others compute. A test that failed runs once more, alone, with the others that failed:
on a busy machine a limit of time may have passed. The summary names those that passed then. The last line counts tests
like pytest; a linter or a gate that failed counts as one failure. Exit code 0 or 1. ``VLLM_BRIDGE_LONG=1`` holds for
the first Python alone.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import Any, Counter, Dict, List, Optional

RERUN = 10  # failures of a suite up to which they run once more
LIMIT = 1800.0  # seconds for one run; a quiet machine needs a tenth
LONG = "VLLM_BRIDGE_LONG"
WAITING = """
client/test_call client/test_reply client/test_session client/test_stream echo/test_echo echo/test_server
gateway/test_app gateway/test_faces gateway/test_journal gateway/test_load gateway/test_responses gateway/test_streams
http1/test_wait server/test_connection server/test_listener test_hostile_client test_hostile_upstream test_soak
""".split()
STARTING = """
cli/test_cli engines/test_engines gateway/test_run server/test_workers test_bench test_live_rig test_mutate
test_packaging test_platforms test_processes test_readme test_releasing test_scripts test_secrets test_stranger
test_zipapp
""".split()
TITLE = """
import platform, requests, urllib3
print("Python %s, requests %s, urllib3 %s" % (platform.python_version(), requests.__version__, urllib3.__version__))
"""
BAD = ("failed", "error", "errors")
RUNNING: List["subprocess.Popen[bytes]"] = []


class Run:
    """One run of pytest in a process group of its own; its output is kept until `show`, then shown as it comes."""

    def __init__(self, python: str, arguments: List[str], environ: Dict[str, str]) -> None:
        self.code: Optional[int] = None
        self.counts: Dict[str, int] = {}
        self._output = b""
        self._shown: Optional[int] = None
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [python, "-m", "pytest", "-q"] + arguments, env=environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        RUNNING.append(self._process)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def show(self) -> None:
        """Write what came so far, and from now on what comes, to standard output, until the end."""
        with self._lock:
            write(self._output)
            self._shown = len(self._output)
        while self._thread.is_alive():  # not one long join, which no signal would interrupt
            self._thread.join(0.2)

    @property
    def text(self) -> str:
        return self._output.decode("utf-8", "replace")

    @property
    def failed(self) -> List[str]:
        """The names of what failed, as the summary of pytest lists them."""
        return re.findall(r"^(?:FAILED|ERROR) (\S+)", self.text, re.MULTILINE)

    def _read(self) -> None:
        limit = threading.Timer(LIMIT, stop, [self._process])
        limit.daemon = True
        limit.start()
        assert self._process.stdout is not None
        with self._process.stdout:
            while True:
                block = os.read(self._process.stdout.fileno(), 65536)
                if not block:
                    break
                with self._lock:
                    self._output += block
                    if self._shown is not None:
                        write(block)
        code = self._process.wait()
        limit.cancel()
        RUNNING.remove(self._process)
        results = re.findall(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in \d[\d.]*s\b", self.text, re.MULTILINE)
        if results:
            self.counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", results[-1])}
        self.code = code


class Suite:
    """All tests on one Python."""

    def __init__(self, python: str, environ: Dict[str, str], covered: bool = False) -> None:
        self.title = "the environment of %s" % python
        self.last = "could not be made"
        self.counts: Counter[str] = Counter()
        self.problems: List[str] = []  # what is wrong beside tests that failed
        self.unsteady: List[str] = []
        self._python = python
        self._environ = environ
        self._covered = covered

    def run(self) -> None:
        try:
            self.title = subprocess.check_output([self._python, "-c", TITLE]).decode().strip()
        except (OSError, subprocess.CalledProcessError):
            self.problems.append("")
            return
        write(("\n== %s ==\n" % self.title).encode())
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            runs = [self._start(folder, number, files) for number, files in enumerate(parts())]
            for run in runs:
                run.show()
                self.counts.update(run.counts)
            if self._covered:
                self._measure(folder, len(runs))
            failures = sum(self.counts[word] for word in BAD)
            if 0 < failures <= RERUN and all(run.code in (0, 1) for run in runs):
                for number, run in enumerate(runs):
                    if run.code:
                        self._again(folder, number, run)
        for run in runs:
            if run.code and not any(run.counts.get(word) for word in BAD):
                self.problems.append("exit code %s: without a failed test it is the time limit" % run.code)
        found = ", ".join("%d %s" % (self.counts[word], word) for word in sorted(self.counts) if self.counts[word])
        self.last = "%s in %.0fs" % (found or "no tests", time.monotonic() - started)

    def _start(self, folder: str, number: int, files: List[str]) -> Run:
        """Start one part of the tests."""
        environ = dict(self._environ)
        arguments = ["-o", "cache_dir=%s/%d" % (folder, number)]
        if self._covered:
            environ["COVERAGE_FILE"] = "%s/coverage.%d" % (folder, number)
            arguments += ["--cov=vllm_bridge", "--cov-report=", "--cov-fail-under=0"]  # the gate is for all parts
        return Run(self._python, arguments + files, environ)

    def _measure(self, folder: str, parts: int) -> None:
        """Report the coverage of all parts together, and hold it to the gate of setup.cfg."""
        environ = dict(self._environ, COVERAGE_FILE=folder + "/coverage")
        coverage = [self._python, "-m", "coverage"]
        files = ["%s/coverage.%d" % (folder, number) for number in range(parts)]
        if subprocess.call(coverage + ["combine", "-q"] + files, env=environ) or subprocess.call(
                coverage + ["report"], env=environ):
            self.problems.append("the coverage is too low, or could not be measured")

    def _again(self, folder: str, number: int, run: Run) -> None:
        """Run what failed once more; if it passes, it has passed."""
        write(b"\n-- what failed, once more --\n")
        again = Run(self._python, [
            "-o", "cache_dir=%s/%d" % (folder, number), "--last-failed", "--last-failed-no-failures=none",
        ], self._environ)
        again.show()
        if again.code == 0:
            self.unsteady += run.failed
            for word in BAD:
                self.counts["passed"] += run.counts.get(word, 0)
                self.counts[word] -= run.counts.get(word, 0)


def parts() -> List[List[str]]:
    """Return the arguments of the runs of pytest: all files but those of `WAITING` and `STARTING`, then those."""
    named = [[path for path in ("tests/%s.py" % name for name in names) if os.path.exists(path)]
             for names in (WAITING, STARTING)]
    return [["--ignore=" + path for files in named for path in files]] + [files for files in named if files]


def write(block: bytes) -> None:
    """Write to standard output at once."""
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def stop(process: Any) -> None:
    """End a suite and everything that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            pass


def on_signal(number: int, frame: Optional[FrameType]) -> None:
    """Leave in order on SIGTERM."""
    raise SystemExit(128 + number)


def run(pythons: List[str]) -> int:
    """Run everything and return the exit code."""
    summary: List[str] = []
    failed = 0
    for name, command in (
        ("flake8", ["flake8", "vllm_bridge", "tests", "scripts", "setup.py"]), ("mypy --strict", ["mypy"]),
    ):
        code = subprocess.call([sys.executable, "-m"] + command)
        summary.append("%s: %s" % (name, "ok" if code == 0 else "failed"))
        failed += code != 0
    short = {name: value for name, value in os.environ.items() if name != LONG}
    suites = [Suite(sys.executable, dict(os.environ), covered=True)] + [Suite(python, short) for python in pythons]
    passed = skipped = 0
    for suite in suites:  # one after the other: the tests measure time limits
        suite.run()
        summary.append("%s: %s" % (suite.title, suite.last))
        summary += ["    passed when run again: %s" % name for name in suite.unsteady]
        summary += ["    " + problem for problem in suite.problems if problem]
        failed += sum(suite.counts[word] for word in BAD) + len(suite.problems)
        passed += suite.counts["passed"]
        skipped += suite.counts["skipped"]
    print("\n" + "\n".join(summary))
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped), flush=True)
    return 1 if failed else 0


def main() -> int:
    """Run everything; leave nothing running, however it ends."""
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 130
    finally:
        for process in list(RUNNING):
            stop(process)


if __name__ == "__main__":
    sys.exit(main())
