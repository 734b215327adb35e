"""Gateways and their ways to choose a server: each in front of a fresh fleet of make-believe servers, by mixtures."""

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, NamedTuple, Optional

from .gateways import PATIENCE, Gateway, Start, free_port
from .peers import python_of
from .processes import HERE, OTHERS, Failed, environment, pinned, run

SESSION = "X-Session-ID: s{session}"
COLUMNS = (("done_s", "all done, s"), ("first_mean_ms", "first token, mean, ms"), ("first_p99_ms", "p99, ms"),
           ("cached", "out of a cache"), ("failed", "failed"))
COMPARED = COLUMNS[:3]


class Mixture(NamedTuple):
    """Servers and conversations: the flags of fleet_servers.py and fleet_load.py."""

    what: str
    servers: List[str]
    load: List[str]


MIXTURES = {
    "A": Mixture("four servers alike", [], []),
    "B": Mixture("one of four servers three times slower", ["--slow", "1,1,1,3"], []),
    "C": Mixture("one long system prompt for all", [], ["--system", "8000", "--systems", "1"]),
}
CHECKED = {  # for finding out whether a way fits more than the mixtures that it was found with
    "short": Mixture("short questions", [], ["--system", "400", "--user", "200", "--turns", "4"]),
    "full": Mixture("small caches", ["--blocks", "1500"], []),
    "two": Mixture("two servers, one half as fast", ["--slow", "1,2"], ["--sessions", "32"]),
    "long": Mixture("long answers", [], ["--answer", "100,300", "--sessions", "32", "--turns", "4"]),
}
ROUTER = ("random", "round_robin", "power_of_two", "cache_aware", "consistent_hash", "sticky_least_loaded")
SMG = ("cache_aware", "least_load", "power_of_two", "random", "round_robin", "prefix_hash")
OURS = ("expected_wait", "least_requests", "round_robin", "random")


def ways(only: Optional[List[str]] = None) -> List[str]:
    """Return the names of what there is to be measured: a program, its way, and perhaps a header."""
    names = ["ours " + way for way in OURS]
    if python_of("vllm-router") is not None:
        names += ["vllm-router " + way for way in ROUTER] + ["vllm-router sticky_least_loaded header"]
    if python_of("smg") is not None:
        names += ["smg " + way for way in SMG]
    return [name for name in names if only is None or any(name.startswith(each) for each in only)]


def rounds(
    count: int, note: Any, only: Optional[List[str]] = None, mixtures: Optional[List[str]] = None
) -> List[Dict[str, Any]]:
    """Measure each way once a round in each mixture; the rows' ``name`` is the mixture's and the way's."""
    rows: List[Dict[str, Any]] = []
    for number in range(count):
        for mixture in mixtures or list(MIXTURES):
            wanted = ways(only)
            for name in wanted if number % 2 == 0 else wanted[::-1]:
                try:
                    rows.append({"name": "%s %s" % (mixture, name), "round": number, **_measured(mixture, name)})
                except (Failed, subprocess.TimeoutExpired) as failure:
                    note("failed: %s" % failure)
        note("fleet: round %d of %d" % (number + 1, count))
    return rows


def table(rows: List[Dict[str, Any]]) -> str:
    """Return the medians as Markdown, and under each mixture ours over the best of the others without a header."""
    lines = []
    for mixture, (what, _, _) in {**MIXTURES, **CHECKED}.items():
        mine = [row for row in rows if row["name"].startswith(mixture + " ")]
        if not mine:
            continue
        lines += ["| %s: %s | %s |" % (mixture, what, " | ".join(heading for _, heading in COLUMNS)),
                  "|---" * (len(COLUMNS) + 1) + "|"]
        for name in dict.fromkeys(row["name"] for row in mine):
            cells = ["%.3g" % median(mine, name, measure) for measure, _ in COLUMNS]
            lines.append("| %s | %s |" % (name.partition(" ")[2], " | ".join(cells)))
        lines += ["", *(_beside(mine, mixture, measure, heading) for measure, heading in COMPARED), ""]
    return "\n".join(lines)


def median(rows: List[Dict[str, Any]], name: str, measure: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(row[measure] for row in rows if row["name"] == name and row[measure] is not None)


def _beside(rows: List[Dict[str, Any]], mixture: str, measure: str, heading: str) -> str:
    ours = "%s ours %s" % (mixture, OURS[0])
    others = {row["name"] for row in rows if " ours " not in row["name"] and not row["name"].endswith("header")}
    if not others or not any(row["name"] == ours for row in rows):
        return "%s: nothing to compare with" % heading
    best = min(others, key=lambda name: median(rows, name, measure))
    mine, theirs = median(rows, ours, measure), median(rows, best, measure)
    return "%s: %.3g, the best of the others %.3g (%s): %.2f ×" % (
        heading, mine, theirs, best.partition(" ")[2], mine / theirs)


def _measured(mixture: str, name: str) -> Dict[str, Any]:
    _, servers, load = {**MIXTURES, **CHECKED}[mixture]
    fleet = subprocess.Popen(
        [sys.executable, str(HERE / "fleet_servers.py"), *servers], stdout=subprocess.PIPE, env=environment(),
        preexec_fn=pinned(OTHERS))
    try:
        assert fleet.stdout is not None
        ports = [int(port) for port in fleet.stdout.readline().split(b",")]
        with Front(name, ports) as front:
            header = ["--header", SESSION] if name.endswith("header") else []
            url = "http://127.0.0.1:%d/v1" % front.port
            command = [sys.executable, str(HERE / "fleet_load.py"), "--url", url, *load, *header]
            found: Dict[str, Any] = json.loads(run(command, OTHERS, 180))
            return found
    finally:
        fleet.terminate()
        fleet.wait()
        if fleet.stdout is not None:
            fleet.stdout.close()


class Front(Gateway):
    """A gateway in front of several servers, choosing among them in its way."""

    def __init__(self, name: str, ports: List[int]) -> None:
        self.name = name
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="bench-fleet-")
        self.start = _start(name, self.port, ["http://127.0.0.1:%d" % port for port in ports])

    def _await(self, deadline: float) -> None:
        """Wait until it lists the model, and for a moment longer: some look at their servers one after another."""
        while time.monotonic() < deadline and self.process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/v1/models")
                if b'"sim"' in connection.getresponse().read().replace(b"vllm/", b""):
                    time.sleep(1.0)
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        raise Failed("%s does not answer within %d s" % (self.name, PATIENCE))


def _start(name: str, port: int, urls: List[str]) -> Start:
    program, way = name.split(" ")[:2]
    if program == "ours":
        upstreams = [word for url in urls for word in ("--upstream", url)]
        command = [sys.executable, "-m", "vllm_bridge", "serve", "--port", str(port), "--routing", way]
        return Start(command + upstreams)
    python = python_of(program)
    assert python is not None
    command = [str(python.parent / program)] + (["launch"] if program == "smg" else []) + [
        "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *urls, "--policy", way, "--log-level", "error",
        "--prometheus-port", str(free_port()), "--max-concurrent-requests", "4096",
    ]
    return Start(command)
