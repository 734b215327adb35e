"""The chat dialect: requests, replies, and chunks folded into what the same request gives without streaming."""

import copy
import json
import warnings

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge import BadRequestError, InternalServerError, VLLMProvider
from vllm_bridge.api.chat import ChatAccumulator, check_finish, normalise, normalise_chunk, prepare, rename_guided

MESSAGES = [{"role": "user", "content": "Hi"}]

# ---------------------------------------------------------------- requests


def test_a_request_goes_up_as_it_is():
    body = {
        "model": "m", "messages": [{"role": "x", "odd": 1}, "text", None], "nonsense": {"deep": [1]}, "max_tokens": 1,
        "response_format": {"type": "json_schema", "json_schema": {}}, "user": "u" * 100, "temperature": "0.5",
        "structured_outputs": {"regex": "a"}, "chat_template_kwargs": {"enable_thinking": False},
    }
    before = copy.deepcopy(body)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(body) == before == body


@pytest.mark.parametrize("messages", [None, "x", 5, {}, [], [None, 5]])
def test_messages_of_any_type_are_for_the_server_to_judge(messages):
    assert prepare({"messages": messages}) == {"messages": messages}


@pytest.mark.parametrize(
    "message, sent",
    [
        ({"reasoning": "r"}, {"reasoning": "r", "reasoning_content": "r"}),
        ({"reasoning_content": "r"}, {"reasoning": "r", "reasoning_content": "r"}),
        ({"reasoning": None, "reasoning_content": "r"}, {"reasoning": "r", "reasoning_content": "r"}),
        ({"reasoning": "", "content": "c"}, {"reasoning": "", "reasoning_content": "", "content": "c"}),
        ({"reasoning": "a", "reasoning_content": "b"}, {"reasoning": "a", "reasoning_content": "b"}),
        ({"reasoning": None}, {"reasoning": None}),
        ({"content": "c"}, {"content": "c"}),
    ],
)
def test_replayed_reasoning_has_both_names(message, sent):
    body = {"messages": [{"role": "user", "content": "q"}, dict(message, role="assistant")]}
    before = copy.deepcopy(body)
    assert prepare(body)["messages"] == [{"role": "user", "content": "q"}, dict(sent, role="assistant")]
    assert body == before  # the caller's own history stays as it is


def test_reasoning_alone_and_in_a_tuple():
    sent = prepare({"messages": tuple({"role": "assistant", name: "r"} for name in ("reasoning", "reasoning_content"))})
    assert sent["messages"] == [{"role": "assistant", "reasoning": "r", "reasoning_content": "r"}] * 2
    sent = prepare({"messages": [{"role": "assistant", "reasoning_content": "r"}] * 2})
    assert sent["messages"] == [{"role": "assistant", "reasoning": "r", "reasoning_content": "r"}] * 2


@pytest.mark.parametrize("arguments", ["", " \n", None])
@pytest.mark.parametrize("sequence", [list, tuple])
def test_calls_without_arguments_go_up_with_none(arguments, sequence):
    def call(given):
        return {"id": "a", "type": "function", "function": {"name": "now", "arguments": given}}

    others = [call("{}"), call('{"x": 1}'), call("broken"), {"type": "custom"}, {"function": 5}, {"function": {}}, "x"]
    message = {"role": "assistant", "content": None, "tool_calls": sequence([*others, call(arguments)])}
    body = {"messages": [message, {"role": "tool", "content": "12:00", "tool_call_id": "a"}]}
    before = copy.deepcopy(body)
    after = prepare(body)["messages"]
    assert after[0] == {**message, "tool_calls": [*others, call("{}")]} and after[1] is body["messages"][1]
    assert body == before


@pytest.mark.parametrize("call", [{"type": "custom", "custom": {"name": "f", "input": "x"}}, {"function": 5}, {}])
def test_a_call_of_another_type_is_not_flagged(call):
    reply = normalise(completion({"tool_calls": [dict(call)]}, "tool_calls"))
    assert reply["choices"][0]["message"]["tool_calls"] == [call]


@pytest.mark.parametrize(
    "given, outputs",
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        ({"guided_regex": "a", "structured_outputs": {"whitespace_pattern": " "}},
         {"regex": "a", "whitespace_pattern": " "}),
        ({"guided_regex": "old", "structured_outputs": {"regex": "new"}}, {"regex": "new"}),
        ({"guided_json": {}, "guided_choice": ["a"]}, {"json": {}, "choice": ["a"]}),
    ],
)
def test_guided_parameters_are_renamed(given, outputs):
    before = copy.deepcopy(given)
    with pytest.warns(DeprecationWarning, match=r"guided_\w+ was removed in vLLM 0.12; .* structured_outputs"):
        assert rename_guided(given) == {"structured_outputs": outputs}
    assert given == before


def test_guided_beside_structured_outputs_of_another_type_cannot_be_sent():
    with pytest.raises(BadRequestError, match="structured_outputs must be an object, got 'x'"):
        rename_guided({"guided_json": {}, "structured_outputs": "x"})


@pytest.mark.parametrize(
    "call",
    [
        lambda vllm: vllm.chat_completion(messages=MESSAGES, guided_choice=["a"]),
        lambda vllm: vllm.chat_completion_stream(messages=MESSAGES, guided_choice=["a"]),
        lambda vllm: vllm.text_completion(prompt="x", guided_choice=["a"]),
        lambda vllm: vllm.text_completion_stream(prompt="x", extra_body={"guided_choice": ["a"]}),
        lambda vllm: vllm.forward("chat_completion", {"messages": MESSAGES, "guided_choice": ["a"]}),
        lambda vllm: vllm.forward_stream("chat_completion", {"messages": MESSAGES, "guided_choice": ["a"]}),
        lambda vllm: vllm.responses(input="x", guided_choice=["a"]),
        lambda vllm: vllm.responses_stream(input="x", guided_choice=["a"]),
    ],
)
def test_the_warning_points_at_the_callers_line(call):
    """Python shows a DeprecationWarning by itself only where it is the caller's own line."""
    with VLLMProvider("http://127.0.0.1:9", max_retries=0, timeout=5) as vllm:
        with pytest.warns(DeprecationWarning, match="guided_choice") as caught, pytest.raises(ConnectionError):
            call(vllm)
    assert [warning.filename for warning in caught] == [__file__]
    assert caught[0].lineno == call.__code__.co_firstlineno


# ---------------------------------------------------------------- replies


def completion(message=None, finish_reason="stop"):
    return {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


@pytest.mark.parametrize("name", [name for name in wire.names() if b'"chat.completion"' in wire.load(name).body])
def test_normalising_a_recorded_completion_only_adds(name):
    sent, reply = wire.load(name).json, normalise(wire.load(name).json)
    for choice, original in zip(reply["choices"], sent["choices"]):
        message, was = choice["message"], original["message"]
        assert message.pop("reasoning_content", None) == was.get("reasoning")
        for call in message.get("tool_calls") or ():
            told = call.pop("arguments_error", None)
            arguments = call["function"]["arguments"]
            try:
                right = isinstance(json.loads(arguments), dict)
            except ValueError:
                right = False
            assert (told is None) is right, arguments
    assert reply == sent


def test_a_recorded_reasoning_reads_under_both_names():
    reply = normalise(wire.load("think_reasoning").json)
    message = reply["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == wire.load("think_reasoning").json[
        "choices"][0]["message"]["reasoning"] != ""


@pytest.mark.parametrize(
    "arguments, told",
    [
        ('{"a": 1}', None),
        ("{}", None),
        ({"a": 1}, None),
        ("", None),
        (" \n", None),
        ('{"city":', "the arguments are no JSON: Expecting value"),
        ('"\\"argumentsunit \\""', "the arguments are no JSON object"),  # s_err_tools_bad_schema
        ("[1]", "the arguments are no JSON object"),
        ("null", "the arguments are no JSON object"),
        (None, None),
        (5, "the arguments are no JSON object"),
        ("[" * 100000, "the arguments are no JSON"),
    ],
)
def test_broken_arguments_are_flagged_and_kept(arguments, told):
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    reply = normalise(completion({"role": "assistant", "tool_calls": [call]}, "tool_calls"))
    [after] = reply["choices"][0]["message"]["tool_calls"]
    assert after["function"] == {"name": "f", "arguments": arguments}
    if told is None:
        assert "arguments_error" not in after
    else:
        assert after["arguments_error"].startswith(told)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_aborted_generation_is_an_error(reason):
    payload = completion({"content": "so far"}, reason)
    with pytest.raises(InternalServerError, match="aborted the generation .finish_reason '%s'" % reason) as raised:
        normalise(payload)
    assert raised.value.payload is payload and raised.value.code == "abort" and raised.value.status_code == 502
    for reason in ("stop", "length", "tool_calls", "content_filter", "repetition", None, [], {}):
        check_finish({"finish_reason": reason}, payload)
    check_finish({}, payload)


@pytest.mark.parametrize(
    "payload",
    [{}, {"choices": None}, {"choices": 5}, {"choices": [None, 5, "x", []]}, {"choices": [{}]}, completion(None),
     completion("x"), completion({"tool_calls": 5}), completion({"tool_calls": [None, {}, {"function": 5}]})],
)
def test_odd_replies_pass(payload):
    assert normalise(payload) is payload
    assert normalise_chunk(payload) is False


def test_a_chunk_with_reasoning_has_both_names():
    for name in ("reasoning", "reasoning_content"):
        chunk = {"choices": [{"delta": {"content": "x"}}, {"delta": {name: "r"}}, {"delta": None}]}
        assert normalise_chunk(chunk) is True
        assert chunk["choices"][1]["delta"] == {"reasoning": "r", "reasoning_content": "r"}
        assert chunk["choices"][0]["delta"] == {"content": "x"}
        assert normalise_chunk(chunk) is False


# ---------------------------------------------------------------- chunks → completion


def folded(*chunks):
    accumulator = ChatAccumulator()
    before = copy.deepcopy(chunks)
    for chunk in chunks:
        accumulator.feed(chunk)
    assert chunks == before  # the caller has them too
    return accumulator.completion()


def delta(index=0, **fields):
    return {"id": "c", "choices": [{"index": index, "delta": fields}]}


def calls(*lists):
    message = folded(*[delta(tool_calls=parts) for parts in lists])["choices"][0]["message"]
    return [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


def part(index=None, id=None, name=None, arguments=None, **more):
    made = dict(more)
    if index is not None:
        made["index"] = index
    if id is not None:
        made["id"] = id
    made["function"] = {"name": name, "arguments": arguments}
    return made


def test_nothing_arrived():
    assert folded() == {"object": "chat.completion", "choices": []}


def test_text_of_two_choices():
    reply = folded(
        {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m", "usage": None,
         "choices": [{"index": 1, "delta": {"role": "assistant", "content": ""}}]},
        delta(0, role="assistant", content=""), delta(1, content="b1"), delta(0, content="a1"), delta(1, content="b2"),
        {"id": "c", "choices": [{"index": 1, "delta": {}, "finish_reason": "stop", "stop_reason": "x"}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "a2"}, "finish_reason": "length"}],
         "system_fingerprint": "f"},
        {"id": "c", "choices": [], "usage": {"total_tokens": 5}, "system_fingerprint": None},
    )
    assert reply == {
        "id": "c", "object": "chat.completion", "created": 5, "model": "m", "usage": {"total_tokens": 5},
        "system_fingerprint": "f",
        "choices": [
            {"index": 0, "finish_reason": "length",
             "message": {"role": "assistant", "content": "a1a2", "refusal": None}},
            {"index": 1, "finish_reason": "stop", "stop_reason": "x",
             "message": {"role": "assistant", "content": "b1b2", "refusal": None}},
        ],
    }


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_then_text(name):
    chunks = delta(content=""), delta(**{name: "a"}), delta(**{name: "b"}), delta(content="c")
    message = folded(*chunks)["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("ab", "ab", "c")
    message = folded(delta(content=""), delta(**{name: "a"}))["choices"][0]["message"]
    assert message["content"] is None  # as vLLM says it without streaming: think_reasoning_only


def test_other_fields_of_a_delta():
    message = folded(delta(refusal="I "), delta(refusal="won't"), delta(role=None, odd={"a": 1}), delta(odd=None),
                     delta(role="tool"))["choices"][0]["message"]
    assert (message["refusal"], message["odd"], message["role"]) == ("I won't", {"a": 1}, "tool")


def test_logprobs_and_token_ids_are_joined():
    def chunk(number, top=None):
        choice = {"index": 0, "delta": {"content": "x"}, "token_ids": [number],
                  "logprobs": {"content": [{"token": number}], "refusal": None, "top": top}}
        return {"id": "c", "choices": [choice]}

    [choice] = folded(chunk(1), chunk(2, 5), chunk(3))["choices"]
    assert choice["token_ids"] == [1, 2, 3]
    assert choice["logprobs"] == {"content": [{"token": n} for n in (1, 2, 3)], "refusal": None, "top": 5}


def test_what_was_returned_stays_as_it_was():
    accumulator = ChatAccumulator()
    chunk = {"choices": [{"delta": {"content": "x", "tool_calls": [part(0, "i", "f", "{")]}, "token_ids": [1],
                          "logprobs": {"content": [1]}}]}
    accumulator.feed(chunk)
    first = accumulator.completion()
    before = copy.deepcopy(first)
    accumulator.feed(chunk)
    accumulator.completion()
    assert first == before


@pytest.mark.parametrize("name", ["content", "reasoning", "refusal"])
def test_the_halves_of_a_character_are_one(name):
    pieces = ["a\ud83d", "\ude00b\ud83d", "", "\ude00\ud83d", "x\ude00"]
    message = folded(*[delta(**{name: piece}) for piece in pieces])["choices"][0]["message"]
    assert message[name] == "a\U0001f600b\U0001f600\ud83dx\ude00"
    call = calls([part(0, "a", "f", '{"x": "\ud83d')], [part(0, None, None, '\ude00"}')])
    assert call == [("a", "f", '{"x": "\U0001f600"}')]


def test_an_empty_finish_is_none():
    reply = normalise({"choices": [{"message": {"content": "x"}, "finish_reason": "", "stop_reason": ""}]})
    assert reply["choices"] == [{"message": {"content": "x"}, "finish_reason": None, "stop_reason": None}]
    chunks = [{"choices": [{"delta": {"content": "x"}, "finish_reason": reason, "stop_reason": stop}]}
              for reason, stop in (("", ""), ("stop", 7), ("", ""))]
    [choice] = folded(*chunks[:1])["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == (None, None)
    [choice] = folded(*chunks)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 7)


# tool calls


def test_parallel_calls_of_one_index():
    assert calls([part(0, "a", "f", '{"x": 1}')], [part(0, "b", "f", "")], [part(0, None, None, '{"x": 2}')]) == [
        ("a", "f", '{"x": 1}'), ("b", "f", '{"x": 2}')]


def test_arguments_as_an_object_are_json():
    assert calls([part(0, "a", "f", {"x": 1})], [part(0, "b", "f", {})]) == [("a", "f", '{"x": 1}'), ("b", "f", "{}")]


@pytest.mark.parametrize("kind", [None, "custom", 5])
def test_a_call_of_another_type(kind):
    call = folded(delta(tool_calls=[{"index": 0, "id": "a", "type": kind, "custom": {"name": "f", "input": "x"},
                                     "function": None}]))["choices"][0]["message"]["tool_calls"][0]
    assert call["type"] == (kind or "function") and call["custom"] == {"name": "f", "input": "x"}


def test_the_input_of_a_custom_tool_comes_in_pieces():
    parts = [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}},
             {"index": 0, "type": None, "custom": {"name": None, "input": "y"}}]
    [call] = folded(*[delta(tool_calls=[part]) for part in parts])["choices"][0]["message"]["tool_calls"]
    assert call == {"id": "a", "type": "custom", "custom": {"name": "f", "input": "xy"}}


def test_vllms_own_way():
    assert calls([{"id": "a", "type": "function", "index": 0, "function": {"name": "f"}}],
                 [{"index": 0, "function": {"arguments": '{"x'}}], [{"index": 0, "function": {"arguments": '": 1}'}}],
                 [{"id": "b", "type": "function", "index": 1, "function": {"name": "g"}}],
                 [{"index": 1, "function": {"arguments": "{}"}}]) == [("a", "f", '{"x": 1}'), ("b", "g", "{}")]


def test_id_and_name_stay_as_they_first_came():
    assert calls([part(0, "a", "f", "{")], [part(0, "b", "f", "}")], [part(0, "", "g", None)]) == [("a", "f", "{}")]


def test_interleaved_and_in_any_order():
    first = [part(1, "b", "g", "1"), part(0, "a", "f", "2")]
    assert calls(first, [part(0, arguments="3")], [part(1, arguments="4")]) == [("a", "f", "23"), ("b", "g", "14")]


def test_empty_lists_null_lists_and_null_arguments():
    assert calls([], None, [part(0, "a", "f", None)], [], [part(0, arguments="")]) == [("a", "f", "")]


def test_a_missing_id_is_made_up_once_and_differs_by_choice_and_call():
    chunks = [delta(choice, tool_calls=[part(number, None, "f", "{}")]) for choice in (0, 1) for number in (0, 2)]
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    ids = [call["id"] for choice in accumulator.completion()["choices"] for call in choice["message"]["tool_calls"]]
    assert ids == ["call_c_0_0", "call_c_0_2", "call_c_1_0", "call_c_1_2"]
    accumulator.feed(delta(0, tool_calls=[part(0, arguments=" ")]))
    assert accumulator.completion()["choices"][0]["message"]["tool_calls"][0]["id"] == ids[0]


def test_without_an_index_the_id_tells_calls_apart():
    assert calls([part(None, "a", "f", "1")], [part(None, "b", "g", "2")], [part(None, "a", None, "3")]) == [
        ("a", "f", "13"), ("b", "g", "2")]
    assert calls([part(None, "a", "f", "1"), part(None, "b", "g", "2")], [part(None, None, None, "3")]) == [
        ("a", "f", "13"), ("b", "g", "2")]


def test_a_call_that_was_cut_is_flagged():
    message = folded({"choices": [{"delta": {"tool_calls": [part(0, "a", "f", "")]}, "finish_reason": "length"}]})[
        "choices"][0]["message"]
    assert message["tool_calls"][0]["arguments_error"].startswith("the arguments are no JSON")
    message = folded(delta(content="let me see", tool_calls=[part(0, "a", "f", '{"city":')]))["choices"][0]["message"]
    assert message["content"] == "let me see"
    assert message["tool_calls"][0]["arguments_error"].startswith("the arguments are no JSON")
    assert message["tool_calls"][0]["type"] == "function"


def test_other_fields_of_a_call_are_kept():
    message = folded(delta(tool_calls=[part(0, "a", "f", "{}", odd=1)]), delta(tool_calls=[
        {"index": 0, "odd": 2, "function": {"more": 3}}]))["choices"][0]["message"]
    assert message["tool_calls"] == [{"id": "a", "type": "function", "odd": 1, "function": {
        "name": "f", "more": 3, "arguments": "{}"}}]
    assert message["content"] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(float("nan")) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "index", "delta", "choices", "tool_calls", "function", "name", "arguments", "content",
                         "role", "reasoning", "finish_reason", "logprobs", "token_ids", "usage", "message", "text"]),
        inner, max_size=4),
    max_leaves=12,
)
CHUNK = st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries(
    {"index": JSON, "delta": st.fixed_dictionaries({"content": JSON, "role": JSON, "tool_calls": st.lists(
        st.fixed_dictionaries({"index": JSON, "id": JSON, "function": JSON}) | JSON, max_size=2) | JSON}) | JSON,
     "logprobs": JSON, "finish_reason": JSON}) | JSON, max_size=3) | JSON, "id": JSON, "usage": JSON})


@settings(max_examples=40, deadline=None)
@given(st.lists(CHUNK, max_size=4))
def test_any_chunks_fold(chunks):
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
        normalise_chunk(chunk)
    reply = accumulator.completion()
    json.dumps(reply)
    indexes = [choice["index"] for choice in reply["choices"]]
    assert indexes == sorted(set(indexes))
    try:
        normalise(reply)
    except InternalServerError:
        pass
