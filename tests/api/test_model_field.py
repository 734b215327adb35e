"""The model's name replaced in a request's bytes: as printing the body anew would have it, or not at all."""

import json
from typing import Any, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bridge.api.model_field import replaced

NAME = 'Qwen/Qwen3-8B "new" é\n'


@pytest.mark.parametrize("body", [
    b'{"model":"vllm/m"}',
    b'{"model": "vllm/m", "messages": []}',
    b' {\r\n\t"messages" : [ ] ,\n "model"\t:\r\n "vllm/m"\n}\n',
    b'{"messages":[{"role":"user","content":"what \\"model\\" are you? \\"model\\": \\"x\\""}],"model":"vllm/m"}',
    b'{"messages":[{"role":"user","content":"a \\\\\\"model\\": "}],"model":"vllm/m"}',
    b'{"messages":"{\\"model\\":\\"inner\\"}","model":"vllm/m"}',
    b'{"model":"vllm/a \\"quoted\\" \\\\ name \\u00e9","stop":["\\n"]}',
    b'{"models":{"a":1},"my_model":2,"model":"vllm/m"}',
    '{"model":"vllm/m","messages":[{"role":"user","content":"日本語 😀"}]}'.encode(),
    b'\xef\xbb\xbf{"model":"vllm/m"}',
    b'{"model":"vllm/m","temperature":1.0e-1,"seed":12345678901234567890,"a":[1,1.50,-0.0,null,true]}',
])
def test_the_one_model_is_replaced_and_every_other_byte_stays(body: bytes) -> None:
    before: Dict[str, Any] = json.loads(body)
    after = replaced(body, NAME)
    assert after is not None
    assert json.loads(after) == {**before, "model": NAME}
    assert list(json.loads(after)) == list(before)
    old = body[body.index(b'"vllm/'):]
    rest = old[len(json.dumps(before["model"])):] if b"\\u" not in old else b""
    assert after.startswith(body[:body.index(b'"vllm/')]) and after.endswith(rest)


@pytest.mark.parametrize("body", [
    b'{"model":"a","model":"b"}',
    b'{"model":"a","metadata":{"model":"b"}}',
    b'{"metadata":{"model":"b"},"mod\\u0065l":"a"}',
    b'{"\\u006dodel":"a"}',
    b'{"mode\\u006C":"a","tools":[{"model":1}]}',
    b'{"model":"a","stop":["model"]}',
    b'{"model":"a","user":"the \\"model"}',
    '{"model":"a"}'.encode("utf-16"),
    '{"model":"a"}'.encode("utf-32-le"),
])
def test_what_is_not_sure_is_left_to_printing(body: bytes) -> None:
    assert replaced(body, NAME) is None


def test_a_model_that_is_no_string_is_none_of_its_business() -> None:
    assert replaced(b'{"model":null}', NAME) is None
    assert replaced(b'{"model":{"model":"x"}}', NAME) is None
    assert replaced(b"{}", NAME) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text() | st.sampled_from(["model", '"model"', '"model": "x"', "\\", '\\"', "model\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text() | st.sampled_from(["messages", "models", '"model"', "\\model"]), JSON, max_size=4),
    st.text(), st.text(), st.integers(0, 4), st.booleans(), st.sampled_from([None, 0, 1]),
)
def test_any_body(
    members: Dict[str, Any], old: str, new: str, at: int, ascii_only: bool, indent: Any
) -> None:
    members.pop("model", None)
    items = list(members.items())
    items.insert(at, ("model", old))
    text = json.dumps(dict(items), ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    try:
        json.loads(body)
    except UnicodeDecodeError:
        return  # a lone surrogate, which no reader accepts
    after = replaced(body, new)
    if after is None:
        assert body.count(b'"model"') > 1 or b"\\u006" in body
    else:
        assert json.loads(after) == {**dict(items), "model": new}
