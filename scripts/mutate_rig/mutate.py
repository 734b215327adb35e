"""Make changes one at a time in copies of the project and run the tests that run the changed line."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Dict, List, NamedTuple, Sequence, Tuple

from .mutations import Mutation, applied, mutations

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIRST_TESTS = 60  # of those that run a line: the module's own before others, and the quick before the slow
LIMIT = 300.0  # seconds for the tests of one change; a change that makes them hang is noticed
COPIED = ("vllm_bridge", "tests", "scripts", "setup.cfg", "setup.py", "README.md", "CHANGELOG.md", "pyproject.toml")
KILLED, SURVIVED, UNTESTED = "killed", "survived", "no test runs the line"


class Change(NamedTuple):
    """A change and the file that it is made in, from the project's root on."""

    path: str
    mutation: Mutation

    def __str__(self) -> str:
        new = self.mutation.text if len(self.mutation.text) < 100 else self.mutation.text[:97] + "..."
        return "%s:%d  %s  ->  %s" % (self.path, self.mutation.line, self.mutation.what[:100], new.replace("\n", " "))


class Tests:
    """Which tests run which lines, by one run of them with coverage's contexts."""

    def __init__(self, folder: pathlib.Path, targets: Sequence[str]) -> None:
        self._by_line: Dict[Tuple[str, int], List[str]] = {}
        data = folder / "coverage"
        report = folder / "report.json"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--cov=vllm_bridge", "--cov-context=test",
            "--cov-report=json:%s" % report, "--cov-fail-under=0", "--durations=0", "-vv", *targets,
        ]
        config = folder / "coveragerc"
        config.write_text("[run]\nsource = vllm_bridge\n[json]\nshow_contexts = True\n")
        done = subprocess.run(
            command + ["--cov-config=%s" % config], cwd=str(ROOT), env=dict(os.environ, COVERAGE_FILE=str(data)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        )
        if not report.exists():
            raise SystemExit("the tests could not be run:\n%s" % done.stdout[-3000:])
        self._seconds = _durations(done.stdout)
        for path, file in json.loads(report.read_text())["files"].items():
            for line, contexts in file["contexts"].items():
                tests = sorted({context.partition("|")[0] for context in contexts if context})
                self._by_line[(path, int(line))] = tests

    def of(self, path: str, mutation: Mutation) -> List[str]:
        """Return the tests that run one of the changed lines, those of the module first."""
        found = {test for line in range(mutation.line, mutation.end_line + 1)
                 for test in self._by_line.get((path, line), ())}
        folder, _, name = path.rpartition("/")
        own = "%s/test_%s" % (folder.replace("vllm_bridge", "tests", 1), name)
        if not found:  # the line runs at import: the module's own tests are to notice, or those beside it
            return [own if (ROOT / own).exists() else own.rpartition("/")[0]]
        return sorted(found, key=lambda test: (not test.startswith(own), self._seconds.get(test, 0.0)))


def _durations(output: str) -> Dict[str, float]:
    seconds: Dict[str, float] = {}
    for line in output.splitlines():
        parts = line.split(None, 2)
        if len(parts) == 3 and parts[0].endswith("s") and parts[1] in ("call", "setup", "teardown"):
            try:
                seconds[parts[2].strip()] = seconds.get(parts[2].strip(), 0.0) + float(parts[0][:-1])
            except ValueError:
                pass
    return seconds


class Copy:
    """A copy of the project in which changes are made, one after the other."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder
        folder.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(str(source), str(folder / name), ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(str(source), str(folder / name))

    def outcome(self, change: Change, tests: Sequence[str]) -> str:
        """Make a change, run the tests, take it back; return what became of it."""
        if not tests:
            return UNTESTED
        file = self.root / change.path
        source = file.read_text(encoding="utf-8")
        file.write_text(applied(source, change.mutation), encoding="utf-8")
        try:
            survived = self._pass(tests[:FIRST_TESTS]) and (
                len(tests) <= FIRST_TESTS or self._pass(tests[FIRST_TESTS:]))
            return SURVIVED if survived else KILLED
        finally:
            file.write_text(source, encoding="utf-8")

    def _pass(self, tests: Sequence[str]) -> bool:
        process = subprocess.Popen(
            [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests], cwd=str(self.root),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )
        try:
            return process.wait(LIMIT) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except OSError:
                pass
            process.wait()


def choose(modules: Sequence[str], count: int, seed: int) -> List[Change]:
    """Choose changes by lot, over all modules whose path begins with one of the given names."""
    every = []
    for path in sorted((ROOT / "vllm_bridge").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if any(name.startswith("vllm_bridge/" + module) for module in modules):
            every += [Change(name, one) for one in mutations(path.read_text(encoding="utf-8"))]
    return sorted(random.Random(seed).sample(every, min(count, len(every))))


def main() -> int:
    """Measure, print what survived, and return 1 if it is more than --least allows."""
    parser = argparse.ArgumentParser(
        prog="./scripts/mutate", description="Change the package in one place at a time and see whether a test fails.",
        epilog="A change that survives is a test that is missing, or one that changes nothing: look at each.")
    parser.add_argument("modules", nargs="*", default=["http1", "config", "api", "client", "sse", "errors", "vllm"],
                        help="folders or files of the package (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="changes, chosen by lot (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the lot (%(default)s)")
    parser.add_argument("--least", type=float, default=0.0, help="percent of changes that tests must notice")
    parser.add_argument("--tests", nargs="*", default=["tests"], help="tests to choose from (default: all)")
    parser.add_argument("--list", action="store_true", help="only print the changes")
    asked = parser.parse_args()
    changes = choose([name.replace("vllm_bridge/", "") for name in asked.modules], asked.count, asked.seed)
    if asked.list:
        print("\n".join(map(str, changes)))
        return 0
    outcomes: Dict[str, List[Change]] = {KILLED: [], SURVIVED: [], UNTESTED: []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        print("which test runs which line: one run of the tests ...", flush=True)
        tests = Tests(folder, asked.tests)
        copies = [Copy(folder / ("copy%d" % number)) for number in range(min(2, os.cpu_count() or 1))]
        with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:
            def tried(change: Change) -> Tuple[Change, str]:
                copy = copies.pop()
                try:
                    return change, copy.outcome(change, tests.of(change.path, change.mutation))
                finally:
                    copies.append(copy)

            for change, outcome in pool.map(tried, changes):
                outcomes[outcome].append(change)
                if outcome != KILLED:
                    print("%s: %s" % (outcome, change), flush=True)
    percent = 100.0 * len(outcomes[KILLED]) / max(1, len(changes))
    print("%d changes, %d noticed (%.0f %%), %d survived, %d in lines that no test runs; seed %d" % (
        len(changes), len(outcomes[KILLED]), percent, len(outcomes[SURVIVED]), len(outcomes[UNTESTED]), asked.seed))
    return int(percent < asked.least)
