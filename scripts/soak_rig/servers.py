"""The processes of a soak run: two stand-ins that can be killed, and the gateway that is watched."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import IO, Any, Dict, List, NamedTuple

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent
START_WITHIN = 60.0  # seconds
STOP_WITHIN = 60.0
# seconds that the gateway waits for a stand-in: more than a busy machine needs, less than the silence of !stall
SILENCE = 6


class Failed(Exception):
    """A process did not do what it was started for."""


def environment() -> Dict[str, str]:
    """Return an environment without settings that would change what is measured."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("VLLM_") and "proxy" not in name.lower()}
    return {**kept, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}


class StandIn:
    """A stand-in for vLLM that can be killed and started again on its port."""

    def __init__(self) -> None:
        self.port = 0
        self._process: Any = None
        self.start()

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self.port

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [sys.executable, "-m", "vllm_bridge.echo", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=str(CHECKOUT))
        line = self._process.stdout.readline().decode().strip()
        if not line.startswith("http"):
            raise Failed("the stand-in did not start")
        self.port = int(line.rpartition(":")[2])

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Sample(NamedTuple):
    """What a process holds. ``memory`` is its resident set in KiB."""

    memory: int
    threads: int
    descriptors: int


class Gateway:
    """The gateway in front of the stand-ins."""

    def __init__(self, urls: List[str], api_key: str, folder: pathlib.Path) -> None:
        network = {"default_request_timeout_in_seconds": SILENCE, "retry_backoff_initial_ms": 20}
        config = folder / "config.json"
        config.write_text(json.dumps({"providers": {"vllm": {
            "keys": [{"vllm_key_config": {"url": url}} for url in urls],
            "network_config": network,
        }}}))
        (folder / "keys").write_text(api_key + "\n")
        self.log = folder / "gateway.log"
        self._out: IO[bytes] = open(str(folder / "access.log"), "wb")
        self._errors: IO[bytes] = open(str(self.log), "wb")
        command = [sys.executable, "-m", "vllm_bridge", "serve", "--port", "0", "--config", str(config),
                   "--api-key-file", str(folder / "keys"), "--log-format", "json", "--graceful-timeout", "10"]
        self._process = subprocess.Popen(
            command, stdout=self._out, stderr=self._errors, env=environment(), cwd=str(CHECKOUT)
        )
        self.port = self._listening(folder / "access.log")

    def _listening(self, log: pathlib.Path) -> int:
        end = time.monotonic() + START_WITHIN
        while time.monotonic() < end and self._process.poll() is None:
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                if entry.get("message") == "listening":
                    return int(entry["url"].rpartition(":")[2])
            time.sleep(0.05)
        raise Failed("the gateway did not start: %s" % self.log.read_text())

    def sample(self) -> Sample:
        """Return what the process holds now."""
        folder = pathlib.Path("/proc/%d" % self._process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Sample(int(status["VmRSS"].split()[0]), int(status["Threads"]), len(list((folder / "fd").iterdir())))

    def stop(self) -> int:
        """Ask it to stop and return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._out.close()
            self._errors.close()

    def complaints(self) -> List[str]:
        """Return what it logged as an error: nothing that clients or servers do is one."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        odd = [line for line in self.log.read_text().splitlines() if not line.startswith("{")]
        return odd + ["%s %s" % (entry["message"], entry.get("traceback", "")) for entry in entries
                      if entry["level"] in ("ERROR", "CRITICAL")]
