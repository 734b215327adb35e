"""A caller's own type checker: what it has to flag, line by line, and what it must not."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
FILES = [HERE / "typing" / "mistakes.py", HERE / "typing" / "right.py"]


def run(*command):
    """Run a checker over both files; return the lines that it flags in each."""
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, FILES)], cwd=str(HERE.parent), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=600,
        env={**os.environ, "NO_COLOR": "1", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},  # no look for a newer one
    )
    output = done.stdout.decode()
    flagged = {path.name: set() for path in FILES}
    for name, line in re.findall(r"(mistakes\.py|right\.py):(\d+)(?::\d+)?(?: -|:) error", output):
        flagged[name].add(int(line))
    assert done.returncode == 1 and flagged["mistakes.py"], output  # 1: there are mistakes
    return flagged, output


@pytest.mark.parametrize("checker, command", [
    ("mypy", ["mypy", "--strict", "--cache-dir", str(HERE.parent / ".mypy_cache")]),
    ("pyright", ["pyright"]),
])
def test_a_checker_flags_every_mistake_and_nothing_else(checker, command):
    pytest.importorskip(checker)
    flagged, output = run(*command)
    lines = FILES[0].read_text(encoding="utf-8").splitlines()
    mistakes = {number for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
    assert flagged == {"mistakes.py": mistakes, "right.py": set()}, output
