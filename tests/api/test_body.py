"""Keywords → body → JSON, JSON → object, another model in the same bytes, and what a long body says unread."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.api import body as body_module
from vllm_bridge.api.body import (
    as_written,
    merged,
    object_of,
    read_object,
    replaced,
    scan,
    to_json,
)
from vllm_bridge.api.records import Record
from vllm_bridge.errors import APIStatusError, BadRequestError, ResponseDecodeError


@pytest.mark.parametrize(
    "wire, body",
    [
        ({}, {}),
        ({"model": "m", "nonsense": {"a": 1}}, {"model": "m", "nonsense": {"a": 1}}),
        ({"a": None, "b": 0, "c": False, "d": "", "e": [], "f": {"g": None}},
         {"b": 0, "c": False, "d": "", "e": [], "f": {"g": None}}),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_params": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_body": None, "extra_params": {}}, {}),
        ({"top_k": 1, "extra_body": {"top_k": 5}}, {"top_k": 5}),  # the extra value wins
        ({"a": {"x": 1, "y": {"z": 1}}, "extra_body": {"a": {"y": {"w": 2}}}}, {"a": {"x": 1, "y": {"z": 1, "w": 2}}}),
        ({"a": {"x": 1}, "extra_body": {"a": [1]}}, {"a": [1]}),
        ({"a": [1], "extra_body": {"a": {"x": 1}}}, {"a": {"x": 1}}),
        ({"extra_body": {"a": 1, "b": 1}, "extra_params": {"b": 2}}, {"a": 1, "b": 2}),
        ({"extra_body": {"a": None}}, {"a": None}),  # whoever writes a body writes null for null
        ({"extra_body": Record(a=1)}, {"a": 1}),
    ],
)
def test_merged(wire, body):
    before = json.dumps(wire)
    assert merged(wire) == body
    assert json.dumps(wire) == before


def test_merging_changes_nothing_of_the_callers():
    inner = {"x": {"deep": 1}}
    given = {"a": inner, "extra_body": {"a": {"x": {"more": 2}}}}
    assert merged(given) == {"a": {"x": {"deep": 1, "more": 2}}}
    assert inner == {"x": {"deep": 1}}


@pytest.mark.parametrize("wrapper", ["extra_body", "extra_params"])
@pytest.mark.parametrize("value, name", [([1], "list"), ("x", "str"), (5, "int")])
def test_an_extra_that_is_no_object(wrapper, value, name):
    with pytest.raises(BadRequestError, match="%s must be an object, got %s" % (wrapper, name)) as raised:
        merged({wrapper: value})
    assert raised.value.param == wrapper


def test_an_extra_nested_beyond_all_measure():
    deep, extra = {}, {}
    for _ in range(5000):
        deep, extra = {"a": deep}, {"a": extra}
    with pytest.raises(BadRequestError, match="extra_body is nested too deeply"):
        merged({"a": deep, "extra_body": {"a": extra}})


@pytest.mark.parametrize(
    "wire, body",
    [
        ({"a": [1, "x", None, True]}, b'{"a":[1,"x",null,true]}'),
        ({"a": "\u65e5\ud800"}, b'{"a":"\\u65e5\\ud800"}'),  # half a character has no UTF-8, but it has JSON
        ({"a": Record(b=1), "t": (1, 2), "n": 0.1}, b'{"a":{"b":1},"t":[1,2],"n":0.1}'),
    ],
)
def test_to_json(wire, body):
    assert to_json(wire) == body


LOOP = []
LOOP.append(LOOP)
DEEP = []
for _ in range(100000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value, why",
    [(b"x", "bytes"), (float("nan"), "Out of range float"), (float("inf"), "Out of range float"), ({1, 2}, "set"),
     ((word for word in "ab"), "generator"), (iter("ab"), "iterator"), ({1: 2}.values(), "dict_values"),
     ({(1, 2): 3}, "keys must be"), (LOOP, "Circular"), (object(), "object"), (DEEP, "recursion")],
)
def test_what_has_no_json_is_named(value, why):
    with pytest.raises(BadRequestError, match="field has no JSON form: .*%s" % why) as raised:
        to_json({"fine": 1, "field": value})
    assert raised.value.param == "field"
    assert raised.value.status_code == 400


def test_a_body_that_has_no_json_as_a_whole():
    with pytest.raises(BadRequestError, match="the request has no JSON form: keys must be"):
        to_json({("a", "b"): 1})


def test_object_of():
    assert object_of(b'{"a": {"b": []}}') == {"a": {"b": []}}


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "the server sent no valid JSON .*: an empty body"),
        (b"<html>", "the server sent no valid JSON .*: <html>"),
        (b'{"a": "\xff"}', "the server sent no valid JSON"),
        (b"[1]", r"the server sent no JSON object: \[1\]"),
        (b'"text"', 'the server sent no JSON object: "text"'),
        (b"null", "the server sent no JSON object: null"),
    ],
)
def test_what_is_no_object(body, message):
    with pytest.raises(ResponseDecodeError, match=message) as raised:
        object_of(body, url="http://h/p", request_id="r")
    assert (raised.value.url, raised.value.request_id) == ("http://h/p", "r")


ANSWERS = {
    "chat_completion": {"choices": [{"message": {"content": "x"}}]},
    "text_completion": {"choices": [{"text": "x"}]},
    "embedding": {"data": [{"embedding": [1.0]}]},
    "responses": {"output": [{"type": "message"}]},
    "models": {"data": [{"id": "m"}]},
    "rerank": {"results": [{"index": 0}]},
    "none": {},
}


@pytest.mark.parametrize("operation", ["chat_completion", "text_completion", "embedding", "responses"])
@pytest.mark.parametrize("sent", sorted(ANSWERS))
def test_an_answer_to_another_operation_is_none(operation, sent):
    body = json.dumps(ANSWERS[sent]).encode()
    if sent == operation:
        assert object_of(body, operation) == object_of(body) == ANSWERS[sent]
    else:
        with pytest.raises(ResponseDecodeError, match="the server sent no answer to %s: {" % operation) as raised:
            object_of(body, operation, url="u")
        assert raised.value.payload == ANSWERS[sent] and raised.value.url == "u"


@pytest.mark.parametrize("odd", [None, 5, {"0": {}}, [None], ["x"], [{}]])
def test_choices_of_another_shape(odd):
    with pytest.raises(ResponseDecodeError, match="no answer to chat_completion"):
        object_of(json.dumps({"choices": odd}).encode(), "chat_completion")
    assert object_of(b'{"choices": []}', "chat_completion") == {"choices": []}


@pytest.mark.parametrize("depth", [100, 300, 450, 600, 800, 900, 950, 980, 1500, 100000])
def test_lists_nested_to_any_depth_are_no_object(depth):
    with pytest.raises(ResponseDecodeError):
        object_of(b"[" * depth + b"]" * depth)


def test_a_body_that_says_what_it_said_is_not_printed_again():
    data = b'{ "model":"m", "seed" : 1.0e0 }'
    given = {"model": "m", "seed": 1.0}
    body = as_written(dict(given), given, data)
    assert body == given and to_json(body) is data


@pytest.mark.parametrize(
    "body, data",
    [
        ({"model": "m"}, None),
        ({"model": "m", "stream": True}, b'{"model":"m"}'),
        ({"model": "m"}, b'\xef\xbb\xbf{"model":"m"}'),
        ({"model": "m"}, b' {"model":"m"}'),
        ({"model": "m"}, '{"model":"m"}'.encode("utf-16-le")),
    ],
)
def test_what_has_changed_or_is_not_plain_is_printed(body, data):
    assert as_written(body, {"model": "m"}, data) is body


# ---------------------------------------------------------------- another model in the same bytes


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
def test_the_one_model_is_replaced_and_every_other_byte_stays(body):
    before = json.loads(body)
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
def test_what_is_not_sure_is_left_to_printing(body):
    assert replaced(body, NAME) is None


def test_a_model_that_is_no_string_is_none_of_its_business():
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
def test_any_body(members, old, new, at, ascii_only, indent):
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


# ---------------------------------------------------------------- a client's JSON


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_a_client_may_write_in_any_encoding_of_unicode(coding):
    data = '{"a": "\u65e5\\ud83d", "b": [1, 1.5e3]}'.encode(coding)
    assert read_object(data) == {"a": "\u65e5\ud83d", "b": [1, 1500.0]}


@pytest.mark.parametrize("data, problem", [
    (b"", "the body is empty"),
    (b"{", "the body is not JSON"),
    (b"[]", "the body must be a JSON object"),
    (b"null", "the body must be a JSON object"),
    (b'{"a": "\xff"}', "the body is not UTF-8 .byte 7"),
    (b'{"a": NaN}', "NaN is no JSON number"),
    (b'{"a": -Infinity}', "-Infinity is no JSON number"),
    (b'{"a": 1e999}', "the number 1e999 is too large"),
    (b'{"a": %s}' % (b"1" * 4301), ".*4300.* digits"),
    (b'{"a": "\n"}', "the body is not JSON"),
    (b'{"a": 1} {}', "the body is not JSON"),
], ids=range(11))
def test_what_is_no_object_of_a_client(data, problem):
    with pytest.raises(BadRequestError, match="invalid request format: .*" + problem) as raised:
        read_object(data)
    assert raised.value.type == "invalid_request_error"


def test_a_long_number_where_python_itself_has_no_limit():
    assert body_module._short("1" * 4300) and body_module._short("-5") == -5
    with pytest.raises(ValueError, match="4300 digits"):
        body_module._short("1" * 4301)


@pytest.mark.parametrize(
    "opening, inner, closing", [(b"[", b"", b"]"), (b'{"a":', b"1", b"}"), (b'[{"]":', b"0", b"}]")])
@pytest.mark.parametrize("depth", [199, 200, 201, 900, 1000, 5000, 200000])
def test_nested_deeply(opening, inner, closing, depth):
    times = (depth - 1) // (2 if len(opening) == 6 else 1) if opening[:2] == b"[{" else depth - 1
    data = b'{"a":' + opening * times + inner + closing * times + b"}"
    if times * opening.count(b"[") + times * opening.count(b"{") < 200:
        assert to_json(read_object(data)) == data
    else:
        with pytest.raises(BadRequestError, match="nested too deeply"):
            read_object(data)


def test_brackets_in_texts_and_side_by_side_are_no_depth():
    assert len(read_object(b'{"a":"%s","b":[%s[]]}' % (b"[{" * 1000, b'[],{"}":1},' * 1000))["b"]) == 2001


def test_what_stands_outside_strings_is_limited():
    photo = b'{"a":"%s"}' % (b"A" * 100000)
    assert len(read_object(photo, 100)["a"]) == 100000
    for filler in (b"[%s0]" % (b"1," * 100), b'"%s"' % (b"\\n" * 101), b"[%s0]" % (b'"",' * 40), b" " * 101 + b"0"):
        data = b'{"a":%s}' % filler
        assert read_object(data, 1000)
        with pytest.raises(APIStatusError, match="more than 100 bytes outside its strings .--max-parsed-mb") as raised:
            read_object(data, 100)
        error = raised.value
        assert (error.status_code, error.code, error.type) == (413, "request_too_large", "invalid_request_error")


# ---------------------------------------------------------------- looked through


@pytest.fixture(params=[1, 2, 3, 7, 64, 256 * 1024])
def block(request, monkeypatch):
    monkeypatch.setattr(body_module, "_BLOCK", request.param)


def outside_slowly(data):
    count, within, at = 0, False, 0
    while at < len(data):
        if data[at] == 0x5C:
            count += 1 + (data[at + 1:at + 2] == b"\\")
            at += 2 if data[at + 1:at + 2] in (b"\\", b'"') else 1
            continue
        within ^= data[at] == 0x22
        count += not within or data[at] == 0x22
        at += 1
    return count


TEXTS = st.lists(st.sampled_from(["a", '"', "\\", "[", "}", ",", "\u65e5", " "]), max_size=12).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "stream", "prompt", "x"]), VALUES, min_size=1), st.booleans(),
       st.sampled_from([None, 1]), st.sampled_from([1, 2, 3, 5, 64, 256 * 1024]))
def test_any_object_is_looked_through(members, ascii_only, indent, block):
    data = json.dumps(members, ensure_ascii=ascii_only, indent=indent).encode()
    before, body_module._BLOCK = body_module._BLOCK, block
    try:
        assert scan(data, ("model", "prompt")) == {
            name: value for name, value in members.items() if name in ("model", "prompt")}
        count = outside_slowly(data)
        assert read_object(data, count) == members
        if count < len(data):
            with pytest.raises(APIStatusError, match="more than %d bytes" % (count - 1)):
                read_object(data, count - 1)
    finally:
        body_module._BLOCK = before


def test_a_long_value_is_not_read(block):
    data = b'{"a": 1, "input": [%s"]"], "model": "m\\"", "b": {"model": 5}, "stream": true}' % (b'"x",' * 20000)
    assert scan(data, ("model", "input", "stream", "c")) == {"input": ..., "model": 'm"', "stream": True}


@pytest.mark.parametrize("length", range(1018, 1028))
def test_a_text_that_ends_where_a_block_does(length):
    for text in ("a" * length, "[" * length, "\\\\" * (length // 2) + "a" * (length % 2)):
        assert scan(b'{"x":"%s","model":"m","y":["%s"]}' % ((text.encode(),) * 2), ("model",)) == {"model": "m"}


@pytest.mark.parametrize("data", [
    b"", b"[]", b"{}", b"{", b'{"model"', b'{"model":', b'{"model":"m"', b'{"model":"m",', b'{"model":"m"}}',
    b'{"model":"m"} {}', b'{"model":"m","model":"n"}', b'{"mod\\u0065l":"m"}', b'{"model":nul}', b'{"model":NaN}',
    b'{"model":"\xff"}', b'{"a":[1,"model":"m"}', b'{"a":"model', b'{"a" 1,"model":"m"}', b'{model:"m"}',
    '{"model":"m"}'.encode("utf-16-le"), b"{" + b'"a":1,' * 10000 + b'"model":"m"}',
    b'{"model":%s}' % (b"[" * 5000 + b"]" * 5000), b'{"model":"m"}' + b" " * 2000,
], ids=range(23))
def test_what_is_not_sure_is_none(data):
    assert scan(data, ("model",)) is None
