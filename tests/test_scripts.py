"""The scripts that a stranger runs first, from a copy of the checkout as git would clone it."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[1]
LONG = 120.0  # seconds: no verdict hangs on it
SHELL_SCRIPTS = ["scripts/demo", "scripts/test", "scripts/environment.sh", ".ci/run"]

needs_coverage = pytest.mark.skipif(importlib.util.find_spec("pytest_cov") is None, reason="there is no pytest-cov")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what belongs to the project, without environments and caches."""
    folder = tmp_path_factory.mktemp("clone") / "with a space"
    folder.mkdir()
    for name in ("vllm_bridge", "scripts"):
        shutil.copytree(str(ROOT / name), str(folder / name), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "setup.py", "README.md"):
        shutil.copy(str(ROOT / name), str(folder / name))
    return folder


@pytest.fixture
def environ() -> Dict[str, str]:
    """This Python first on the path, and nothing that the scripts would take for a server."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    unwanted = ("VLLM_", "COV_", "COVERAGE_", "PYTHON")
    return dict({key: value for key, value in os.environ.items() if not key.startswith(unwanted)}, PATH=path)


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shell_scripts_parse(name: str) -> None:
    assert subprocess.call(["sh", "-n", str(ROOT / name)]) == 0
    if not name.endswith(".sh"):
        assert os.access(str(ROOT / name), os.X_OK)


def run(clone: Path, environ: Dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["./scripts/demo", *arguments], cwd=str(clone), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG,
    )


def check_shown(shown: str) -> None:
    """Every operation has its heading, and behind it an answer and no failure."""
    parts = dict(re.findall(r"^((?:GET|POST) [^\n]+)\n((?:    .*\n)+)", shown, re.M))
    assert list(parts) == [
        "GET /v1/models", "POST /v1/chat/completions", "POST /v1/chat/completions, streamed", "POST /v1/responses",
        "POST /v1/responses, streamed", "POST /v1/completions", "POST /v1/completions, streamed", "POST /v1/embeddings",
        "POST /v1/rerank", "POST /v1/audio/transcriptions", "POST /v1/audio/transcriptions, streamed",
    ]
    assert parts["GET /v1/models"].strip() == "vllm/echo"
    assert "You said: What is the capital of France?" in parts["POST /v1/chat/completions"]
    for name, text in (("responses", "You said: Name a "), ("completions", "You said: "),
                       ("audio/transcriptions", "I heard tone.wav: ")):
        assert text in parts["POST /v1/" + name] and text in parts["POST /v1/%s, streamed" % name]
    streamed = [part for heading, part in parts.items() if heading.endswith(", streamed")]
    assert all(re.search(r"\(\d+ pieces, the first after \d+ ms, the last after \d+ ms\)", part) for part in streamed)
    assert parts["POST /v1/embeddings"].count("8 numbers") == 2
    best = parts["POST /v1/rerank"].splitlines()[1]
    assert best.endswith("The capital of France is Paris.")
    assert "did not work" not in shown and "Traceback" not in shown


def test_the_demo_of_a_clean_clone(clone: Path, environ: Dict[str, str]) -> None:
    ran = run(clone, environ)
    assert ran.returncode == 0, ran.stderr
    check_shown(ran.stdout)
    assert "Stand-in for vLLM" in ran.stdout and ran.stdout.endswith("Everything that was started has been stopped.\n")
    gateway = re.search(r"^Gateway before it +(\S+)$", ran.stdout, re.M)
    assert gateway is not None
    with pytest.raises(OSError):
        ask(gateway.group(1) + "/health")


def test_the_demo_with_a_real_server(clone: Path, environ: Dict[str, str]) -> None:
    with EchoServer(operations=["list_models", "chat_completion"]) as server:
        ran = run(clone, dict(environ, VLLM_BASE_URL=server.url))
        asked = [request.path for request in server.requests]
    assert ran.returncode == 0, ran.stderr
    assert "vLLM server          " + server.url in ran.stdout and "Stand-in" not in ran.stdout
    assert ran.stdout.count("did not work: ") == 6  # a chat server has no completions, embeddings, rerank, audio
    assert asked.count("/v1/chat/completions") == 4  # the Responses go over chat


def test_the_demo_with_a_server_that_is_not_there(clone: Path, environ: Dict[str, str]) -> None:
    ran = run(clone, dict(environ, VLLM_BASE_URL="http://127.0.0.1:9"))
    assert ran.returncode == 1
    assert "did not work: " in ran.stdout and "Traceback" not in ran.stdout + ran.stderr


def test_the_demo_refuses_what_it_does_not_know(clone: Path, environ: Dict[str, str]) -> None:
    ran = run(clone, environ, "--sevre")
    assert ran.returncode == 2 and "--sevre" in ran.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_the_demo_leaves_the_gateway_up(number: int, code: int, clone: Path, environ: Dict[str, str]) -> None:
    process = subprocess.Popen(
        ["./scripts/demo", "--serve"], cwd=str(clone), env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True, start_new_session=True,
    )
    killer = threading.Timer(LONG, process.kill)
    killer.start()
    assert process.stdout is not None
    try:
        shown = list(lines_until(process.stdout, "The gateway stays up"))
        url = [line for line in shown if line.startswith("Gateway before it")][0].split()[-1]
        assert ask(url + "/health") == 200
        os.killpg(process.pid, number)
        rest = process.stdout.read()
        assert "Everything that was started has been stopped." in rest and "Traceback" not in rest
        assert process.wait(LONG) == code
        with pytest.raises(OSError):
            ask(url + "/health")
    finally:
        killer.cancel()
        killer.join()
        process.kill()
        process.wait()
        process.stdout.close()


def lines_until(stream: Any, text: str) -> Iterator[str]:
    for line in stream:
        yield line
        if text in line:
            return
    raise AssertionError("the output ended before %r" % text)


def ask(url: str) -> int:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=LONG) as reply:
        return int(reply.status)


# ---------------------------------------------------------------- scripts/environment.sh


def shell(clone: Path, environ: Dict[str, str], code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", "-c", "set -u; . scripts/environment.sh; " + code], cwd=str(clone), env=environ,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG,
    )


def test_the_pythons_of_a_machine_are_found_once_and_in_order(
    clone: Path, environ: Dict[str, str], tmp_path: Path
) -> None:
    this = "%d.%02d" % sys.version_info[:2]
    real = 'exec "%s" "$@"\n' % sys.executable
    path = fake_path(tmp_path, python="exit 1\n", python3=real, python3_30="echo 3.30 /thirty\n")
    for name, says in (("a", "3.99 /last"), ("b", this + " /again"), ("c", "3.40 /forty")):
        program = tmp_path / ".pyenv" / "versions" / name / "bin" / "python3"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\necho %s\n" % says)
        program.chmod(0o755)
    ran = shell(clone, dict(environ, PATH=path, HOME=str(tmp_path)), "pythons")
    assert ran.stdout.splitlines() == [this + " " + sys.executable, "3.30 /thirty", "3.40 /forty", "3.99 /last"]


def fake_path(folder: Path, **programs: str) -> str:
    """Return a PATH with the shell's own tools and these programs alone."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("sh", "sort", "tail", "grep", "head", "cut", "cat", "rm", "mkdir", "mv", "ls", "dirname"):
        place = shutil.which(name)
        assert place is not None
        (tools / name).symlink_to(place)
    for name, code in programs.items():
        program = tools / name.replace("_", ".")
        program.write_text("#!/bin/sh\n" + code)
        program.chmod(0o755)
    return str(tools)


def test_an_old_python3_is_passed_over(clone: Path, environ: Dict[str, str], tmp_path: Path) -> None:
    real = 'exec "%s" "$@"\n' % sys.executable
    path = fake_path(tmp_path, python3="exit 1\n", python3_11=real)
    ran = shell(clone, dict(environ, PATH=path, HOME=str(tmp_path)), "default_python")
    assert (ran.returncode, ran.stdout.strip()) == (0, sys.executable)


def test_a_machine_without_a_python_is_told_so(clone: Path, environ: Dict[str, str], tmp_path: Path) -> None:
    path = fake_path(tmp_path, python3="exit 1\n")
    ran = shell(clone, dict(environ, PATH=path, HOME=str(tmp_path)), "default_python")
    assert ran.returncode == 1 and "no Python 3.8 or newer" in ran.stderr
    for script in ("./scripts/demo", "./scripts/test"):
        started = shell(clone, dict(environ, PATH=path, HOME=str(tmp_path)), "exec /bin/sh " + script)
        assert (started.returncode, started.stdout) == (1, "") and "no Python 3.8 or newer" in started.stderr


def test_an_environment_is_made_once(clone: Path, environ: Dict[str, str]) -> None:
    make = 'environment empty "%s" </dev/null' % sys.executable
    first = shell(clone, environ, make)
    assert first.returncode == 0 and "Making" in first.stderr
    second = shell(clone, environ, make)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    python = first.stdout.strip()
    assert subprocess.call([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]) == 0


def test_an_environment_that_cannot_be_made_is_not_taken_for_one(clone: Path, environ: Dict[str, str]) -> None:
    make = 'echo "no such requirement/" | environment broken "%s"' % sys.executable
    ran = shell(clone, environ, make)
    assert ran.returncode == 1 and ran.stdout == "" and ".log" in ran.stderr
    folders = [path for path in (clone / ".venvs").iterdir() if path.is_dir() and path.name.startswith("broken")]
    assert not any((path / "made-for").exists() for path in folders)


def test_requirements_come_from_setup_cfg(clone: Path, environ: Dict[str, str]) -> None:
    listed: List[str] = shell(clone, environ, 'requirements "%s" install lint' % sys.executable).stdout.splitlines()
    assert listed[0].startswith("requests>=") and any(line.startswith("mypy") for line in listed)


# ---------------------------------------------------------------- scripts/suite.py


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project with a package, a suite, linters that find what is marked, and nothing to complain about."""
    for name in ("vllm_bridge", "tests", "scripts"):
        (tmp_path / name).mkdir()
    (tmp_path / "setup.cfg").write_text("[coverage:report]\nfail_under = 95\n")
    (tmp_path / "vllm_bridge" / "__init__.py").write_text("def half(n: int) -> int:\n    return n // 2\n")
    (tmp_path / "tests" / "test_half.py").write_text(
        "from vllm_bridge import half\n\n\ndef test_half():\n    assert half(4) == 2\n")
    for name in ("flake8", "mypy"):
        (tmp_path / (name + ".py")).write_text(
            "import sys\nsys.exit('bad for %s' in open('vllm_bridge/__init__.py').read())\n" % name)
    return tmp_path


def suite(small: Path, environ: Dict[str, str], *pythons: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "suite.py"), *pythons], cwd=str(small), env=environ,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=LONG)


def test_the_parts_of_a_suite_are_files_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    parts = importlib.import_module("suite")
    names = parts.WAITING + parts.STARTING
    assert len(names) == len(set(names))
    assert all((ROOT / "tests" / (name + ".py")).exists() for name in names)


@needs_coverage
def test_the_last_line_counts_all_suites_and_their_parts(small: Path, environ: Dict[str, str]) -> None:
    with open(str(small / "vllm_bridge" / "__init__.py"), "a") as file:
        file.write("\n\ndef twice(n: int) -> int:\n    n = n + n\n    return n\n")
    for name in ("cli", "stream"):  # one of STARTING, one of WAITING; without them the coverage is too low
        (small / "tests" / ("test_%s.py" % name)).write_text(
            "import os\nimport pytest\nfrom vllm_bridge import twice\n\n\ndef test_twice():\n"
            "    assert twice(2) == 4\n\n\n@pytest.mark.skipif('VLLM_BRIDGE_LONG' not in os.environ, reason='long')\n"
            "def test_long():\n    pass\n")
    ran = suite(small, dict(environ, VLLM_BRIDGE_LONG="1"), sys.executable)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.endswith("\n8 passed, 0 failed, 2 skipped\n")  # long on the first Python alone
    assert ran.stdout.count("== Python ") == 2 and "flake8: ok\nmypy --strict: ok\n" in ran.stdout


@needs_coverage
def test_everything_that_fails_is_counted(small: Path, environ: Dict[str, str]) -> None:
    with open(str(small / "vllm_bridge" / "__init__.py"), "a") as file:
        file.write("# bad for flake8, bad for mypy\n")
    (small / "tests" / "test_more.py").write_text("def test_no():\n    assert 0\n\n\ndef test_er(nothing):\n    pass\n")
    ran = suite(small, environ, str(small / "no-python"))
    assert ran.returncode == 1
    # flake8, mypy, a failed test, an error, an environment that is not there
    assert ran.stdout.endswith("\n1 passed, 5 failed, 0 skipped\n"), ran.stdout


@needs_coverage
def test_what_failed_runs_once_more_and_is_named(small: Path, environ: Dict[str, str]) -> None:
    (small / "tests" / "test_stream.py").write_text(
        "import pathlib\n\n\ndef test_luck():\n    seen = pathlib.Path('seen')\n    lucky = seen.exists()\n"
        "    seen.write_text('')\n    assert lucky\n")
    ran = suite(small, environ)
    assert ran.returncode == 0, ran.stdout
    assert "passed when run again: tests/test_stream.py::test_luck" in ran.stdout
    assert ran.stdout.endswith("\n2 passed, 0 failed, 0 skipped\n")


@needs_coverage
def test_code_that_no_test_reaches_fails_the_gate(small: Path, environ: Dict[str, str]) -> None:
    (small / "vllm_bridge" / "more.py").write_text("A = 1\nB = 2\nC = 3\n")
    ran = suite(small, environ)
    assert ran.returncode == 1 and ran.stdout.endswith("\n1 passed, 1 failed, 0 skipped\n"), ran.stdout


@needs_coverage
def test_a_suite_that_is_stopped_leaves_nothing(small: Path, environ: Dict[str, str]) -> None:
    (small / "tests" / "test_slow.py").write_text(
        "import os, pathlib, time\n\n\ndef test_slow():\n"
        "    pathlib.Path('pid').write_text(str(os.getpid()) + '.')\n    time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "suite.py")], cwd=str(small), env=environ,
                               stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    end = time.monotonic() + LONG
    while not (small / "pid").exists() or not (small / "pid").read_text().endswith("."):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((small / "pid").read_text()[:-1]), 0)


# ---------------------------------------------------------------- .ci/run


def test_counts_are_added_up() -> None:
    """The closing line of .ci/run, from the awk program in it."""
    code = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    program = re.search(r"awk -v status=\"\$status\" '(.*?)'", code, re.S)
    assert program is not None

    def counted(status: int, text: str) -> str:
        return subprocess.run(["awk", "-v", "status=%d" % status, program.group(1)],  # type: ignore[union-attr]
                              input=text, stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout.strip()

    live = "===== 3 failed, 40 passed, 1 skipped, 2 errors in 12.3s =====\n7 passed in 1.0s\n"
    assert counted(1, "100 passed, 0 failed, 5 skipped\n" + live) == "147 passed, 5 failed, 6 skipped"
    assert counted(0, "100 passed, 0 failed, 5 skipped\n") == "100 passed, 0 failed, 5 skipped"
    assert counted(1, "") == "0 passed, 1 failed, 0 skipped"
