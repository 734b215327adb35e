"""Processes of the benchmark: started on a core of their own, watched through /proc, ended with their children."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
MEASURED = {CORES[-1]}  # what is measured runs on the last core,
OTHERS = set(CORES[:-1]) or MEASURED  # the fake server and the load on the others


class Failed(Exception):
    """A process did not do what it was started for; the message ends with what it wrote."""


def pinned(cores: Any) -> Optional[Callable[[], None]]:
    """Return what a child runs to stay on `cores`."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, cores)


def environment(**more: str) -> Dict[str, str]:
    """Return the environment for a measured process: this checkout importable, bytecode kept, no proxies."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "PYTHONHASHSEED")
    kept = {name: value for name, value in os.environ.items() if name not in dropped and "proxy" not in name.lower()}
    return {**kept, "PYTHONPATH": str(CHECKOUT), **more}


def run(command: Sequence[str], cores: Any, timeout: float, **more: str) -> str:
    """Run a command to its end and return what it printed; raises `Failed`."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=timeout,
        env=environment(**more), preexec_fn=pinned(cores),
    )
    if done.returncode:
        raise Failed("%s: %s" % (" ".join(map(str, command[:4])), done.stderr.strip()[-600:] or done.returncode))
    return done.stdout


class Upstream:
    """The fake vLLM in a process of its own: ``with Upstream() as address``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "upstream.py")], stdout=subprocess.PIPE, env=environment(),
            preexec_fn=pinned(OTHERS),
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> str:
        return "http://127.0.0.1:%d" % self.port

    def __exit__(self, *exc_info: object) -> None:
        self.process.terminate()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def family(pid: int) -> List[int]:
    """Return a process and all its descendants."""
    children: Dict[int, List[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its descendants have used."""
    ticks = 0
    for each in family(pid):
        fields = _stat(each)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def memory_mb(pid: int) -> float:
    """Return the memory of a process and its descendants, shared pages counted once."""
    total = 0
    for each in family(pid):
        try:
            lines = pathlib.Path("/proc/%d/smaps_rollup" % each).read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024.0


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that was started in a session of its own, and what it started."""
    pids = family(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            try:
                os.kill(pid, number)
            except OSError:
                pass
        limit = time.monotonic() + 3
        while time.monotonic() < limit and (process.poll() is None or any(map(_stat, pids))):
            time.sleep(0.02)
    process.wait()


def _stat(pid: int) -> List[str]:
    """Return the fields of /proc/PID/stat from the state on, none for a process that is gone or a zombie."""
    try:
        text = pathlib.Path("/proc/%d/stat" % pid).read_text()
    except OSError:
        return []
    fields = text[text.rindex(")") + 2:].split()
    return [] if fields[0] == "Z" else fields
