"""The benchmark's own parts: the fake server's replies, the load client, one client, medians and ratios."""

import json
import pathlib
import subprocess
import sys
from typing import Any, Iterator

import pytest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent / "scripts"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc and uses epoll")


@pytest.fixture(scope="module")
def rig() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        from bench_rig import clients, comparisons, fleet, gateways, processes, report

        yield {"clients": clients, "comparisons": comparisons, "fleet": fleet, "gateways": gateways,
               "processes": processes, "report": report}
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def address(rig: Any) -> Iterator[str]:
    with rig["processes"].Upstream() as found:
        yield found


def test_every_reader_reads_the_same_from_the_fake_server(rig: Any, address: str) -> None:
    clients = rig["clients"]
    vectors = set()
    for order in ("bench:burst:7", "bench:each:7"):
        found = {}
        for name in ("ours", "requests", "http.client", "floor"):
            doings = clients.CLIENTS[name](address)
            found[name] = ("".join(text or "" for text in doings["stream"](order)), doings["chat"]())
            if name in ("ours", "requests"):
                vectors.add(doings["embed"]())
            doings["close"]()
        assert len(set(found.values())) == 1, found
        assert found["ours"][0].count(" ") == 7
    assert len(vectors) == 1


def test_one_client_is_measured(rig: Any, address: str) -> None:
    command = [sys.executable, str(SCRIPTS / "bench_rig" / "clients.py"), "floor", address, "0.01"]
    row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    assert row["name"] == "floor"
    assert all(row[measure] > 0 for measure in ("chat", "chunk", "embed", "first_chunk", "peak_mb"))


def test_the_load_client_counts_whole_replies_and_streams(rig: Any, address: str) -> None:
    gateways = rig["gateways"]
    for test, plan in gateways.tests("direct", 0.3, 3).items():
        found = gateways._load({**plan, "port": int(address.rpartition(":")[2]), "seconds": 0.3, "ramp": 0.0})
        assert found["bad"] == 0, (test, found["why"])
        if test == "paced":
            assert found["events_per_second"] > 0
        else:
            assert found["done"] > 0


def test_medians_and_ratios(rig: Any) -> None:
    report, comparisons = rig["report"], rig["comparisons"]
    rows = [{"name": "ours", "round": n, "chat": value, "chunk": 4.0} for n, value in enumerate((1.0, 9.0, 2.0))]
    medians = report.medians(rows + [{"name": "requests", "round": 0, "chat": 8.0}])
    assert medians == {"ours": {"chat": 2.0, "chunk": 4.0}, "requests": {"chat": 8.0}}
    small = comparisons.Comparison("a", "chat", "requests")
    assert comparisons.figure(small, medians) == 0.25
    assert comparisons.figure(small._replace(difference=True), medians) == -6.0
    assert comparisons.figure(small._replace(over="ours", under="chunk"), medians) == 0.5
    assert comparisons.figure(small._replace(over=""), medians) == 2.0
    missing = small._replace(over="openai")
    assert comparisons.figure(missing, medians) is None
    assert report.comparison_table(report.compared([small, missing], medians)).splitlines()[2:] == ["| a | 0.25 × |"]


def test_the_command_names_its_parts() -> None:
    run = subprocess.run([sys.executable, str(SCRIPTS / "bench"), "nothing"], stderr=subprocess.PIPE, timeout=60)
    assert run.returncode == 2 and b"library, imports, gateways" in run.stderr


def test_conversations_reach_a_fleet_through_a_gateway(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = rig["fleet"]
    few = ["--sessions", "3", "--turns", "2", "--system", "640", "--systems", "1", "--answer", "2,3", "--think", "0"]
    monkeypatch.setitem(fleet.MIXTURES, "A", fleet.Mixture("few", ["--slow", "1,2"], few))
    told: Any = []
    (row,) = fleet.rounds(1, told.append, ["ours round_robin"], ["A"])
    assert told == ["fleet: round 1 of 1"]
    assert (row["name"], row["failed"]) == ("A ours round_robin", 0)
    assert 0 < row["first_mean_ms"] <= row["first_p99_ms"] <= 1000 * row["done_s"]
    assert 0 < row["cached"] < 1


def test_ways_are_told_beside_the_best_of_the_others(rig: Any) -> None:
    def row(name: str, seconds: float) -> Any:
        return {"name": name, "done_s": seconds, "first_mean_ms": 100 * seconds, "first_p99_ms": 200 * seconds,
                "cached": 0.5, "failed": 0}

    rows = [row("A ours expected_wait", 3), row("A ours expected_wait", 1), row("A ours expected_wait", 2),
            row("A smg cache_aware", 4), row("A vllm-router random", 8), row("A vllm-router sticky header", 1)]
    lines = rig["fleet"].table(rows).splitlines()
    assert "| ours expected_wait | 2 | 200 | 400 | 0.5 | 0 |" in lines
    assert "all done, s: 2, the best of the others 4 (smg cache_aware): 0.50 ×" in lines
