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
        from bench_rig import clients, comparisons, gateways, processes, report

        yield {"clients": clients, "comparisons": comparisons, "gateways": gateways, "processes": processes,
               "report": report}
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
