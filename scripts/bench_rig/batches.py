"""A file of requests answered: ours, and the scripts that people write instead, each for as many lines."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Optional, Sequence

from .peers import python_of
from .processes import HERE, MEASURED, Failed, Upstream, environment, pinned

CONCURRENCY = 32
LINES, ANSWERED = 100000, 1000000
SLOW = {"openai": 10}  # for so many times fewer lines: it takes 2 ms for each
BODY = {"model": "bench", "messages": [{"role": "system", "content": "You are a helpful assistant."},
                                       {"role": "user", "content": "Write one sentence about the fox."}]}
ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "model": "bench", "choices": [
    {"index": 0, "message": {"role": "assistant", "content": "The quick brown fox."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}}


def rounds(count: int, share: float, note: Any) -> List[Dict[str, Any]]:
    """Answer the file once a round with each, and go on behind a file that is answered already."""
    names = ["ours", "ours, 32 at a time"] + [name for name in ("aiohttp", "openai") if python_of(name) is not None]
    rows = []
    with Upstream() as address, tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        _write(place / "answered", int(ANSWERED * share), place / "before")
        for number in range(count):
            for name in names if number % 2 == 0 else names[::-1]:
                lines = int(LINES * share) // SLOW.get(name, 1)
                _write(place / "in", lines)
                try:
                    row = _run(_command(name, place, address), address)
                except Failed as failure:
                    note("failed: %s" % failure)
                    continue
                found = sum(1 for _ in open(str(place / "out"), "rb"))
                if found != lines:
                    note("failed: %s answered %d of %d lines" % (name, found, lines))
                    continue
                os.unlink(str(place / "out"))
                rows.append({
                    "name": name, "round": number, "lines_per_core": lines / row["cpu"],
                    "lines_per_s": lines / row["seconds"], "peak_mb": row["peak_mb"],
                })
            again = _run(_batch(place / "answered", place / "before"), address)
            rows.append({"name": "ours", "round": number, "resume_s": again["seconds"],
                         "resume_mb": again["peak_mb"]})
            note("batch: round %d of %d" % (number + 1, count))
    return rows


def _write(path: pathlib.Path, lines: int, answers: Optional[pathlib.Path] = None) -> None:
    body, answer = json.dumps(BODY), json.dumps(ANSWER, separators=(",", ":"))
    with open(str(path), "w") as file:
        for number in range(lines):
            file.write('{"custom_id": "request-%d", "method": "POST", "url": "/v1/chat/completions", "body": %s}\n' % (
                number, body))
    if answers is not None:
        with open(str(answers), "w") as file:
            for number in range(lines):
                file.write(
                    '{"id":"line-%d","custom_id":"request-%d","response":{"status_code":200,"request_id":"%032x",'
                    '"body":%s},"error":null}\n' % (number + 1, number, number, answer))


def _command(name: str, place: pathlib.Path, address: str) -> List[str]:
    if name.startswith("ours"):
        fixed = [] if name == "ours" else ["--concurrency", str(CONCURRENCY)]
        return _batch(place / "in", place / "out") + fixed
    script = str(HERE / "batch_peer.py")
    return [str(python_of(name)), script, name, address, str(place / "in"), str(place / "out"), str(CONCURRENCY)]


def _batch(requests: pathlib.Path, answers: pathlib.Path) -> List[str]:
    return [sys.executable, "-m", "vllm_bridge", "batch", str(requests), str(answers), "-q"]


def _run(command: Sequence[str], address: str) -> Dict[str, float]:
    """Run a command on the measured core; return what it took."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment(VLLM_BASE_URL=address), preexec_fn=pinned(MEASURED),
                               stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise Failed("%s: %s" % (" ".join(command[:4]), said.decode(errors="replace").strip()[-600:] or status))
    return {"cpu": used.ru_utime + used.ru_stime, "seconds": time.perf_counter() - began,
            "peak_mb": used.ru_maxrss / 1024.0}
