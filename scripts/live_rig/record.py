"""Record the transcripts under tests/data again: replay the request of each against a server of its kind.

A file is written only where something other than ids, times and the last digits of numbers differs from what it holds,
so `git diff` shows what changed in vLLM. A new version of vLLM gets a folder of its own, and what differs from the
version before is printed.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import environment, transcripts, wire
from .environment import Impossible, say
from .live import IMPOSSIBLE, ROOT, get_json, run_folder, stop_on_signals
from .servers import Server, wait_until_ready

DATA = ROOT / "tests" / "data"
AT_ONCE = 2


def folder_of(version: str) -> pathlib.Path:
    return DATA / ("vllm-" + version)


def newest() -> pathlib.Path:
    """Find the folder of the newest version that has transcripts."""
    folders = [path for path in DATA.glob("vllm-*") if path.is_dir()]
    return max(folders, key=lambda path: [int(part) for part in path.name[5:].split(".") if part.isdigit()])


def load(folder: pathlib.Path) -> Dict[str, Dict[str, Any]]:
    """Read all transcripts of a folder, those first that make something which others ask for."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: (transcripts.response_id(item[1]) is None, item[0])))


class Tally:
    """What came of a run."""

    def __init__(self) -> None:
        self.replayed = 0
        self.changed = 0
        self.written = 0
        self.left: Dict[str, List[str]] = {}


def choose(found: Dict[str, Dict[str, Any]], only: Sequence[str], tally: Tally) -> Dict[str, List[str]]:
    """Sort the transcripts that can be recorded by the plan of their server; note why the others cannot."""
    created = {one for one in map(transcripts.response_id, found.values()) if one}
    plans: Dict[str, List[str]] = {}
    for name, record in found.items():
        if only and not any(name.startswith(prefix) for prefix in only):
            continue
        why = transcripts.left_out(name, record, created)
        if why is None:
            plans.setdefault(transcripts.plan_of(name), []).append(name)
        else:
            tally.left.setdefault(why, []).append(name)
    return plans


def record_one(server: Server, version: str, name: str, old: Dict[str, Any], ids: Dict[str, str]) -> Dict[str, Any]:
    """Replay one request and give the new transcript."""
    request = transcripts.renamed(old["request"], ids)
    port = int(server.state["port"])
    content = transcripts.request_bytes(request, port)
    if name in transcripts.AGAIN:
        wire.exchange(port, content, request["method"])
    reply = wire.exchange(port, content, request["method"])
    new = wire.as_record(name, "vLLM " + version, request, reply)
    before, after = transcripts.response_id(old), transcripts.response_id(new)
    if before and after:
        ids[before] = after
    return new


def record_plan(server: Server, names: Sequence[str], found: Dict[str, Dict[str, Any]], args: argparse.Namespace,
                tally: Tally) -> None:
    """Replay every transcript of one server and write those that say something else than before."""
    version = str(get_json(server.url, "/version", server.state["key"])["version"])
    ids: Dict[str, str] = {}
    for name in names:
        old = found[name]
        new = record_one(server, version, name, old, ids)
        target = (args.into or folder_of(version)) / (name + ".json")
        changes = transcripts.changes(old, new)
        for change in changes[:3]:
            say("%s: %s" % (name, change))
        if changes:
            tally.changed += 1
        if (changes or not target.exists()) and (args.into or not args.check):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(transcripts.dumped(new), encoding="utf-8")
            tally.written += 1
        tally.replayed += 1


def pairs(plans: Dict[str, List[str]]) -> List[Tuple[str, ...]]:
    names = sorted(plans)
    return [tuple(names[place:place + AT_ONCE]) for place in range(0, len(names), AT_ONCE)]


def run(args: argparse.Namespace) -> int:
    """Record what was asked for; 1 if --check found a difference."""
    found = load(newest())
    tally = Tally()
    plans = choose(found, args.names, tally)
    if not plans:
        raise RuntimeError("no transcript that can be recorded is called %s" % " or ".join(args.names))
    python = environment.server_python()
    folder = run_folder()
    for pair in pairs(plans):
        servers = [Server.planned(name, python, folder) for name in pair]
        try:
            for server in servers:
                server.start()
            wait_until_ready(servers)
            for server in servers:
                say("%s: %d transcripts" % (server.name, len(plans[server.name])))
                record_plan(server, plans[server.name], found, args, tally)
        finally:
            for server in servers:
                server.stop()
    for why, names in sorted(tally.left.items()):
        say("not recorded, because %s: %s" % (why, ", ".join(names)))
    say("%d recorded: %d say something else than before, %d files written" % (
        tally.replayed, tally.changed, tally.written))
    return 1 if args.check and tally.changed else 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run scripts/record."""
    parser = argparse.ArgumentParser(
        prog="scripts/record", description="Record the transcripts under tests/data again, from real vLLM servers.",
        epilog="VLLM_BRIDGE_LIVE_VLLM and VLLM_BRIDGE_LIVE_TORCH choose another version of vLLM, and of the PyTorch it "
               "needs. Exit code 77: vLLM cannot be installed here.")
    parser.add_argument("names", nargs="*", help="only transcripts whose names begin so")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    parser.add_argument("--into", type=pathlib.Path, metavar="FOLDER", help="write there instead of tests/data")
    args = parser.parse_args(argv)
    stop_on_signals()
    try:
        return run(args)
    except Impossible as why:
        print("record: vLLM cannot be installed here: %s" % why, file=sys.stderr)
        return IMPOSSIBLE
    except RuntimeError as failure:
        print("record: %s" % failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: interrupted; the servers are stopped", file=sys.stderr)
        return 130
