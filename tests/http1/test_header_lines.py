"""Header fields of a reply."""

from vllm_bridge.http1.header_lines import Fields


def test_fields_are_found_in_any_case() -> None:
    fields = Fields({"content-type": "a/b"})
    assert fields["Content-Type"] == fields.get("CONTENT-TYPE") == "a/b"
    assert fields.get("x") is None and fields.get("x", "y") == "y" and "content-TYPE" in fields and "x" not in fields
    assert dict(fields) == {"content-type": "a/b"} and len(fields) == 1
    assert list(fields.lower_items()) == list(fields.items()) == [("content-type", "a/b")]
    assert repr(fields) == "Fields({'content-type': 'a/b'})"
