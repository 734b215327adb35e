"""The way of somebody new: a clone, wheels on a machine without an index, the README's first blocks, a cron job.

Flask under gunicorn's workers and a Celery worker are in test_processes.py.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONG = 300.0  # seconds: no verdict hangs on it
NO_INDEX = "No matching distribution found for "  # pip's words, also when it reaches no index
_BASE = Path(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2])
PYTHON = str(_BASE) if _BASE.exists() else sys.executable  # an environment of ./scripts/test has no pip


def environ(**more: str) -> Dict[str, str]:
    unwanted = ("VLLM_", "COV_", "COVERAGE_", "PYTHON", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    return dict({key: value for key, value in os.environ.items() if not key.startswith(unwanted)}, **more)


def call(*command: str, cwd: Path, env: Dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=str(cwd), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that wheels alone went into, with no index within reach."""
    folder = tmp_path_factory.mktemp("stranger")
    if call("git", "clone", "-q", "--depth", "1", "file://%s" % ROOT, "clone", cwd=folder, env=environ()).returncode:
        pytest.skip("this is no clone, or there is no git")
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    ran = call(*pip, "wheel", "--quiet", "--wheel-dir", "wheels", "./clone", cwd=folder, env=environ())
    if ran.returncode and (NO_INDEX in ran.stderr or "No module named pip" in ran.stderr):
        pytest.skip("no pip that reaches an index: %s" % ran.stderr[-200:])
    assert ran.returncode == 0, ran.stderr
    assert call(PYTHON, "-m", "venv", "away", cwd=folder, env=environ()).returncode == 0
    away = folder / "away" / "bin"
    ran = call(str(away / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index",
               "--find-links", "wheels", "vllm-bridge", cwd=folder, env=environ(PIP_CONFIG_FILE=os.devnull))
    assert ran.returncode == 0, ran.stderr
    return away


@pytest.fixture(scope="module")
def url(installed: Path) -> Iterator[str]:
    """The stand-in as the README starts it, but for the port."""
    command = [str(installed / "python"), "-m", "vllm_bridge.echo", "--port", "0"]
    with subprocess.Popen(command, cwd=str(installed), env=environ(), stdout=subprocess.PIPE,
                          universal_newlines=True) as process:
        killer = threading.Timer(LONG, process.kill)
        killer.start()
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
        killer.cancel()
        killer.join()


def first_blocks() -> List[str]:
    return re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))[:2]


def test_the_first_blocks_run_as_they_stand(installed: Path, url: str, tmp_path: Path) -> None:
    for code in first_blocks():
        assert "http://localhost:8000" in code
        (tmp_path / "script.py").write_text(code.replace("http://localhost:8000", url), encoding="utf-8")
        ran = call(str(installed / "python"), "-W", "error", "script.py", cwd=tmp_path, env=environ(VLLM_BASE_URL=url))
        assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.startswith("You said: ")


def test_a_mistake_in_a_script_is_told_in_its_last_line(installed: Path, url: str, tmp_path: Path) -> None:
    for old, new, told in (("http://localhost:8000", "http://localhost:1", "APIConnectionError: cannot connect to "),
                           ("http://localhost:8000", "htp://localhost:8000", "ConfigError: "),
                           ("VLLMProvider(", "VLLMProvider(api_kye='x', base_url=", "TypeError: ")):
        (tmp_path / "script.py").write_text(first_blocks()[0].replace(old, new), encoding="utf-8")
        ran = call(str(installed / "python"), "script.py", cwd=tmp_path, env=environ())
        assert ran.returncode == 1 and ran.stderr.splitlines()[-1].rpartition("vllm_bridge.errors.")[2].startswith(told)


def test_a_cron_job(installed: Path, url: str, tmp_path: Path) -> None:
    """cron gives a job a short PATH, a home, no terminal and nothing else."""
    poor = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": "/bin/sh", "LOGNAME": "nobody"}
    job = '%s/vllm-bridge chat --base-url "$0" "Summarise: $(date +%%Y)" >>out.log 2>>err.log' % installed
    assert call("/bin/sh", "-c", job, url, cwd=tmp_path, env=poor).returncode == 0
    assert call("/bin/sh", "-c", job, "http://127.0.0.1:1", cwd=tmp_path, env=poor).returncode == 1
    assert re.fullmatch(r"You said: Summarise: \d{4}\n", (tmp_path / "out.log").read_text())
    assert re.fullmatch(r"vllm-bridge: cannot connect to [^\n]+\n", (tmp_path / "err.log").read_text())
