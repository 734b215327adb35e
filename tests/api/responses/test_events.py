"""Chat chunks → Responses events."""

import json

import pytest

import wire
from validity import check_event
from vllm_bridge.api.chat import ChatAccumulator
from vllm_bridge.errors import BadRequestError, IncompleteStreamError, InternalServerError, RequestCancelledError
from vllm_bridge.api.responses import ResponseEvents, from_chat, iter_events, to_chat

RECORDED = [
    name
    for name in wire.names("chat_stream") + wire.names("think_stream") + wire.names("think_off_stream")
    if wire.load(name).streams
]


def chunk(delta=None, finish=None, index=0, **top):
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return dict({"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [choice]}, **top)


def fragment(index, call_id=None, name=None, arguments=None):
    part = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        part["id"] = call_id
    if name is not None:
        part["function"]["name"] = name
    return {"tool_calls": [part]}


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, "stop")


def run(*chunks, body=None):
    context = to_chat(dict({"input": "x"}, **body))[1] if body else None
    events = list(iter_events(chunks, context))
    for event in events:
        check_event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def types(events):
    return [event["type"].replace("response.", "") for event in events]


def answer(events):
    return events[-1]["response"]


def folded(chunks):
    accumulator = ChatAccumulator()
    for one in chunks:
        accumulator.feed(one)
    return accumulator.completion()


# ---------------------------------------------------------------- the grammar, as OpenAI's reference has it

OPEN = ["created", "in_progress"]


def text_events(deltas):
    opened = ["output_item.added", "content_part.added"]
    return opened + ["output_text.delta"] * deltas + ["output_text.done", "content_part.done", "output_item.done"]


def reasoning_events(deltas, text="reasoning_summary_text", part="reasoning_summary_part"):
    opened = ["output_item.added", part + ".added"]
    return opened + [text + ".delta"] * deltas + [text + ".done", part + ".done", "output_item.done"]


def call_events(*deltas):
    opened = [["output_item.added"] + ["function_call_arguments.delta"] * count for count in deltas]
    closed = [["function_call_arguments.done", "output_item.done"]] * len(deltas)
    return sum(opened + closed, [])


def counts(payloads):
    """Count the non-empty deltas of a recorded stream, by what they bring."""
    found = {"text": 0, "reasoning": 0, "calls": {}}
    for payload in payloads:
        for choice in payload["choices"]:
            delta = choice["delta"]
            found["text"] += bool(delta.get("content"))
            found["reasoning"] += bool(delta.get("reasoning"))
            for call in delta.get("tool_calls") or []:
                found["calls"].setdefault(call["index"], 0)
                found["calls"][call["index"]] += bool(call["function"].get("arguments"))
    return found


# What each recorded stream brings, in order, and how it ends.
KINDS = {
    "chat_stream_plain": ("text", "completed"),
    "chat_stream_unicode": ("text", "completed"),
    "chat_stream_usage": ("text", "completed"),
    "chat_stream_continuous": ("text", "completed"),
    "chat_stream_logprobs": ("text", "incomplete"),
    "chat_stream_length": ("text", "incomplete"),
    "chat_stream_stop": ("text", "completed"),
    "chat_stream_json_schema": ("text", "completed"),
    "chat_stream_return_token_ids": ("text", "incomplete"),
    "chat_stream_empty": ("", "completed"),
    "think_stream_reasoning": ("reasoning text", "completed"),
    "think_stream_reasoning_only": ("reasoning", "completed"),
    "think_stream_reasoning_then_tool": ("reasoning text calls", "completed"),
    "chat_stream_tools": ("calls", "completed"),
    "chat_stream_tools_two": ("text calls", "completed"),
    "chat_stream_tools_no_args": ("calls", "completed"),
    "chat_stream_tools_named": ("calls", "completed"),
    "chat_stream_tools_required": ("calls", "completed"),
    "chat_stream_tools_bad_json": ("calls", "completed"),
    "chat_stream_tools_truncated": ("calls", "incomplete"),
    "think_off_stream": ("text", "completed"),
    "think_off_stream_tools_required": ("calls", "completed"),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_events_of_a_recorded_stream_are_those_of_the_specification(name):
    kinds, status = KINDS[name]
    payloads = wire.load(name).payloads
    found = counts(payloads)
    assert bool(found["text"]) == ("text" in kinds) and bool(found["reasoning"]) == ("reasoning" in kinds)
    expected = list(OPEN)
    for kind in kinds.split():
        if kind == "text":
            expected += text_events(found["text"])
        elif kind == "reasoning":
            expected += reasoning_events(found["reasoning"])
        else:
            expected += call_events(*found["calls"].values())
    assert types(run(*payloads)) == expected + [status]


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_stream_gives_valid_events_and_the_response_of_its_completion(name):
    payloads = wire.load(name).payloads
    assert answer(run(*payloads)) == from_chat(folded(payloads))


def pieces(payload):
    """Cut a chunk so that every character of text, reasoning and arguments comes alone."""
    if len(payload["choices"]) != 1:
        return [payload]
    choice = payload["choices"][0]
    field, text = "", ""
    for key in ("content", "reasoning"):
        if choice["delta"].get(key):
            field, text = key, choice["delta"][key]
    calls = choice["delta"].get("tool_calls") or []
    if calls:
        field, text = "arguments", calls[0]["function"].get("arguments") or ""
    if len(text) < 2:
        return [payload]
    cut = []
    for position, letter in enumerate(text):
        last = position == len(text) - 1
        delta = {field: letter}
        if field == "arguments":
            delta = {"tool_calls": [{"index": calls[0]["index"], "function": {"arguments": letter}}]}
            if not position:
                delta["tool_calls"][0] = dict(calls[0], function=dict(calls[0]["function"], arguments=letter))
        part = dict(choice, delta=delta, finish_reason=choice["finish_reason"] if last else None)
        if position:  # what comes once with the chunk
            part = dict(part, logprobs=None, token_ids=None)
        if not last:
            part.pop("stop_reason", None)
        cut.append(dict(payload, choices=[part]))
    return cut


def split_call_heads(payload):
    """Cut the first fragment of a call into its id and its name."""
    for choice in payload["choices"]:
        for call in choice["delta"].get("tool_calls") or []:
            if "id" in call:
                first = {"index": call["index"], "id": call["id"]}
                second = {"index": call["index"], "function": call["function"]}
                return [
                    dict(payload, choices=[dict(choice, delta={"tool_calls": [part]}, finish_reason=None)])
                    for part in (first, second)
                ]
    return [payload]


@pytest.mark.parametrize("cut", [pieces, split_call_heads])
@pytest.mark.parametrize("name", RECORDED)
def test_however_a_stream_is_cut_the_response_is_the_same(name, cut):
    payloads = wire.load(name).payloads
    parts = [part for payload in payloads for part in cut(payload)]
    assert answer(list(iter_events(parts))) == answer(list(iter_events(payloads)))


@pytest.mark.parametrize("name", RECORDED)
def test_text_joined_into_fewer_chunks_gives_the_same_response(name):
    joined = []
    for payload in wire.load(name).payloads:
        before = joined[-1] if joined else None
        if before and only_text(before) and only_text(payload):
            text = before["choices"][0]["delta"]["content"] + payload["choices"][0]["delta"]["content"]
            joined[-1] = dict(before, choices=[dict(before["choices"][0], delta={"content": text})])
        else:
            joined.append(payload)
    assert answer(list(iter_events(joined))) == answer(list(iter_events(wire.load(name).payloads)))


def only_text(payload):
    if len(payload["choices"]) != 1 or payload.get("usage"):
        return False
    choice = payload["choices"][0]
    bare = not choice["finish_reason"] and not choice["logprobs"] and not choice.get("token_ids")
    return bare and list(choice["delta"]) == ["content"] and choice["index"] == 0


# ---------------------------------------------------------------- the fields of the events


def test_the_fields_of_a_text_stream():
    events = run(ROLE, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({"content": "!"}, "stop"))
    item_id = "msg_chatcmpl-1_item_0"
    where = {"item_id": item_id, "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": item_id, "role": "assistant", "status": "completed", "content": [part]}
    bare = [
        {key: event[key] for key in event if key not in ("type", "sequence_number")} for event in events[2:-1]
    ]
    assert bare == [
        {"output_index": 0, "item": dict(item, status="in_progress", content=[])},
        dict(where, part=dict(part, text="")),
        dict(where, delta="Hel", logprobs=[]),
        dict(where, delta="lo", logprobs=[]),
        dict(where, delta="!", logprobs=[]),
        dict(where, text="Hello!", logprobs=[]),
        dict(where, part=part),
        {"output_index": 0, "item": item},
    ]
    for event in events[:2]:
        assert event["response"]["id"] == "resp_chatcmpl-1"
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
        assert (event["response"]["model"], event["response"]["created_at"]) == ("m", 5)
    assert answer(events)["output"] == [item]


THOUGHTS = [chunk({"reasoning": "h", "reasoning_content": "h"}), chunk({"reasoning_content": "m"}), STOP]


@pytest.mark.parametrize("include, channel, text, part", [
    ([], "summary", "reasoning_summary_text", "reasoning_summary_part"),
    (["reasoning.content"], "content", "reasoning_text", "content_part"),
])
def test_reasoning_is_told_once(include, channel, text, part):
    events = run(*THOUGHTS, body={"include": include})
    assert types(events) == OPEN + reasoning_events(2, text, part) + ["completed"]
    assert {event["item_id"] for event in events if "item_id" in event} == {"rs_chatcmpl-1_item_0"}
    assert [event["delta"] for event in events if "delta" in event] == ["h", "m"]
    assert [event["text"] for event in events if "text" in event] == ["hm"]
    assert {event[channel + "_index"] for event in events if "part" in event or "delta" in event} == {0}
    (item,) = answer(events)["output"]
    assert json.dumps(item).count('"hm"') == 1 and item[channel][0]["text"] == "hm"
    assert item["summary"] == (item[channel] if channel == "summary" else [])
    assert events[2]["item"] == {key: [] if key == channel else value for key, value in dict(
        item, status="in_progress").items()}


def test_a_refusal_is_a_part_of_the_message():
    events = run(chunk({"content": "a"}), chunk({"refusal": "N"}), chunk({"refusal": "o"}), chunk({"content": "b"}))
    assert types(events) == OPEN + [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [part["type"] for part in answer(events)["output"][0]["content"]] == [
        "output_text",
        "refusal",
        "output_text",
    ]
    assert [event["content_index"] for event in events if event["type"].endswith("part.added")] == [0, 1, 2]


def test_an_annotation_has_its_event_and_its_place():
    cited = {"url": "https://x", "title": "t", "start_index": 0, "end_index": 1}
    events = run(
        chunk({"content": "a"}), chunk({"annotations": [{"type": "url_citation", "url_citation": cited}]}), STOP
    )
    (told,) = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert told["annotation"] == dict(cited, type="url_citation") and told["annotation_index"] == 0
    assert answer(events)["output"][0]["content"][0]["annotations"] == [told["annotation"]]


def test_interleaved_calls_keep_apart():
    events = run(
        chunk(fragment(0, "c1", "f")),
        chunk(fragment(1, "c2", "g", "{")),
        chunk(fragment(0, None, None, "{}")),
        chunk(fragment(1, "again", "again", "}")),
        chunk(fragment(0)),
        chunk({}, "tool_calls"),
    )
    assert types(events) == OPEN + [
        "output_item.added",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [(i["call_id"], i["name"], i["arguments"]) for i in answer(events)["output"]] == [
        ("c1", "f", "{}"),
        ("c2", "g", "{}"),
    ]
    assert not any("content_index" in event for event in events)


def test_several_calls_in_one_chunk_and_without_arguments():
    both = {"tool_calls": fragment(0, "c1", "f")["tool_calls"] + fragment(1, "c2", "g")["tool_calls"]}
    events = run(chunk(both), chunk({}, "tool_calls"))
    assert types(events) == OPEN + call_events(0, 0) + ["completed"]
    assert [item["arguments"] for item in answer(events)["output"]] == ["", ""]
    assert [item["status"] for item in answer(events)["output"]] == ["completed", "completed"]


def test_text_after_a_call_is_a_new_item():
    events = run(chunk({"content": "a"}), chunk(fragment(0, "c1", "f", "{}")), chunk({"content": "b"}), STOP)
    assert [(item["type"], item["id"]) for item in answer(events)["output"]] == [
        ("message", "msg_chatcmpl-1_item_0"),
        ("function_call", "fc_chatcmpl-1_item_1"),
        ("message", "msg_chatcmpl-1_item_2"),
    ]
    assert [event["output_index"] for event in events if event["type"].endswith("item.done")] == [0, 1, 2]


def test_a_call_waits_for_its_id_and_name_and_the_next_waits_for_it():
    machine = ResponseEvents()
    assert types(machine.feed(chunk(fragment(0, None, "f", "{")))) == OPEN
    assert machine.feed(chunk(fragment(1, "c2", "g", "{}"))) == []
    told = machine.feed(chunk(fragment(0, "c1", None, "}")))
    assert types(told) == ["output_item.added", "function_call_arguments.delta"] * 2
    assert [event["delta"] for event in told if "delta" in event] == ["{}", "{}"]
    assert [event["item"]["call_id"] for event in told if "item" in event] == ["c1", "c2"]


def test_a_call_that_never_gets_an_id_is_given_one():
    events = run(chunk(fragment(0, None, "f", "{}")), chunk({}, "tool_calls"))
    assert types(events) == OPEN + call_events(1) + ["completed"]
    assert answer(events)["output"][0]["call_id"] == "call_chatcmpl-1_0_0"


def test_fragments_without_an_index_go_by_their_id_and_else_to_the_last_call():
    def bare(**part):
        return chunk({"tool_calls": [part]})

    events = run(
        bare(id="c1", function={"name": "f", "arguments": "{"}),
        bare(function={"arguments": "}"}),
        bare(id="c2", function={"name": "g", "arguments": "{}"}),
        bare(id="c1", function={"arguments": " "}),
    )
    assert [(item["call_id"], item["arguments"]) for item in answer(events)["output"]] == [
        ("c1", "{} "),
        ("c2", "{}"),
    ]


def test_the_old_form_of_a_call_is_a_call():
    events = run(
        chunk({"function_call": {"name": "f"}}), chunk({"function_call": {"arguments": "{}"}}, "function_call")
    )
    assert types(events) == OPEN + call_events(1) + ["completed"]


def test_a_custom_call_has_its_own_events():
    body = {"tools": [{"type": "custom", "name": "shell"}, {"type": "custom", "name": "idle"}]}
    events = run(
        chunk(fragment(0, "c1", "shell", '{"inp')),
        chunk(fragment(0, None, None, 'ut": "ls"}')),
        chunk(fragment(1, "c2", "idle")),
        chunk({}, "tool_calls"),
        body=body,
    )
    assert types(events) == OPEN + [
        "output_item.added",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["ls"]
    assert [event["input"] for event in events if "input" in event] == ["ls", ""]
    assert answer(events)["output"][0]["id"] == events[2]["item"]["id"] == "ctc_chatcmpl-1_item_0"


@pytest.mark.parametrize("where", ["finish chunk", "chunk without choices", "every chunk"])
def test_usage_comes_with_the_terminal_event(where):
    chunks = [chunk({"content": "a"}), STOP]
    if where == "finish chunk":
        chunks[-1] = dict(STOP, usage=USAGE)
    elif where == "every chunk":
        chunks = [dict(one, usage=dict(USAGE, total_tokens=number + 2)) for number, one in enumerate(chunks)]
    else:
        chunks.append({"id": "chatcmpl-1", "choices": [], "usage": USAGE})
    events = run(*chunks)
    assert answer(events)["usage"]["total_tokens"] == 3
    assert all(event["response"]["usage"] is None for event in events[:2])


def test_choices_come_one_after_the_other():
    events = run(
        chunk({"content": "b"}, index=1),
        chunk({"content": "a"}),
        chunk(fragment(0, None, "f"), index=1),
        chunk({}, "stop"),
        chunk({}, "tool_calls", index=1),
    )
    assert types(events) == OPEN + text_events(1) + text_events(1) + call_events(0) + ["completed"]
    assert [item["id"] for item in answer(events)["output"]] == [
        "msg_chatcmpl-1_item_0",
        "msg_chatcmpl-1_item_1",
        "fc_chatcmpl-1_item_2",
    ]
    assert answer(events)["output"][2]["call_id"] == "call_chatcmpl-1_1_0"
    assert [record["finish_reason"] for record in answer(events)["chat_choices"]] == ["stop", "tool_calls"]


def test_an_empty_piece_in_the_middle_of_a_text_is_nothing():
    for empty in ("", None, []):
        events = run(chunk({"content": "a"}), chunk({"content": empty}), chunk({"content": "b"}), STOP)
        assert types(events) == OPEN + text_events(2) + ["completed"]
        assert [event["delta"] for event in events if "delta" in event] == ["a", "b"]


@pytest.mark.parametrize("kind", [None, "", "function", "other"])
def test_the_type_of_a_streamed_call_does_not_matter(kind):
    first, second = fragment(0, "c1", "f", "{"), fragment(0, None, None, "}")
    for part in first["tool_calls"] + second["tool_calls"]:
        part["type"] = kind
    events = run(chunk(first), chunk(second), chunk({}, "tool_calls"))
    assert types(events) == OPEN + call_events(2) + ["completed"]
    (call,) = answer(events)["output"]
    assert (call["type"], call["name"], call["arguments"], call["status"]) == ("function_call", "f", "{}", "completed")


def test_parallel_calls_of_one_index_are_two():
    # So Dynamo and Ollama number them.
    events = run(
        chunk(fragment(0, "c1", "f", '{"a": 1}')),
        chunk(fragment(0, "c2", "g", '{"b"')),
        chunk(fragment(0, None, None, ": 2}")),
        chunk({}, "tool_calls"),
    )
    assert [(item["call_id"], item["name"], item["arguments"]) for item in answer(events)["output"]] == [
        ("c1", "f", '{"a": 1}'), ("c2", "g", '{"b": 2}'),
    ]


def test_the_halves_of_a_character_are_one_in_what_is_whole():
    halves = [{"content": "\ud83d"}, {"content": "\ude00"}]
    events = run(*[chunk({"reasoning": half["content"]}) for half in halves], *map(chunk, halves), STOP)
    thought, message = answer(events)["output"]
    assert thought["summary"][0]["text"] == message["content"][0]["text"] == "\U0001f600"
    assert [event["text"] for event in events if "text" in event] == ["\U0001f600"] * 2


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    "finish, terminal",
    [("length", "incomplete"), ("content_filter", "incomplete"), ("abort", "failed"), ("error", "failed")],
)
def test_an_answer_that_was_cut_says_so(finish, terminal):
    events = run(chunk({"reasoning": "r"}), chunk({"content": "a"}), chunk({}, finish))
    assert types(events)[-1] == terminal == answer(events)["status"]
    assert [item["status"] for item in answer(events)["output"]] == ["completed", "incomplete"]


def test_of_several_calls_only_the_last_is_cut():
    events = run(chunk(fragment(0, "c1", "f", "{}")), chunk(fragment(1, "c2", "g", '{"a')), chunk({}, "length"))
    assert [item["status"] for item in answer(events)["output"]] == ["completed", "incomplete"]


def test_an_error_in_the_middle_closes_what_is_open():
    payloads = wire.load("kill_engine_chat_stream").payloads
    events = run(*payloads)
    assert types(events) == OPEN + text_events(counts(payloads[:-1])["text"]) + ["failed"]
    assert answer(events)["error"]["message"] == payloads[-1]["error"]["message"]
    assert answer(events)["error"]["type"] == "InternalServerError"
    assert answer(events)["output"][0]["status"] == "incomplete"


def broken(chunks, error):
    yield from chunks
    raise error


def test_an_exception_after_the_first_event_is_the_terminal_event():
    error = IncompleteStreamError("the stream was cut")
    events = list(iter_events(broken([chunk(fragment(0, "c1", "f", "{")), chunk({"content": "a"})], error)))
    for event in events:
        check_event(event)
    assert types(events)[-1] == "failed"
    assert answer(events)["error"]["message"] == "the stream was cut"
    assert [item["status"] for item in answer(events)["output"]] == ["incomplete", "incomplete"]


def test_an_exception_before_the_first_event_is_raised():
    with pytest.raises(InternalServerError):
        next(iter_events(broken([], InternalServerError("down"))))


def test_an_error_before_the_first_chunk_is_an_error_event():
    machine = ResponseEvents()
    (event,) = machine.fail(BadRequestError("no", param="p", code=400))
    check_event(event)
    assert event == {
        "type": "error",
        "sequence_number": 0,
        "code": "400",
        "message": "no",
        "param": "p",
        "error": {"type": "BadRequestError", "code": "400", "message": "no", "param": "p"},
    }
    assert machine.feed(ROLE) == [] and machine.response is None


def test_a_stream_of_nothing_is_an_error_event():
    (event,) = run()
    assert event["type"] == "error" and event["code"] is None


def test_nothing_comes_after_the_terminal_event():
    machine = ResponseEvents()
    machine.feed(chunk({"content": "a"}))
    assert machine.response is None
    assert types(machine.finish())[-1] == "completed"
    assert machine.response["status"] == "completed"
    assert machine.feed(chunk({"content": "b"})) == []
    assert machine.finish() == [] and machine.fail(InternalServerError("x")) == []


def test_a_chunk_of_the_request_that_was_refused_late_fails_the_response():
    # vLLM 0.32.0 answers 200 and then says 400 (s_err_structured_empty_choice).
    payload = wire.load("s_err_structured_empty_choice").payloads[0]
    machine = ResponseEvents()
    (event,) = machine.feed(payload)
    assert event["type"] == "error" and event["code"] == "400"
    assert machine.finish() == []


class SoftLimit(Exception):
    """Like celery's SoftTimeLimitExceeded."""


@pytest.mark.parametrize("error", [
    SoftLimit("3 s"), KeyboardInterrupt(), OSError("a file"), RequestCancelledError("enough"),
])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_exception_that_is_not_the_streams_passes(error, before):
    chunks = [chunk({"content": "a"}), chunk(fragment(0, "c1", "f", "{"))][:before]
    seen = []
    with pytest.raises(type(error)) as caught:
        for event in iter_events(broken(chunks, error)):
            seen.append(event["type"])
    assert caught.value is error and "response.failed" not in seen


def test_an_empty_finish_reason_is_no_end():
    events = run(chunk({"content": "a"}, ""), chunk({"content": "b"}, ""), chunk({}, "length"), chunk({}, ""))
    assert types(events) == OPEN + text_events(2) + ["incomplete"]
    only = run(chunk({"content": "a"}, ""))
    assert (answer(only)["status"], answer(only)["chat_choices"][0]["finish_reason"]) == ("completed", None)


@pytest.mark.parametrize("beside", [{}, {"choices": []}])
def test_an_error_in_a_chunk_fails_the_response(beside):
    events = run(chunk({"content": "a"}), dict(beside, error={"message": "down", "code": 500}), chunk({"content": "b"}))
    assert types(events) == OPEN + text_events(1) + ["failed"] and answer(events)["error"]["message"] == "down"


# ---------------------------------------------------------------- what vLLM adds


def test_fields_of_vllm_reach_the_response():
    token_ids = wire.load("chat_stream_return_token_ids").payloads
    response = answer(run(*token_ids))
    assert response["prompt_token_ids"] == token_ids[0]["prompt_token_ids"]
    assert response["chat_choices"] == [{"index": 0, "finish_reason": "length", "token_ids": [309, 3, 413]}]
    assert response["system_fingerprint"] == token_ids[-1]["system_fingerprint"]
    stopped = answer(run(*wire.load("chat_stream_stop").payloads))
    assert stopped["chat_choices"][0]["stop_reason"] == " 10"
    assert answer(run(chunk({"content": "a"}, service_tier="flex")))["service_tier"] == "flex"


def test_what_a_chunk_brings_beside_its_text_is_not_passed_over():
    # Such a chunk looks almost like the one that most streams consist of.
    plain = chunk({"content": "b"})
    cut = answer(run(chunk({"content": "a"}), chunk({"content": "b"}, "length")))
    assert cut["status"] == "incomplete"
    counted = answer(run(chunk({"content": "a"}), dict(plain, usage=USAGE, more=1), plain, STOP))
    assert counted["usage"]["total_tokens"] == 3 and counted["more"] == 1
    marked = dict(plain, choices=[dict(plain["choices"][0], mark="x")])
    assert answer(run(chunk({"content": "a"}), marked, STOP))["chat_choices"][0]["mark"] == "x"
    mixed = chunk({"content": "b", "reasoning": "r"})
    assert len(answer(run(chunk({"content": "a"}), mixed, STOP))["output"]) == 3


def test_the_first_name_of_a_call_stays():
    chunks = [chunk(fragment(0, None, "f")), chunk(fragment(0, None, "g")), chunk(fragment(0, "c1", "h"))]
    assert answer(run(*chunks))["output"][0]["name"] == "f"


def test_unknown_text_of_a_delta_is_joined():
    events = run(chunk({"content": "a", "mood": "o"}), chunk({"mood": "k"}), chunk({"mood": 5}))
    assert answer(events)["chat_choices"][0]["mood"] == 5
    events = run(chunk({"content": "a", "mood": "o"}), chunk({"mood": "k"}))
    assert answer(events)["chat_choices"][0]["mood"] == "ok"


def test_logprobs_go_with_their_delta_and_with_the_whole():
    payloads = wire.load("chat_stream_logprobs").payloads
    events = run(*payloads)
    deltas = [event["logprobs"] for event in events if event["type"].endswith("text.delta")]
    sent = [choice["logprobs"]["content"] for one in payloads for choice in one["choices"] if choice["logprobs"]]
    assert deltas == sent
    assert answer(events)["output"][0]["content"][0]["logprobs"] == sum(sent, [])


def logged(delta, *tokens):
    one = chunk(delta)
    content = [{"token": token, "logprob": -1.0, "bytes": [], "top_logprobs": []} for token in tokens]
    one["choices"][0]["logprobs"] = {"content": content}
    return one


def test_logprobs_of_text_that_reasoning_follows_are_its_own():
    chunks = [logged({"content": "a"}, "a"), logged({"reasoning": "th"}, "t", "h"), logged({"content": "b"}, "b"), STOP]
    first, _, second = answer(run(*chunks))["output"]
    assert [token["token"] for token in first["content"][0]["logprobs"]] == ["a"]
    assert [token["token"] for token in second["content"][0]["logprobs"]] == ["b"]
    events = run(*chunks[:2], STOP)
    (done,) = [event for event in events if event["type"] == "response.output_text.done"]
    assert [token["token"] for token in done["logprobs"]] == ["a"]
    _, message = from_chat(folded(chunks[:2]))["output"]
    assert [token["token"] for token in message["content"][0]["logprobs"]] == ["a"]
    record = answer(events)["chat_choices"][0]
    assert [token["token"] for token in record["logprobs"]["content"]] == ["a", "t", "h"]


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"delta": 5}]},
        {"choices": [{"delta": ["content"]}]},
        {"choices": [{"index": {}, "delta": {"content": 5, "tool_calls": 5}}]},
        {"choices": [{"delta": {"tool_calls": [5, {"index": "0", "id": {}, "function": 5}]}}]},
        {"choices": {"0": {}}},
        {},
    ],
)
def test_a_chunk_of_the_wrong_shape_does_no_harm(odd):
    events = run(ROLE, chunk({"content": "a"}), odd, chunk({"content": "b"}), STOP)
    assert types(events)[-1] == "completed"
    texts = [part["text"] for item in answer(events)["output"] for part in item.get("content", [])]
    assert "".join(texts) == "ab"
