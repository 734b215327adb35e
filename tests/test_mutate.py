"""scripts/mutate: which changes are made to a module, and how they are made."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from mutate_rig.mutations import applied, mutations  # noqa: E402

pytestmark = pytest.mark.skipif(sys.version_info < (3, 9), reason="ast.unparse is there since Python 3.9")

EVERY = '''"""Docstring."""
import os
__all__ = ["f"]
LIMIT: int = 5


def f(a, b=True):
    """Do it."""
    if a < b and not a:
        return a + 1
    for _ in a:
        break
    while a:
        continue
    a.b = "text"
    a += 1
    g(a)
    raise ValueError(a)


def g(a):  # pragma: no cover
    return 1
'''


def test_each_kind_of_change_is_found_once() -> None:
    changed = {(one.line, one.what, one.text) for one in mutations(EVERY)}
    assert changed == {
        (4, "5", "(6)"), (7, "True", "(False)"), (9, "a < b and (not a)", "(a < b or not a)"), (9, "a < b", "(a <= b)"),
        (9, "not a", "(a)"), (10, "return a + 1", "return None"), (10, "a + 1", "(a - 1)"), (10, "1", "(2)"),
        (12, "break", "pass"), (14, "continue", "break"), (15, "a.b = 'text'", "a.b = None"), (15, "'text'", "('tex')"),
        (16, "a += 1", "pass"), (16, "1", "(2)"), (17, "g(a)", "pass"), (18, "raise ValueError(a)", "pass"),
    }


def test_a_change_is_made_in_its_place_alone() -> None:
    source = 'x = "ü" if a == 1 else (\n    b)\n'
    for one in mutations(source):
        made = applied(source, one)
        ast.parse(made)
        assert made != source and made.startswith('x = ') and made.endswith("else (\n    b)\n")
    assert applied(source, [one for one in mutations(source) if "==" in one.what][0]) == (
        'x = "ü" if (a != 1) else (\n    b)\n')
