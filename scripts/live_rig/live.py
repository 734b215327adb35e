"""Run tests/live against real vLLM servers: prepare, start, wait, test, stop.

The servers run in phases. A model or a server that cannot be made ends its own phase; the others still run, and the
end names each that did not pass.

Exit codes: 0 passed, 1 failed, 2 wrong usage, 77 vLLM cannot be installed here, 130 interrupted.
"""

import argparse
import http.client
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.parse
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import environment, weights
from .environment import Impossible, say
from .servers import PLANS, Server, wait_until_ready

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMPOSSIBLE = 77
LONGEST_PHASE = 1800
# Two at a time: two cores and 8 GB carry no more.
PHASES: List[Tuple[str, ...]] = [("chat", "guarded"), ("embed", "rerank"), ("whisper",)]
FATAL = "test_faults.py"
NEEDS: Dict[str, Tuple[str, ...]] = {
    "test_chat.py": ("chat",),
    "test_text.py": ("chat",),
    "test_messages.py": ("chat",),
    "test_tokens.py": ("chat",),
    "test_responses.py": ("chat",),
    "test_errors.py": ("chat",),
    "test_abort.py": ("chat",),
    "test_guarded.py": ("guarded",),
    FATAL: ("chat", "guarded"),
    "test_embed.py": ("embed",),
    "test_rerank.py": ("rerank",),
    "test_audio.py": ("whisper",),
    "test_fleet.py": ("embed", "rerank"),
}
ROUTES = {"chat": "/v1/chat/completions", "embed": "/v1/embeddings", "whisper": "/v1/audio/transcriptions",
          "rerank": "/v1/rerank"}


def stop_on_signals() -> None:
    """Turn a request to end into an exception, so that every server is stopped on the way out."""
    def leave(number: int, frame: Optional[types.FrameType]) -> None:
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def run_folder() -> pathlib.Path:
    """Make a folder for this run's logs and state files; old ones of which nothing runs are removed."""
    runs = environment.cache() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for old in sorted(runs.iterdir())[:-5]:
        if not any(Server.load(file).members() for file in old.glob("*.json")):
            shutil.rmtree(str(old), ignore_errors=True)
    folder = runs / ("%s-%d" % (time.strftime("%Y%m%d-%H%M%S"), os.getpid()))
    folder.mkdir()
    return folder


def stop_kept() -> None:
    """Stop every server that an earlier run left."""
    for file in (environment.cache() / "runs").glob("*/*.json"):
        server = Server.load(file)
        if server.members():
            server.stop()
            say("stopped %s on %s" % (server.name, server.url))


def described(server: Server) -> Dict[str, Any]:
    """Say what the tests must know of a server that was started here."""
    return {"url": server.url, "model": server.state["model"], "key": server.state["key"], "scripted": True,
            "state": str(server.file)}


def get_json(url: str, path: str, key: Optional[str]) -> Any:
    """Fetch one JSON document."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=20)
    headers = {"Authorization": "Bearer " + key} if key else {}
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError("%s%s answered %d" % (url, path, answer.status))
        return json.loads(body.decode("utf-8"))
    finally:
        connection.close()


def discover(url: str, key: Optional[str]) -> Dict[str, Any]:
    """Find out which part a given server can play, by its routes and its first model."""
    url = url.rstrip("/")
    if url.endswith("/v1"):
        url = url[:-3]
    try:
        first = get_json(url, "/v1/models", key)["data"][0]
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError) as failure:
        raise RuntimeError("no vLLM at %s: %s" % (url, failure))
    try:
        paths = get_json(url, "/openapi.json", key)["paths"]
    except RuntimeError:
        paths = []                             # --disable-fastapi-docs hides the routes
    role = next((name for name, path in ROUTES.items() if path in paths), "chat")
    # The tiny models' folders are named after them, so a kept server is known again.
    scripted = os.path.basename(str(first.get("root"))).startswith("model-" + role)
    say("%s serves %s; testing it as %s%s" % (url, first["id"], role, "" if scripted else ", without the fixed texts"))
    return {role: {"url": url, "model": first["id"], "key": key, "scripted": scripted, "state": None}}


def pytest(found: Dict[str, Any], arguments: Sequence[str], without: Sequence[str] = ()) -> int:
    """Run the tests that these servers suffice for."""
    files = [name for name, needs in NEEDS.items() if all(need in found for need in needs) and name not in without]
    if not files:
        say("no tests for %s" % ", ".join(found))
        return 0
    env = dict(os.environ, VLLM_BRIDGE_LIVE=json.dumps(found), PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")
    env.pop("VLLM_BASE_URL", None)         # the tests name the servers themselves
    env.pop("VLLM_API_KEY", None)
    command = [environment.client_python(), "-m", "pytest", "-q", "-rs", "--durations=5", "-p", "no:cacheprovider",
               "--import-mode=prepend", "-o", "pythonpath="]   # the live tests share a conftest and cases by name
    targets = [str(ROOT / "tests" / "live" / name) for name in files]
    process = subprocess.Popen(command + list(arguments) + targets, cwd=str(ROOT), env=env)
    try:
        return process.wait(timeout=LONGEST_PHASE)
    except subprocess.TimeoutExpired:
        say("the tests have not ended after %d s" % LONGEST_PHASE)
        return 1
    finally:
        if process.poll() is None:
            process.terminate()                # pytest stops the gateways that it started
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_models(phases: Sequence[Sequence[str]], python: str) -> Dict[str, str]:
    """Make the models of these servers; give the reason of each that could not be made."""
    broken: Dict[str, str] = {}
    for name in dict.fromkeys(PLANS[server].model for phase in phases for server in phase):
        try:
            weights.model(name, python)
        except (OSError, RuntimeError) as failure:
            say(str(failure))
            broken[name] = str(failure)
    return broken


def run_phase(names: Sequence[str], python: str, folder: pathlib.Path, arguments: Sequence[str], keep: bool) -> int:
    """Start these servers, test, and stop them whatever happens, unless they are to stay."""
    servers = [Server.planned(name, python, folder) for name in names]
    stay = False
    try:
        for server in servers:
            server.start()
        wait_until_ready(servers)
        # The last tests kill their servers, so they are left out where these are to stay.
        code = pytest({server.name: described(server) for server in servers}, arguments, [FATAL] if keep else [])
        stay = keep
        return code
    finally:
        if stay:
            for server in servers:
                say("%s stays on %s (model %s%s)" % (server.name, server.url, server.state["model"],
                                                     ", key %s" % server.state["key"] if server.state["key"] else ""))
            say("stop them with: %s" % stop_command())
        else:
            # A test may have started one again: the file knows the process that runs now.
            for server in servers:
                fresh = Server.load(server.file) if server.file.exists() else server
                fresh.stop()
                server.stop()


def stop_command() -> str:
    """Write the command that finds these servers from any shell: their state files are in this run's cache."""
    return "VLLM_BRIDGE_LIVE_CACHE=%s scripts/live --stop" % shlex.quote(str(environment.cache()))


def run_phases(phases: Sequence[Sequence[str]], python: str, broken: Dict[str, str],
               args: argparse.Namespace) -> List[str]:
    """Run every phase whose models are not `broken`, and give a line for each reason why one did not pass."""
    folder = run_folder()
    failed: List[str] = []
    for phase in phases:
        reasons = [broken[model] for model in dict.fromkeys(PLANS[name].model for name in phase) if model in broken]
        if not reasons:
            try:
                code = run_phase(phase, python, folder, args.pytest, args.keep)
                reasons = ["pytest ended with %d" % code] if code else []
            except (OSError, RuntimeError) as failure:
                reasons = [str(failure)]
                say(reasons[0])
        failed += ["%s: %s" % (" and ".join(phase), why) for why in reasons]
    return failed


def phases_of(names: Sequence[str]) -> List[Tuple[str, ...]]:
    """Reduce the phases to the servers that were asked for, all of them if none was."""
    if not names:
        return PHASES
    kept = [tuple(name for name in phase if name in names) for phase in PHASES]
    return [phase for phase in kept if phase]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/live", description="Run tests/live against real vLLM servers that it starts itself.",
        epilog="Exit code 77: vLLM cannot be installed here. VLLM_BASE_URL (and VLLM_API_KEY) test a server that is "
               "there. VLLM_BRIDGE_LIVE_VLLM (%s) and VLLM_BRIDGE_LIVE_TORCH (%s) choose another version of vLLM, and "
               "of the PyTorch it needs. VLLM_BRIDGE_LIVE_CACHE, VLLM_BRIDGE_LIVE_PYTHON, VLLM_BRIDGE_TORCH_INDEX: see "
               "scripts/live_rig/environment.py. Arguments after -- go to pytest."
               % (environment.VLLM, environment.TORCH))
    everyone = [name for phase in PHASES for name in phase]
    parser.add_argument("--servers", default="", metavar="NAMES",
                        help="only these, separated by commas (%s)" % ", ".join(everyone))
    parser.add_argument("--keep", action="store_true",
                        help="leave the servers running and print their URLs (at most two; default chat,guarded)")
    parser.add_argument("--stop", action="store_true", help="stop what an earlier --keep left")
    parser.add_argument("--clean", action="store_true", help="stop the servers and remove everything that is kept")
    parser.add_argument("--prepare", action="store_true", help="only make the environments and the models")
    parser.add_argument("pytest", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.servers = [name for name in args.servers.split(",") if name]
    for name in args.servers:
        if name not in PLANS:
            parser.error("no server is called %s (there are %s)" % (name, ", ".join(everyone)))
    if args.keep and not args.servers:
        args.servers = list(PHASES[0])
    if args.keep and len(args.servers) > 2:
        parser.error("--keep runs two servers at most")
    return args


def run(args: argparse.Namespace) -> int:
    """Do what was asked and give the exit code."""
    if args.stop or args.clean:
        stop_kept()
        if args.clean:
            shutil.rmtree(str(environment.cache()), ignore_errors=True)
            say("removed %s" % environment.cache())
        return 0
    base = os.environ.get("VLLM_BASE_URL")
    if base:
        return pytest(discover(base, os.environ.get("VLLM_API_KEY")), args.pytest)
    began = time.monotonic()
    phases = [tuple(args.servers)] if args.keep else phases_of(args.servers)
    python = environment.server_python()
    environment.client_python()
    broken = make_models(phases, python)
    failed = list(broken.values()) if args.prepare else run_phases(phases, python, broken, args)
    for line in failed:
        say("FAILED: " + line)
    result = "FAILED" if failed else "prepared" if args.prepare else "passed"
    say("%s in %.0f s" % (result, time.monotonic() - began))
    return 1 if failed else 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run scripts/live."""
    args = parse(sys.argv[1:] if argv is None else argv)
    stop_on_signals()
    try:
        return run(args)
    except Impossible as why:
        print("live: vLLM cannot be installed here: %s" % why, file=sys.stderr)
        return IMPOSSIBLE
    except RuntimeError as failure:
        print("live: %s" % failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("live: interrupted; the servers are stopped", file=sys.stderr)
        return 130
