"""The command: ``scripts/bench [library] [imports] [gateways] [batch] [fleet]``."""

import argparse
import json
import platform
import sys
import time
from typing import Any, Dict, List, Optional

from . import batches, comparisons, fleet, gateways, library, peers, report

CLIENT_COLUMNS = (
    ("chat", "small chat call, CPU µs"), ("chunk", "streamed chunk, CPU µs"), ("embed", "32 × 1024 embeddings, CPU µs"),
    ("responses", "Responses event, CPU µs"), ("first_chunk", "first chunk after its bytes, µs"),
    ("peak_mb", "peak MB"), ("import_ms", "import, CPU ms"), ("import_mb", "import, MB"), ("modules", "modules"),
)
GATEWAY_COLUMNS = (
    ("requests_per_core", "requests per core second"), ("requests_per_s", "requests/s"),
    ("burst_per_core", "burst streams per core second"), ("burst_per_s", "burst streams/s"),
    ("each_per_core", "streams of a write per event, per core second"), ("each_per_s", "the same, /s"),
    ("embed_per_core", "32 × 1024 embeddings per core second"), ("embed_per_s", "the same, /s"),
    ("paced_events_per_s", "paced events/s"), ("paced_first_ms", "first token after its write, ms"),
    ("idle_mb", "idle MB"), ("peak_mb", "loaded MB"), ("cold_start_s", "cold start, s"),
)
BATCH_COLUMNS = (
    ("lines_per_core", "lines per core second"), ("lines_per_s", "lines/s"), ("peak_mb", "peak MB"),
    ("resume_s", "going on behind 1,000,000 answers, s"), ("resume_mb", "the same, peak MB"),
)
PARTS = ("library", "imports", "gateways", "batch")
LONG = ("fleet",)  # half an hour: only where it is asked for


def main(argv: Optional[List[str]] = None) -> int:
    """Measure what is asked for, print the table and write the JSON; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the project beside its peers.")
    wanted = "what to measure: %s (default: all), fleet (how gateways choose a server)" % ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", metavar="part", help=wanted)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds for each figure of a round (default: 1)")
    parser.add_argument("--gateway", action="append", choices=list(gateways.GATEWAYS), help="only this gateway; repeat")
    parser.add_argument("--way", action="append", metavar="NAME", help="of fleet only those that begin so; repeat")
    mixtures = [*fleet.MIXTURES, *fleet.CHECKED]
    parser.add_argument("--mixture", action="append", choices=mixtures, help="of fleet only this one; repeat")
    parser.add_argument("--quick", action="store_true", help="one short round: does it all run?")
    parser.add_argument("--json", help="where the JSON goes (default: last.json in the cache)")
    parser.add_argument("--install-peers", action="store_true", help="install what is missing into %s" % peers.CACHE)
    args = parser.parse_args(argv)
    if args.install_peers:
        return 1 if peers.install(note) else 0
    unknown = sorted(set(args.parts) - set(PARTS + LONG))
    if unknown:
        parser.error("no part %s; there are %s" % (unknown[0], ", ".join(PARTS + LONG)))
    if not sys.platform.startswith("linux"):
        parser.error("it reads CPU times and memory from /proc, so it needs Linux")
    if args.quick:
        args.rounds, args.seconds = 1, 0.1
    if "fleet" in args.parts:
        rows = fleet.rounds(args.rounds, note, args.way, args.mixture)
        print(fleet.table(rows))
        result = {"rows": rows}
    else:
        result = measured(args.parts or list(PARTS), args.rounds, args.seconds, args.gateway)
        print_result(result)
    path = args.json or str(peers.CACHE / "last.json")
    if not args.json:
        peers.CACHE.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, ensure_ascii=False)
    note("written to %s" % path)
    return 0


def measured(parts: List[str], rounds: int, seconds: float, only: Optional[List[str]] = None) -> Dict[str, Any]:
    """Return the JSON document of a run: comparisons, medians and every round's rows."""
    rows: List[Dict[str, Any]] = []
    if "library" in parts:
        rows += library.rounds(rounds, seconds, note)
    if "imports" in parts:
        rows += library.import_rounds(rounds, note)
    clients = report.medians(rows)
    loaded: List[Dict[str, Any]] = []
    if "gateways" in parts:
        loaded = gateways.rounds(rounds, seconds * 2, note, only)
    fronts = report.medians(loaded)
    answered = batches.rounds(rounds, min(1.0, seconds), note) if "batch" in parts else []
    jobs = report.medians(answered)
    return {
        "python": platform.python_version(), "machine": platform.machine(), "rounds": rounds, "seconds": seconds,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "comparisons": report.compared(comparisons.LIBRARY, clients) + report.compared(comparisons.GATEWAY, fronts)
        + report.compared(comparisons.BATCH, jobs),
        "clients": clients, "gateways": fronts, "batch": jobs, "rows": rows + loaded + answered,
    }


def print_result(result: Dict[str, Any]) -> None:
    """Print the ratios, then the figures they come from."""
    print(report.comparison_table(result["comparisons"]))
    if result["clients"]:
        print("\n" + report.figure_table("client", result["clients"], CLIENT_COLUMNS))
    if result["gateways"]:
        print("\n" + report.figure_table("gateway", result["gateways"], GATEWAY_COLUMNS))
    if result["batch"]:
        print("\n" + report.figure_table("a file of requests", result["batch"], BATCH_COLUMNS))


def note(text: str) -> None:
    """Say on the error output how far it is."""
    print(text, file=sys.stderr, flush=True)
