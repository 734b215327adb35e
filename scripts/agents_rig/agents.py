"""Install coding agents and SDKs from their registries, and run a session of each through the gateway.

The upstream follows a script (see `upstream`); each agent has to write a file, run a command, and come to its end,
through a server that is busy at first, with reasoning, two calls at once and a long answer. Exit codes: 0 all sessions
ended well, 1 one did not, 2 wrong usage, 77 nothing could be installed.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence

from .sessions import AGENTS, PROGRAMS, Agent, filled
from .upstream import FILE, LAST, LINE, Upstream

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMPOSSIBLE = 77
LONGEST = 240.0  # seconds for a session
INSTALLING = 1800.0


def say(line: str) -> None:
    print("agents: " + line, flush=True)


def cache() -> pathlib.Path:
    """Find the folder that keeps what is installed: VLLM_BRIDGE_AGENTS_CACHE, else one in the user's cache."""
    given = os.environ.get("VLLM_BRIDGE_AGENTS_CACHE")
    folder = pathlib.Path(given) if given else pathlib.Path.home() / ".cache" / "vllm_bridge" / "agents"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def install(agent: Agent) -> Optional[str]:
    """Install an agent into a folder of its own; return why that was impossible."""
    folder = cache() / agent.name
    if (folder / "done").exists():
        return None
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    commands: List[List[str]] = []
    if agent.npm:
        (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        commands.append(["npm", "install", "--no-audit", "--no-fund", *agent.npm])
    if agent.pip:
        commands.append([sys.executable, "-m", "venv", str(folder / "venv")])
        commands.append([str(folder / "venv" / "bin" / "pip"), "install", "-q", *agent.pip])
    with open(folder / "install.log", "wb") as log:
        for command in commands:
            say("%s: %s" % (agent.name, " ".join(command[:4])))
            try:
                code = subprocess.call(command, cwd=str(folder), stdout=log, stderr=log, timeout=INSTALLING)
            except (OSError, subprocess.TimeoutExpired) as failure:
                return str(failure)
            if code:
                return "%s ended with %d (%s)" % (command[0], code, folder / "install.log")
    (folder / "done").touch()
    return None


@contextmanager
def gateway(upstream: Upstream) -> Iterator[str]:
    """Run the gateway in front of the upstream; lend its address."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = "http://127.0.0.1:%d" % port
    with open(upstream.folder + ".log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm_bridge", "serve", "--port", str(port), "--upstream", upstream.url,
             "--alias", "claude-*=coder", "--log-format", "json"],
            cwd=str(ROOT), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(url + "/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def statuses(folder: str) -> Dict[str, int]:
    """Count the gateway's answers by method, path and status."""
    counts: Dict[str, int] = {}
    with open(folder + ".log", encoding="utf-8") as file:
        for line in file:
            entry: Dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if "method" in entry:
                name = "%s %s %s" % (entry["method"], entry["path"], entry["status"])
                counts[name] = counts.get(name, 0) + 1
    return counts


def session(agent: Agent, folder: pathlib.Path) -> List[str]:
    """Run one agent; return what was wrong."""
    home, work, made = folder / "home", folder / "work", cache() / agent.name
    for place in (home, work):
        place.mkdir(parents=True)
    for program in PROGRAMS.glob("*.mjs"):  # a module finds its packages beside it
        shutil.copy(str(program), str(made / program.name))
    upstream = Upstream(str(work))
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    try:
        with gateway(upstream) as url:
            places = {"gateway": url, "home": str(home), "node": str(made / "node_modules" / ".bin"),
                      "python": str(made / "venv" / "bin")}
            for name, text in agent.files.items():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(filled(text, places), encoding="utf-8")
            environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            environ.update({"HOME": str(home), "PWD": str(work)}, **{
                name: filled(value, places) for name, value in agent.environ.items()})
            command = [filled(part, places) for part in agent.command]
            command = [str(made / part) if part.endswith(".mjs") else part for part in command]
            began = time.monotonic()
            try:
                done = subprocess.run(command, cwd=str(work), env=environ, stdin=subprocess.DEVNULL, timeout=LONGEST,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                output, code = done.stdout.decode("utf-8", "replace"), done.returncode
            except subprocess.TimeoutExpired as failure:
                output, code = (failure.stdout or b"").decode("utf-8", "replace"), -1
            seconds = time.monotonic() - began
    finally:
        upstream.shutdown()
        upstream.server_close()
    (folder / "output.txt").write_text(output, encoding="utf-8")
    (folder / "requests.json").write_text(json.dumps(upstream.requests, indent=1), encoding="utf-8")
    counts = statuses(str(work))
    asked = ", ".join("%d × %s" % (count, name) for name, count in counts.items())
    say("%s: %.0f s, %s" % (agent.name, seconds, asked))
    return problems(agent, work, code, output, upstream, counts)


def problems(agent: Agent, work: pathlib.Path, code: int, output: str, upstream: Upstream,
             counts: Dict[str, int]) -> List[str]:
    """Say what a session should have done and has not."""
    note = work / FILE
    wrong = ["vLLM would have refused it: %s" % reason for reason in upstream.refused]
    wrong += ["the gateway answered %s" % name for name in counts if name.endswith((" 500", " 502"))]
    if code:
        wrong.append("it ended with %d" % code)
    if not note.exists() or LINE not in note.read_text(encoding="utf-8"):
        wrong.append("the file is not written")
    if LAST.split(":")[0] not in output and agent.name != "aider":
        wrong.append("its last words are not there")
    if len(upstream.requests) < agent.turns:
        wrong.append("it made %d requests" % len(upstream.requests))
    return wrong


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run scripts/agents."""
    names = [agent.name for agent in AGENTS]
    parser = argparse.ArgumentParser(
        prog="scripts/agents", description="Run coding agents and SDKs through the gateway, in front of a script.",
        epilog="What is installed (about 2 GB) stays in VLLM_BRIDGE_AGENTS_CACHE. Exit code 77: nothing to be had.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these (%s)" % ", ".join(names))
    parser.add_argument("--into", type=pathlib.Path, metavar="FOLDER", help="keep what each said and sent there")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in names]
    if unknown:
        parser.error("no agent is called %s" % unknown[0])
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.into or pathlib.Path(temporary)
        failed, missing, ran = [], [], 0
        for agent in AGENTS:
            if args.names and agent.name not in args.names:
                continue
            why = install(agent)
            if why is not None:
                say("%s: cannot be installed: %s" % (agent.name, why))
                missing.append(agent.name)
                continue
            ran += 1
            wrong = session(agent, folder / agent.name)
            failed += [agent.name] if wrong else []
            for line in wrong:
                say("%s: FAILED: %s" % (agent.name, line))
    say("%d ended well, %d did not%s" % (ran - len(failed), len(failed),
                                         "; not installed: " + ", ".join(missing) if missing else ""))
    return 1 if failed else 0 if ran else IMPOSSIBLE
