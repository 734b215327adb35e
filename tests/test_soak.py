"""scripts/soak: a run of seconds, and what it counts as a fault."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from soak_rig import soak, traffic  # noqa: E402
from soak_rig.servers import Sample  # noqa: E402

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the soak run reads /proc")


def test_a_short_run_is_flat_and_clean() -> None:
    minutes = "1" if os.environ.get("VLLM_BRIDGE_LONG") else "0.02"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "soak"), "--minutes", minutes, "--clients", "4"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=300,
    )
    assert done.returncode == 0, done.stdout
    for expected in ("failures that were not: 0", "flat and clean", "memory KiB", "threads", "descriptors", "!die"):
        assert expected in done.stdout


def test_which_failures_are_explained() -> None:
    tally = traffic.Tally()
    quiet = traffic.Case("chat", traffic.models, frozenset((traffic.OK,)))
    fault = traffic.Case("!error 429", traffic.models, frozenset(("429",)))
    for case, outcome, lost, away in (
        (quiet, "ok", False, False), (fault, "429", False, False), (quiet, "502", True, True),
        (fault, "502", False, True),
    ):
        tally.add(case, outcome, lost, away)
    assert not tally.unexplained and sum(tally.injected.values()) == 3
    for case, outcome, lost, away in (
        (quiet, "502", False, False), (quiet, "502", False, True), (fault, "ok", False, False),
        (quiet, "500", True, True), (fault, "502", False, False), (quiet, "wrong answer", True, True),
    ):
        tally.add(case, outcome, lost, away)
    assert sum(tally.unexplained.values()) == 6


def test_an_outage_covers_the_requests_that_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now: List[float] = [10.0]
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now[0])
    outages = traffic.Outages()
    outages.killing()
    now[0] = 11.0
    outages.killed()
    now[0] = 20.0
    outages.back()
    assert [outages.lost(begin, begin + 1) for begin in (8, 9, 10, 11, 12)] == [False, True, True, True, False]
    assert [outages.away(begin, begin + 1) for begin in (8, 9, 15, 20, 21)] == [False, True, True, True, False]


@pytest.mark.parametrize("last, faults", [
    ((50000, 3, 12), []), ((58000, 3, 12), ["memory"]), ((50000, 4, 12), ["threads"]),
    ((50000, 3, 29), ["descriptors"]),
])
def test_what_is_not_flat(last: Any, faults: List[str]) -> None:
    run = soak._Soak.__new__(soak._Soak)
    run._clients = 8
    run._samples = [Sample(48000, 3, 12), Sample(49000, 3, 14), Sample(*last)]
    assert [fault.partition(":")[0] for fault in run._growth()] == faults
