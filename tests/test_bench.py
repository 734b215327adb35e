"""The benchmark's own parts: the fake server's replies, the load client, one client, medians and verdicts."""

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
        from bench_rig import clients, gateways, goals, processes, report

        yield {"clients": clients, "gateways": gateways, "goals": goals, "processes": processes, "report": report}
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


def test_medians_ratios_and_verdicts(rig: Any) -> None:
    report, goals = rig["report"], rig["goals"]
    rows = [{"name": "ours", "round": n, "chat": value} for n, value in enumerate((1.0, 9.0, 2.0))]
    medians = report.medians(rows + [{"name": "requests", "round": 0, "chat": 8.0}])
    assert medians == {"ours": {"chat": 2.0}, "requests": {"chat": 8.0}}
    less = goals.Goal("a", ("ours", "chat"), ("requests", "chat"), 0.2, 0.3)
    more = less._replace(goal=0.3, bar=0.2, most=False)
    assert goals.figure(less, medians) == 0.25
    assert goals.verdict(less, 0.25) == goals.verdict(more, 0.25) == "bar met"
    assert goals.verdict(less, 0.1) == goals.verdict(more, 0.4) == "goal met"
    assert goals.verdict(less, 0.4) == goals.verdict(more, 0.1) == "missed"
    assert goals.verdict(less, goals.figure(less._replace(over=("openai", "chat")), medians)) == "not measured"
    assert goals.figure(less._replace(difference=True), medians) == -6.0
    (row,) = report.goal_rows([less], medians, judged=False)
    assert row["verdict"] == "" and "0.25" in report.goal_table([row])


def test_the_command_names_its_parts() -> None:
    run = subprocess.run([sys.executable, str(SCRIPTS / "bench"), "nothing"], stderr=subprocess.PIPE, timeout=60)
    assert run.returncode == 2 and b"library, imports, gateways" in run.stderr
