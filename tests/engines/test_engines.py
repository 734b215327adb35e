"""The programs of the page on engines, as they stand: the same batch on several processes.

Each worker keeps to its share of the requests at a time. Dask runs a real cluster of two workers, PySpark its local
mode.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "vllm_bridge" / "batch" / "README.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^## ([\w.]+)\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S))
LONG = 240.0  # seconds: no verdict hangs on it
COUNT = 2000 if "VLLM_BRIDGE_LONG" in os.environ else 60
WORKERS, SHARE = 2, 8


@pytest.mark.parametrize("engine, module, program", [
    ("multiprocessing", None, None), ("concurrent.futures", None, None), ("Dask", "distributed", None),
    ("PySpark", "pyspark", "java"),
])
def test_an_engine(engine, module, program, tmp_path):
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip("there is no %s for this Python" % module)
    if program is not None and shutil.which(program) is None:
        pytest.skip("there is no %s on this machine" % program)
    questions = [{"custom_id": str(number), "messages": [{"role": "user", "content": "number %d" % number}]}
                 for number in range(COUNT)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "program.py").write_text(PROGRAMS[engine])
    met = []
    with EchoServer(models=None, delay=0.005) as server:
        count = server._count_running

        def counted(change):
            count(change)
            met.append(server.running)

        server._count_running = counted  # type: ignore[method-assign]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_BASE_URL": server.url, "PYSPARK_PYTHON": sys.executable}
        ran = subprocess.run([sys.executable, "program.py"], cwd=str(tmp_path), env=environ, timeout=LONG,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.returncode == 0, ran.stderr.decode()
    found = [pair for line in ran.stdout.decode().splitlines() for pair in json.loads(line)]
    assert sorted((key, reply["choices"][0]["message"]["content"]) for key, reply in found) == sorted(
        (question["custom_id"], "You said: " + question["messages"][0]["content"]) for question in questions)
    assert 0 < max(met) <= WORKERS * SHARE
