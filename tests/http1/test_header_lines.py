"""Header lines, read and written."""

import pytest

from vllm_bridge.http1 import header_lines
from vllm_bridge.http1.header_lines import Fields, checked_fields, field_block, read_lines


def test_lines_are_written_as_they_are_read() -> None:
    headers = [("content-type", "text/plain"), ("x", "")]
    assert field_block(headers) == "content-type: text/plain\r\nx: \r\n"
    assert checked_fields(field_block(headers)) == headers
    assert field_block([]) == ""


@pytest.mark.parametrize("name, value", [
    ("x", "a\r\nSet-Cookie: b"), ("x", "a\n"), ("x", "a\r"), ("x", "\x00"), ("x", "\u20ac"), ("", "a"), ("a b", "c"),
    ("x:\r\ny", "a"),
])
def test_a_line_that_would_be_read_as_another_is_not_written(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        field_block([(name, value)])


def test_a_line_with_a_secret_or_an_id_is_not_kept_and_a_recurring_one_is() -> None:
    for kept in (header_lines._lines, header_lines._written):
        kept.clear()
    pairs = [("Content-Type", "a/b"), ("Authorization", "Bearer s"), ("X-Request-Id", "7"), ("Accept", "x" * 300)]
    assert field_block(pairs) == field_block(pairs)
    lines = field_block(pairs).split("\r\n")[:-1]
    expected = [(name.lower(), value) for name, value in pairs]
    assert read_lines(lines) == read_lines(lines) == expected
    assert list(header_lines._written) == [("Content-Type", "a/b")]
    assert list(header_lines._lines) == ["Content-Type: a/b"]


def test_lines_of_which_one_is_none() -> None:
    assert read_lines(["a: b", "c : d"]) is None
    assert read_lines([" a: b"]) is None
    assert read_lines([]) == []


def test_fields_are_found_in_any_case() -> None:
    fields = Fields({"content-type": "a/b"})
    assert fields["Content-Type"] == fields.get("CONTENT-TYPE") == "a/b"
    assert fields.get("x") is None and fields.get("x", "y") == "y" and "content-TYPE" in fields and "x" not in fields
    assert dict(fields) == {"content-type": "a/b"} and len(fields) == 1
    assert list(fields.lower_items()) == list(fields.items()) == [("content-type", "a/b")]
    assert repr(fields) == "Fields({'content-type': 'a/b'})"
