"""Chat completions → Responses."""

import pytest

import wire
from validity import check_response
from vllm_bridge.errors import APITimeoutError, BadRequestError, InternalServerError, RateLimitError
from vllm_bridge.api.responses import from_chat, to_chat
from vllm_bridge.api.responses.response import error_outcome

COMPLETIONS = [
    name
    for name in wire.names("chat_") + wire.names("think_")
    if not wire.load(name).streams and wire.load(name).json.get("object") == "chat.completion"
]


def completion(*messages, finish="stop", **top):
    choices = [
        {"index": index, "message": dict({"role": "assistant"}, **message), "finish_reason": finish}
        for index, message in enumerate(messages)
    ]
    return dict({"id": "chatcmpl-1", "created": 5, "model": "m", "choices": choices}, **top)


def called(call_id="c1", name="f", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def output(*messages, finish="stop", body=None):
    context = to_chat(dict({"input": "x"}, **body))[1] if body else None
    response = from_chat(completion(*messages, finish=finish), context)
    check_response(response)
    return response["output"]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_every_recorded_completion_gives_a_valid_response(name):
    reply = wire.load(name).json
    response = from_chat(reply)
    check_response(response)
    assert response["id"] == "resp_" + reply["id"]
    assert response["created_at"] == reply["created"] and response["model"] == reply["model"]
    texts = [
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    ]
    assert "".join(texts) == "".join(choice["message"]["content"] or "" for choice in reply["choices"])
    calls = [item["call_id"] for item in response["output"] if item["type"] == "function_call"]
    assert calls == [call["id"] for choice in reply["choices"] for call in choice["message"].get("tool_calls", [])]
    assert response["usage"]["total_tokens"] == reply["usage"]["total_tokens"]


def test_the_same_question_gives_what_vllm_itself_answers_as_a_response():
    # think_responses_plain and think_reasoning were recorded from one server with one question.
    native = wire.load("think_responses_plain").json
    ours = from_chat(wire.load("think_reasoning").json, to_chat({"input": "x", "include": ["reasoning.content"]})[1])
    assert [item["type"] for item in ours["output"]] == [item["type"] for item in native["output"]]
    for mine, theirs in zip(ours["output"], native["output"]):
        assert [part["text"] for part in mine["content"]] == [part["text"] for part in theirs["content"]]
    assert ours["status"] == native["status"]


def test_reasoning_then_message_then_calls():
    reasoning, message, first, second = output(
        {"reasoning": "hm", "reasoning_content": "hm", "content": "a", "tool_calls": [called(), called("c2", "g", "")]},
        finish="tool_calls",
    )
    assert reasoning == {
        "type": "reasoning",
        "id": "rs_chatcmpl-1_item_0",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "status": "completed",
    }
    assert message == {
        "type": "message",
        "id": "msg_chatcmpl-1_item_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
    }
    assert first == {
        "type": "function_call",
        "id": "fc_chatcmpl-1_item_2",
        "call_id": "c1",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }
    assert (second["name"], second["arguments"], second["status"]) == ("g", "", "completed")


def test_either_name_of_reasoning_is_read():
    assert output({"reasoning_content": "a"})[0]["summary"][0]["text"] == "a"
    assert output({"reasoning": "b"})[0]["summary"][0]["text"] == "b"


def test_refusal_and_annotations():
    cited = {"url": "https://x", "title": "t", "start_index": 0, "end_index": 1}
    (message,) = output(
        {"content": "a", "refusal": "No.", "annotations": [{"type": "url_citation", "url_citation": cited}]}
    )
    assert message["content"] == [
        {
            "type": "output_text",
            "text": "a",
            "annotations": [dict(cited, type="url_citation")],
            "logprobs": [],
        },
        {"type": "refusal", "refusal": "No."},
    ]


def test_content_in_parts_is_joined():
    assert output({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})[0]["content"][0][
        "text"
    ] == "ab"


@pytest.mark.parametrize("message", [{}, {"content": ""}, {"content": None, "refusal": None, "annotations": None}])
def test_an_empty_answer_has_no_items(message):
    # As vLLM 0.32.0 has it: responses_empty_output.
    assert output(message) == wire.load("responses_empty_output").json["output"] == []


def test_the_old_form_of_a_call_is_a_call():
    (call,) = output({"function_call": {"name": "f", "arguments": "{}"}})
    assert (call["type"], call["name"], call["call_id"]) == ("function_call", "f", "call_chatcmpl-1_0_0")


def test_calls_without_an_id_of_their_own_get_one():
    ids = [item["call_id"] for item in output({"tool_calls": [called(None), called("c"), called("c"), {}]})]
    assert ids == ["call_chatcmpl-1_0_0", "c", "call_chatcmpl-1_0_2", "call_chatcmpl-1_0_3"]


@pytest.mark.parametrize("arguments", ['{"city":', '"text"', "[]", "nonsense", "[" * 100000])
def test_a_call_whose_arguments_are_no_object_is_handed_over_and_marked(arguments):
    (call,) = output({"tool_calls": [called(arguments=arguments)]}, finish="tool_calls")
    assert call["arguments"] == arguments and call["status"] == "incomplete"


def test_custom_and_namespaced_calls_come_back_as_what_was_asked_for():
    body = {
        "tools": [
            {"type": "custom", "name": "shell"},
            {"type": "namespace", "name": "crm", "description": "d", "tools": [{"type": "function", "name": "find"}]},
        ]
    }
    shell, raw, find = output(
        {
            "tool_calls": [
                called("c1", "shell", '{"input": "ls"}'),
                called("c2", "shell", "ls -l"),
                called("c3", "crm__find"),
            ]
        },
        body=body,
    )
    assert shell == {
        "type": "custom_tool_call",
        "id": "ctc_chatcmpl-1_item_0",
        "call_id": "c1",
        "name": "shell",
        "input": "ls",
        "status": "completed",
    }
    assert raw["input"] == "ls -l"
    assert (find["type"], find["name"], find["namespace"]) == ("function_call", "find", "crm")


@pytest.mark.parametrize(
    "finish, status, details",
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        (None, "completed", None),
        ("", "completed", None),
        ("length", "incomplete", {"reason": "max_output_tokens"}),
        ("content_filter", "incomplete", {"reason": "content_filter"}),
        ("repetition", "incomplete", {"reason": "content_filter"}),
        ("abort", "failed", None),
        ("error", "failed", None),
    ],
)
def test_the_finish_reason_is_the_status(finish, status, details):
    response = from_chat(completion({"reasoning": "r", "content": "a"}, finish=finish))
    check_response(response)
    assert (response["status"], response["incomplete_details"]) == (status, details)
    assert response["completed_at"] == (5 if status == "completed" else None)
    assert (response["error"] is not None) == (status == "failed")
    last = "completed" if status == "completed" else "incomplete"
    assert [item["status"] for item in response["output"]] == ["completed", last]


def test_every_choice_gives_its_items_and_any_length_decides():
    reply = completion({"content": "a"}, {"content": "b"})
    reply["choices"][1]["finish_reason"] = "length"
    reply["choices"].reverse()
    response = from_chat(reply)
    assert [(item["content"][0]["text"], item["status"]) for item in response["output"]] == [
        ("a", "completed"),
        ("b", "incomplete"),
    ]
    assert [item["id"] for item in response["output"]] == ["msg_chatcmpl-1_item_0", "msg_chatcmpl-1_item_1"]
    assert response["status"] == "incomplete"


def test_a_clock_tells_when_it_was_completed():
    for now, completed_at in ((9.7, 9), (3.0, 5)):  # a server's clock may be ahead of ours
        context = to_chat({"input": "x"}, clock=lambda: now)[1]
        assert from_chat(completion({"content": "a"}), context)["completed_at"] == completed_at


def test_usage_with_its_details():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 8, "created_cache_tokens": 2, "multimodal_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "queue_seconds": 0.5,
    }
    assert from_chat(completion({"content": "a"}, usage=usage))["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2, "created_cache_tokens": 2},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 14,
        "queue_seconds": 0.5,
    }
    assert from_chat(completion({"content": "a"}))["usage"] is None
    assert from_chat(completion({"content": "a"}, usage={"prompt_tokens": 2, "completion_tokens": 3}))["usage"][
        "total_tokens"
    ] == 5


def test_fields_of_vllm_are_kept():
    response = from_chat(wire.load("chat_return_token_ids").json)
    recorded = wire.load("chat_return_token_ids").json
    assert response["prompt_token_ids"] == recorded["prompt_token_ids"]
    assert response["prompt_text"] == recorded["prompt_text"]
    assert response["system_fingerprint"] == recorded["system_fingerprint"]
    assert response["chat_choices"] == [
        {"index": 0, "finish_reason": "stop", "token_ids": recorded["choices"][0]["token_ids"]}
    ]
    assert from_chat(wire.load("chat_stop").json)["chat_choices"][0]["stop_reason"] == " 10"


def test_a_field_of_the_reply_never_replaces_one_of_the_response():
    response = from_chat(completion({"content": "a"}, status="odd", tools="odd", service_tier="flex", more=1))
    assert (response["status"], response["tools"], response["more"]) == ("completed", [], 1)
    assert response["service_tier"] == "flex"


def test_the_request_is_echoed():
    body = {
        "model": "asked",
        "input": "x",
        "instructions": "Be kind.",
        "temperature": 0,
        "top_p": 0.5,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
            "verbosity": "low",
        },
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "truncation": "auto",
        "store": True,
        "top_logprobs": 2,
    }
    response = from_chat({"choices": []}, to_chat(body)[1])
    check_response(response)
    for key in ("instructions", "temperature", "top_p", "max_output_tokens", "tool_choice", "metadata"):
        assert response[key] == body[key]
    assert response["parallel_tool_calls"] is False and response["truncation"] == "auto"
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert response["text"]["format"]["name"] == "n" and response["text"]["verbosity"] == "low"
    assert response["tools"][0]["name"] == "f" and response["top_logprobs"] == 2
    assert response["background"] is False and response["previous_response_id"] is None
    assert response["store"] is False  # nothing is stored, whatever was asked
    assert response["model"] == "asked"


def token(text, **more):
    return dict({"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}, **more)


def with_logprobs(tokens, **message):
    reply = completion(message)
    reply["choices"][0]["logprobs"] = {"content": tokens}
    response = from_chat(reply)
    check_response(response)
    (text,) = [item for item in response["output"] if item["type"] == "message"]
    return [one["token"] for one in text["content"][0]["logprobs"]], response["chat_choices"][0]


def test_logprobs_are_those_of_the_text():
    tokens = [token("Hel"), token("lo"), token("")]
    assert with_logprobs(tokens, content="Hello") == (["Hel", "lo", ""], {"index": 0, "finish_reason": "stop"})


def test_logprobs_of_reasoning_and_calls_stay_with_the_choice():
    tokens = [token(text) for text in ("<think>", "hi", "</think>", "hi", " there", "<tool_call>")]
    spelled, record = with_logprobs(tokens, reasoning="hi", content="hi there", tool_calls=[called()])
    assert spelled == ["hi", " there"]
    assert record["logprobs"] == {"content": tokens}


@pytest.mark.parametrize("text", ["other", "ello"])
def test_logprobs_that_do_not_spell_the_text_are_all_given(text):
    assert with_logprobs([token("Hel"), token("lo")], content=text)[0] == ["Hel", "lo"]


def test_a_token_without_bytes_gets_an_empty_list():
    bare = {"token": "a", "logprob": -1.0, "bytes": None, "top_logprobs": [{"token": "b", "logprob": -2.0}]}
    reply = completion({"content": "a"})
    reply["choices"][0]["logprobs"] = {"content": [bare]}
    response = from_chat(reply)
    check_response(response)
    assert response["output"][0]["content"][0]["logprobs"] == [
        {"token": "a", "logprob": -1.0, "bytes": [], "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": []}]}
    ]


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"id": 5, "created": "x", "model": None, "choices": None, "usage": "x"},
        {"created": float("inf"), "choices": [5, {"index": "x", "message": 5, "logprobs": 5}]},
        {"created": 1.5, "choices": [{"message": {"tool_calls": [{"function": 5}], "content": 5, "refusal": {}}}]},
    ],
)
def test_a_reply_of_the_wrong_shape_still_gives_a_whole_response(reply):
    check_response(from_chat(reply))


@pytest.mark.parametrize(
    "error, code",
    [
        (InternalServerError("x", code=500), "server_error"),
        (RateLimitError("x", status_code=429), "rate_limit_exceeded"),
        (BadRequestError("x", param="p", code="context_length_exceeded"), "context_length_exceeded"),
        (APITimeoutError("x"), "server_error"),
    ],
)
def test_an_error_has_one_of_the_codes_of_the_api_beside_its_own(error, code):
    shown = error_outcome(error).error
    assert (shown["code"], shown["message"], shown["type"], shown["param"]) == (code, "x", error.type, error.param)
    assert shown.get("upstream_code") == error.code
