"""Responses and their events → chat (SPEC §5.2, the last two paragraphs)."""

import pytest

import wire
from vllm_bridge.chat import ChatAccumulator
from vllm_bridge.errors import (
    BadRequestError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)
from vllm_bridge.responses import ChatChunks, ResponseEvents, from_chat, iter_chunks, iter_events, to_completion

COMPLETIONS = [
    name
    for name in wire.names("chat_") + wire.names("think_")
    if not wire.load(name).streams and wire.load(name).json.get("object") == "chat.completion"
    if len(wire.load(name).json["choices"]) == 1
]
STREAMS = [
    name
    for name in wire.names("chat_stream") + wire.names("think_stream")
    if wire.load(name).streams and "n2" not in name
]


def response(*output, status="completed", **fields):
    return dict({"id": "resp_1", "created_at": 5, "model": "m", "status": status, "output": list(output)}, **fields)


def message(*parts):
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": list(parts)}


def text(value, **more):
    return dict({"type": "output_text", "text": value, "annotations": []}, **more)


CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"}


def folded(chunks):
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    return accumulator.completion()


# ---------------------------------------------------------------- whole replies


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_recorded_completion_comes_back_as_it_was(name):
    before = wire.load(name).json
    after = to_completion(from_chat(before))
    assert (after["id"], after["created"], after["model"]) == (before["id"], before["created"], before["model"])
    old, new = before["choices"][0], after["choices"][0]
    assert (new["message"]["content"] or "") == (old["message"]["content"] or "")
    assert new["message"].get("reasoning") == old["message"]["reasoning"]
    assert new["message"].get("tool_calls", []) == old["message"].get("tool_calls", [])
    for key in ("finish_reason", "stop_reason", "token_ids"):
        assert new.get(key) == old[key]
    tokens = (old["logprobs"] or {}).get("content")
    assert (new["logprobs"] or {}).get("content") == tokens
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert after["usage"][key] == before["usage"][key]
    for key in ("system_fingerprint", "prompt_token_ids", "prompt_logprobs"):
        assert after.get(key) == before[key]


@pytest.mark.parametrize(
    "name, finish",
    [
        ("think_responses_plain", "stop"),
        ("think_responses_tools", "tool_calls"),
        ("think_responses_truncated", "length"),
    ],
)
def test_a_response_of_vllm_itself_is_one_choice(name, finish):
    native = wire.load(name).json
    (choice,) = to_completion(native)["choices"]
    assert choice["finish_reason"] == finish
    assert choice["message"]["reasoning"] == native["output"][0]["content"][0]["text"]
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"]


def test_every_item_has_its_place_in_the_message():
    cited = {"type": "url_citation", "url": "https://x"}
    completion = to_completion(
        response(
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": None},
            message(text("a", annotations=[cited], logprobs=[{"token": "a"}]), {"type": "refusal", "refusal": "No."}),
            CALL,
            {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls"},
            {"type": "web_search_call", "id": "ws"},
            message(text("b")),
            usage=dict(input_tokens=1, output_tokens=2, total_tokens=3, input_tokens_details={"cached_tokens": 1}),
            kv_transfer_params={"a": 1},
        )
    )
    assert completion == {
        "id": "resp_1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": "No.",
                    "reasoning": "short",
                    "reasoning_content": "short",
                    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://x"}}],
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "c2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
                    ],
                },
                "logprobs": {"content": [{"token": "a"}]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": None,
        },
        "kv_transfer_params": {"a": 1},
    }


@pytest.mark.parametrize(
    "reply, finish",
    [
        (response(message(text("a"))), "stop"),
        (response(CALL), "tool_calls"),
        (response(CALL, status="incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (response(status="incomplete", incomplete_details=None), "length"),
        (response(status="incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (response(status="cancelled"), None),
    ],
)
def test_the_status_is_the_finish_reason(reply, finish):
    assert to_completion(reply)["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    "error, expected, status",
    [
        ({"code": "server_error", "message": "down"}, InternalServerError, 500),
        ({"code": "rate_limit_exceeded", "message": "down"}, RateLimitError, 429),
        ({"code": "invalid_prompt", "message": "down"}, BadRequestError, 400),
        ({"code": "invalid_prompt", "message": "down", "upstream_code": 404}, NotFoundError, 404),
        ({"code": 500, "message": "down"}, InternalServerError, 500),
        (None, InternalServerError, 500),
    ],
)
def test_a_failed_response_is_an_error(error, expected, status):
    with pytest.raises(expected) as caught:
        to_completion(response(status="failed", error=error))
    assert caught.value.status_code == status
    assert "failed response" in str(caught.value) if error is None else str(caught.value) == "down"


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_comes_back_as_the_same_completion(name):
    before = folded(wire.load(name).payloads)
    after = folded(iter_chunks(iter_events(wire.load(name).payloads)))
    old, new = before["choices"][0], after["choices"][0]
    for key in ("content", "reasoning", "tool_calls"):
        assert (new["message"].get(key) or None) == (old["message"].get(key) or None)
    for key in ("finish_reason", "stop_reason"):
        assert new.get(key) == old.get(key)
    assert new.get("token_ids") == old.get("token_ids")
    assert (after["id"], after["model"]) == (before["id"], before["model"])
    usage = before.get("usage") or {}
    assert {key: after.get("usage", {}).get(key) for key in usage if usage[key]} == {
        key: usage[key] for key in usage if usage[key]
    }


def test_the_native_stream_of_vllm_becomes_chunks():
    payloads = wire.load("think_responses_stream").payloads
    chunks = list(iter_chunks(payloads))
    native = payloads[-1]["response"]
    reply = folded(chunks)
    assert reply["choices"][0]["message"]["reasoning"] == native["output"][0]["content"][0]["text"]
    assert reply["choices"][0]["message"]["content"] == native["output"][1]["content"][0]["text"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == native["usage"]["output_tokens"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [bool(chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(chunk["id"] == native["id"] and chunk["object"] == "chat.completion.chunk" for chunk in chunks)


def test_the_native_stream_of_calls_becomes_chunks():
    payloads = wire.load("responses_tools_required_stream").payloads
    (call,) = folded(iter_chunks(payloads))["choices"][0]["message"]["tool_calls"]
    item = payloads[-1]["response"]["output"][0]
    assert call["id"] == item["call_id"]
    assert call["function"] == {"name": item["name"], "arguments": item["arguments"]}


def test_a_native_stream_that_was_cut_is_an_error_with_what_arrived():
    # vLLM 0.32.0 closes its Responses stream without a word when its engine dies.
    payloads = wire.load("kill_engine_responses_stream").payloads
    with pytest.raises(IncompleteStreamError) as caught:
        list(iter_chunks(payloads))
    said = "".join(one["delta"] for one in payloads if one["type"] == "response.output_text.delta")
    assert said and caught.value.partial["choices"][0]["message"]["content"] == said
    assert caught.value.partial["id"] == payloads[0]["response"]["id"]


def event(kind, **fields):
    return dict({"type": "response." + kind, "item_id": "i", "output_index": 0}, **fields)


def deltas(*events):
    machine = ChatChunks()
    chunks = [chunk for one in events for chunk in machine.feed(one)]
    return [chunk["choices"][0]["delta"] for chunk in chunks][1:]


def test_refusals_and_calls_are_numbered_by_us():
    added = {"output_index": 3, "item": CALL}
    custom = {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": ""}
    assert deltas(
        event("refusal.delta", delta="No."),
        event("output_item.added", **added),
        event("function_call_arguments.delta", output_index=3, delta="{}"),
        event("function_call_arguments.done", output_index=3, arguments="{}"),
        event("output_item.added", output_index=5, item=custom),
        event("custom_tool_call_input.delta", output_index=5, delta="l"),
        event("custom_tool_call_input.delta", output_index=5, delta=""),
        event("custom_tool_call_input.done", output_index=5, input="l"),
        event("function_call_arguments.delta", output_index=9, delta="lost"),
        event("function_call_arguments.done", output_index=9, arguments="lost"),
        event("output_item.done", output_index=3, item=CALL),
        event("queued"),
    ) == [
        {"refusal": "No."},
        {
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}, "index": 0}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"id": "c2", "type": "custom", "custom": {"name": "shell", "input": ""}, "index": 1}]},
        {"tool_calls": [{"index": 1, "custom": {"input": "l"}}]},
    ]


def test_what_only_the_done_events_say_is_not_lost():
    custom = {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": ""}
    assert deltas(
        event("output_text.done", content_index=0, text="whole"),
        event("output_item.added", output_index=1, item=CALL),
        event("function_call_arguments.done", output_index=1, arguments="{}"),
        event("output_item.added", output_index=2, item=custom),
        event("custom_tool_call_input.done", output_index=2, input="ls"),
    ) == [
        {"content": "whole"},
        {
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}, "index": 0}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"id": "c2", "type": "custom", "custom": {"name": "shell", "input": ""}, "index": 1}]},
        {"tool_calls": [{"index": 1, "custom": {"input": "ls"}}]},
    ]


@pytest.mark.parametrize("kind", ["reasoning_summary_text", "reasoning_text", "reasoning"])
def test_each_name_of_reasoning_is_read(kind):
    where = {"summary_index": 0} if "summary" in kind else {"content_index": 0}
    assert deltas(event(kind + ".delta", delta="h", **where), event(kind + ".delta", delta="", **where)) == [
        {"reasoning": "h", "reasoning_content": "h"}
    ]


def test_logprobs_go_with_their_text():
    machine = ChatChunks()
    chunks = machine.feed(event("output_text.delta", content_index=0, delta="a", logprobs=[{"token": "a"}]))
    assert chunks[1]["choices"][0]["logprobs"] == {"content": [{"token": "a"}]}


@pytest.mark.parametrize(
    "told, expected",
    [
        ({"type": "error", "message": "m", "code": "404", "param": None}, NotFoundError),
        ({"type": "error", "error": {"message": "m", "code": "rate_limit_exceeded"}}, RateLimitError),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}},
            InternalServerError,
        ),
    ],
)
def test_a_failure_in_the_stream_is_raised(told, expected):
    machine = ChatChunks()
    with pytest.raises(expected) as caught:
        machine.feed(told)
    assert str(caught.value) == "m" and machine.done
    machine.finish()


def test_nothing_comes_after_the_terminal_event():
    machine = ChatChunks()
    machine.feed({"type": "response.completed", "response": response()})
    assert machine.feed(event("output_text.delta", delta="a")) == []


def test_a_failure_survives_both_ways():
    there = ResponseEvents()
    events = there.feed({"id": "x", "choices": []}) + there.fail(RateLimitError("slow", code=429, type="t"))
    with pytest.raises(RateLimitError) as caught:
        list(iter_chunks(events))
    assert (caught.value.message, caught.value.type, caught.value.code) == ("slow", "t", 429)
