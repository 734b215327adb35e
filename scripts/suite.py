"""The steps of ./scripts/test: linters and coverage on this Python, then the tests on the Pythons given as arguments.

A test that failed runs once more, with the others that failed: on a busy machine a limit of time may have passed. The
summary names those that passed then. The last line counts tests like pytest; a linter or a gate that failed counts as
one failure. Exit code 0 or 1.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from types import FrameType
from typing import Any, Dict, List, Optional

RERUN = 10  # failures of a suite up to which they run once more
LIMIT = 1800.0  # seconds for one suite; a quiet machine needs a tenth
TITLE = """
import platform, requests, urllib3
print("Python %s, requests %s, urllib3 %s" % (platform.python_version(), requests.__version__, urllib3.__version__))
"""
RUNNING: List["subprocess.Popen[bytes]"] = []


class Suite:
    """One run of pytest in a process group of its own; its output is shown now, or kept for later."""

    def __init__(self, python: str, arguments: List[str], live: bool) -> None:
        self.title = "the environment of %s" % python
        self.code: Optional[int] = None
        self.counts: Dict[str, int] = {}
        self.last = "no result"
        self.output = b""
        self.unsteady: List[str] = []
        self._live = live
        self._python = python
        self._arguments = arguments
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> None:
        """Wait for its end; interruptible."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    @property
    def ok(self) -> bool:
        return self.code == 0

    def _run(self) -> None:
        try:
            self.title = subprocess.check_output([self._python, "-c", TITLE]).decode().strip()
        except (OSError, subprocess.CalledProcessError):
            self.last = "could not be made"
            return
        self._say(("\n== %s ==\n" % self.title).encode())
        with tempfile.TemporaryDirectory() as cache:
            keep = ["-o", "cache_dir=" + cache]
            self.code = self._pytest(keep + self._arguments)
            self._count()
            failures = self.counts.get("failed", 0) + self.counts.get("error", 0) + self.counts.get("errors", 0)
            if self.code == 1 and 0 < failures <= RERUN:
                self._again(keep, failures)

    def _again(self, keep: List[str], failures: int) -> None:
        first, counts = self.last, self.counts
        names = re.findall(r"^(?:FAILED|ERROR) (\S+)", self.output.decode("utf-8", "replace"), re.MULTILINE)
        self._say(b"\n-- what failed, once more --\n")
        code = self._pytest(keep + ["--last-failed", "--last-failed-no-failures=none"])
        self._count()
        if code == 0:
            self.unsteady = names
            self.code = 1 if b"FAIL Required test coverage" in self.output else 0
            counts["passed"] = counts.get("passed", 0) + failures
            counts = {word: number for word, number in counts.items() if not re.match("failed|error", word)}
        self.last, self.counts = first, counts

    def _pytest(self, arguments: List[str]) -> int:
        process = subprocess.Popen(
            [self._python, "-m", "pytest", "-q"] + arguments,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        RUNNING.append(process)
        limit = threading.Timer(LIMIT, stop, [process])
        limit.daemon = True
        limit.start()
        assert process.stdout is not None
        with process.stdout:
            while True:
                block = os.read(process.stdout.fileno(), 65536)
                if not block:
                    break
                self._say(block)
        code = process.wait()
        limit.cancel()
        RUNNING.remove(process)
        return code

    def _say(self, block: bytes) -> None:
        self.output += block
        if self._live:
            show(block)

    def _count(self) -> None:
        lines = self.output.decode("utf-8", "replace").splitlines()
        results = [line.strip("= ") for line in lines if re.search(r"\b\d+ [a-z]+.* in \d[\d.]*s\b", line)]
        if results:
            self.last = results[-1]
            self.counts = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", self.last)}


def show(block: bytes) -> None:
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
    here = Suite(sys.executable, ["--cov=vllm_bridge", "--cov-report=term"], live=True)
    here.wait()
    others = []
    for python in pythons:  # one after the other: the tests measure time limits, and want the machine for themselves
        others.append(Suite(python, [], live=True))
        others[-1].wait()
    passed = skipped = 0
    for suite in [here] + others:
        summary.append("%s: %s" % (suite.title, suite.last))
        summary += ["    passed when run again: %s" % name for name in suite.unsteady]
        bad = suite.counts.get("failed", 0) + suite.counts.get("error", 0) + suite.counts.get("errors", 0)
        if not suite.ok and not bad:
            summary.append("    exit code %s: without a failed test it is the coverage, or the time limit" % suite.code)
            bad = 1
        failed += bad
        passed += suite.counts.get("passed", 0)
        skipped += suite.counts.get("skipped", 0)
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
