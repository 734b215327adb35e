"""Names with stars in them."""

import pytest

from vllm_bridge.gateway.patterns import Patterns


@pytest.mark.parametrize("pattern, name, expected", [
    ("a", "A", True), ("a", "ab", False), ("x-*", "x-", True), ("x-*", "x", False), ("*-x", "a-X", True),
    ("a*b*c", "abc", True), ("a*b*c", "acbc", True), ("a*b*c", "acb", False),
    ("a*b*c", "axxc", False), ("*a*", "bab", True), ("a*a", "a", False),
    ("", "", True), ("*", "", True), ("*", "a/b", False), ("*/b", "a/b", True), ("a.c", "abc", False),
    ("**", "anything", True), ("[a]", "a", False), ("\\d*", "1", False),
])
def test_a_star_stands_for_anything_but_a_slash(pattern: str, name: str, expected: bool) -> None:
    assert Patterns([pattern]).match(name) is expected
    assert Patterns(["nothing", pattern]).match(name) is expected


def test_many_stars_take_no_long_time() -> None:
    """With backtracking twenty stars would take longer than anybody lives."""
    assert not Patterns(["*a" * 20 + "b"]).match("a" * 60000)
    assert not Patterns(["https://*.*.*.*.example"]).match("https://" + "." * 60000)
    assert Patterns(["*a" * 20]).match("a" * 60000)
