"""Responses requests → chat requests."""

import copy

import pytest

from vllm_bridge.errors import BadRequestError
from vllm_bridge.api.responses import to_chat

WEATHER = {"type": "function", "name": "get_weather", "description": "Weather", "parameters": {"type": "object"}}
WEATHER_UP = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": {"type": "object"}},
}


def chat(**body):
    return to_chat(dict({"model": "m", "input": "hi"}, **body))[0]


def messages(*items, **body):
    return chat(input=list(items), **body)["messages"]


def refused(**body):
    with pytest.raises(BadRequestError) as caught:
        chat(**body)
    return caught.value


def call(call_id, name="get_weather", arguments="{}"):
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def call_up(call_id, name="get_weather", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# ---------------------------------------------------------------- input


def test_a_string_is_one_user_message():
    assert chat() == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_instructions_and_every_system_or_developer_message_become_one_system_message_at_the_start():
    assert messages(
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
        instructions="Be exact.",
    ) == [
        {"role": "system", "content": "Be exact.\n\nBe kind.\n\nBe brief."},
        {"role": "user", "content": "hi"},
    ]


def test_a_system_message_of_several_parts_stays_in_parts():
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages({"role": "system", "content": parts}, instructions="I")[0]["content"] == [
        {"type": "text", "text": "I"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]


def test_every_content_part_has_its_chat_form():
    (message,) = messages(
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                {"type": "input_image", "image_url": {"url": "https://x/z.png"}},
                {"type": "input_file", "file_data": "data:,x", "filename": "x.txt"},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                {"type": "input_video", "video_url": "https://x/v.mp4"},
                {"type": "image_url", "image_url": {"url": "https://x/c.png"}},
            ],
        }
    )
    assert message == {
        "role": "user",
        "name": "ann",
        "content": [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://x/z.png"}},
            {"type": "file", "file": {"file_data": "data:,x", "filename": "x.txt"}},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
            {"type": "video_url", "video_url": {"url": "https://x/v.mp4"}},
            {"type": "image_url", "image_url": {"url": "https://x/c.png"}},
        ],
    }


@pytest.mark.parametrize("content", [None, "", []])
def test_empty_content_is_an_empty_string(content):
    assert messages({"role": "user", "content": content}) == [{"role": "user", "content": ""}]


def test_one_answer_is_replayed_as_one_assistant_message():
    assert messages(
        {"role": "user", "content": "hi"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "short"}],
            "content": [{"type": "reasoning_text", "text": "I think"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]},
        call("c1"),
        call("c2", "get_time", '{"zone": "UTC"}'),
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "noon"}, {"type": "input_text", "text": "UTC"}],
        },
    ) == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning": "I think",
            "reasoning_content": "I think",
            "tool_calls": [call_up("c1"), call_up("c2", "get_time", '{"zone": "UTC"}')],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "noon"}, {"type": "text", "text": "UTC"}],
        },
    ]


def test_consecutive_calls_are_one_message_without_content():
    assert messages(call("c1"), call("c2")) == [
        {"role": "assistant", "content": None, "tool_calls": [call_up("c1"), call_up("c2")]}
    ]


def test_text_after_a_call_belongs_to_the_same_message():
    said = {"role": "assistant", "content": "a"}
    assert messages(said, call("c1"), {"role": "assistant", "content": "b"}) == [
        {"role": "assistant", "content": "ab", "tool_calls": [call_up("c1")]}
    ]


def test_reasoning_belongs_to_the_turn_that_follows():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    assert messages({"role": "assistant", "content": "a"}, thought, {"role": "assistant", "content": "b"}) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "hm", "reasoning_content": "hm"},
    ]


def test_reasoning_that_only_its_own_server_can_read_is_nothing():
    thought = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    assert messages(thought, {"role": "user", "content": "hi"}) == [{"role": "user", "content": "hi"}]


def test_a_request_may_be_reasoning_alone():
    thoughts = [{"type": "reasoning", "summary": [], "content": text} for text in ("a", "b")]
    assert messages(*thoughts) == [
        {"role": "assistant", "content": "", "reasoning": "a\nb", "reasoning_content": "a\nb"},
    ]


def test_reasoning_without_an_answer_is_kept():
    thought = {"type": "reasoning", "summary": [], "content": "cut short"}
    assert messages(thought, {"role": "user", "content": "go on"})[0] == {
        "role": "assistant",
        "content": "",
        "reasoning": "cut short",
        "reasoning_content": "cut short",
    }


def test_a_refusal_is_the_refusal_of_its_message():
    part = {"type": "refusal", "refusal": "No."}
    assert messages({"role": "assistant", "content": [part, part]}) == [
        {"role": "assistant", "content": "", "refusal": "No.No."}
    ]


def test_several_texts_of_the_assistant_are_text_parts():
    parts = [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert messages({"role": "assistant", "content": parts})[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]


def test_arguments_that_are_no_string_are_sent_as_json():
    (message,) = messages(call("c1", arguments={"city": "Köln"}), call("c2", arguments=None))
    assert [one["function"]["arguments"] for one in message["tool_calls"]] == ['{"city": "Köln"}', "{}"]


@pytest.mark.parametrize("arguments", ["", " \n", None])
def test_no_arguments_are_an_empty_object(arguments):
    body, context = to_chat({"input": [call("c1", arguments=arguments)]})
    assert body["messages"][0]["tool_calls"] == [call_up("c1")] and context.warnings == []


@pytest.mark.parametrize("arguments", ['{"cmd": "ls', "nonsense", '"text"', "[]", "{} {}", "[" * 100000, ["a"]])
@pytest.mark.parametrize("status", [{}, {"status": "incomplete"}])
def test_a_call_that_came_back_broken_does_not_end_the_conversation(arguments, status):
    broken = dict(call("c1", arguments=arguments), **status)
    body, context = to_chat({"input": [broken, call("c2", arguments='{"a":1}')]})
    assert body["messages"][0]["tool_calls"] == [call_up("c1"), call_up("c2", arguments='{"a":1}')]
    (warning,) = context.warnings
    assert "'c1'" in warning and len(warning) < 200


def test_an_item_that_chat_has_no_place_for_is_left_out_with_a_warning():
    body, context = to_chat({"input": [{"type": "web_search_call", "id": "ws"}, {"role": "user", "content": "x"}]})
    assert body["messages"] == [{"role": "user", "content": "x"}]
    assert context.warnings == ["input item 'web_search_call' was left out: a chat request has no place for it"]
    assert context.echo["metadata"] == {"vllm_bridge_warning": context.warnings[0]}


@pytest.mark.parametrize(
    "given, param",
    [
        (None, "input"),
        (5, "input"),
        (["hi"], "input[0]"),
        ([{}], "input[0].type"),
        ([{"role": "user", "content": 5}], "input[0].content"),
        ([{"role": "user", "content": [5]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], "input[0].content[0].image_url"),
        ([{"type": "function_call", "name": "f", "arguments": ""}], "input[0].call_id"),
        ([{"type": "function_call", "call_id": "c"}], "input[0].name"),
        ([{"type": "function_call_output", "output": ""}], "input[0].call_id"),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
    ],
)
def test_input_that_cannot_be_read_is_refused_where_it_is(given, param):
    assert refused(input=given).param == param


@pytest.mark.parametrize(
    "field, value",
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("conversation", {"id": "conv_1"}),
        ("background", True),
        ("prompt", {"id": "pmpt_1"}),
    ],
)
def test_fields_that_need_a_memory_are_refused_with_what_to_do(field, value):
    error = refused(**{field: value})
    assert error.param == field and error.status_code == 400
    assert str(error).startswith(field) and ": " in str(error)


def test_background_false_is_no_state():
    assert "background" not in chat(background=False)


# ---------------------------------------------------------------- parameters


def test_every_other_parameter_goes_through():
    through = {
        "top_k": 20,
        "chat_template_kwargs": {"enable_thinking": False},
        "temperature": 0,
        "user": "ann",
        "store": True,
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "parallel_tool_calls": False,
        "stream_options": {"include_obfuscation": False},
        "extra_body": {"min_p": 0.1},
        "nonsense": [1],
    }
    sent = chat(**through)
    assert {key: sent[key] for key in through} == through


def test_fields_of_the_responses_api_alone_do_not_go_up():
    sent = chat(include=[], truncation="auto", max_tool_calls=3, instructions=None, text=None)
    assert set(sent) == {"model", "messages"}


def test_renamed_parameters():
    sent = chat(
        max_output_tokens=7,
        reasoning={"effort": "minimal", "summary": "auto", "generate_summary": "auto", "max_tokens": 9},
        text={"verbosity": "low"},
    )
    assert sent["max_completion_tokens"] == 7
    assert sent["reasoning_effort"] == "minimal"
    assert sent["thinking_token_budget"] == 9
    assert sent["verbosity"] == "low"
    assert not {"max_output_tokens", "reasoning", "text"} & set(sent)


def test_what_reasoning_and_text_hold_besides_goes_up():
    sent = chat(reasoning={"mode": "x"}, text={"other": 1})
    assert sent["reasoning"] == {"mode": "x"} and sent["text"] == {"other": 1}


@pytest.mark.parametrize(
    "form, response_format",
    [
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": None},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "structural_tag", "format": {}}, {"type": "structural_tag", "format": {}}),
        (
            {"type": "json_schema", "json_schema": {"name": "n"}},
            {"type": "json_schema", "json_schema": {"name": "n"}},
        ),
    ],
)
def test_text_format_is_response_format(form, response_format):
    assert chat(text={"format": form})["response_format"] == response_format


def test_plain_text_asks_for_nothing():
    assert "response_format" not in chat(text={"format": {"type": "text"}})


@pytest.mark.parametrize("body", [{"reasoning": "high"}, {"text": "json"}, {"text": {"format": "json"}}])
def test_an_object_field_of_another_type_is_refused(body):
    assert refused(**body).param in ("reasoning", "text", "text.format")


def test_instructions_are_a_string():
    assert refused(instructions=["a"]).param == "instructions"


def test_logprobs_are_asked_for_with_top_logprobs_or_include():
    assert chat(top_logprobs=3)["logprobs"] is True
    assert chat(include=["message.output_text.logprobs"])["logprobs"] is True
    assert "logprobs" not in chat(include=["reasoning.encrypted_content"])
    assert "logprobs" not in chat(top_logprobs=0) and "top_logprobs" not in chat(top_logprobs=0)
    assert chat(top_logprobs=3, logprobs=False)["logprobs"] is False


# ---------------------------------------------------------------- tools


def test_a_function_is_a_chat_function():
    body, context = to_chat({"input": "x", "tools": [WEATHER], "tool_choice": "required"})
    assert body["tools"] == [WEATHER_UP] and body["tool_choice"] == "required"
    assert context.echo["tools"] == [dict(WEATHER, strict=None)]


def test_a_tool_in_the_chat_form_is_taken_as_it_is():
    body, context = to_chat({"input": "x", "tools": [WEATHER_UP]})
    assert body["tools"] == [WEATHER_UP]
    assert context.echo["tools"] == [dict(WEATHER, strict=None)]


def test_a_custom_tool_goes_up_as_a_function_with_one_string():
    tool = {
        "type": "custom",
        "name": "shell",
        "description": "Runs it",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: /x/"},
    }
    body, context = to_chat({"input": "x", "tools": [tool], "tool_choice": {"type": "custom", "name": "shell"}})
    function = body["tools"][0]["function"]
    assert function["name"] == "shell"
    assert function["description"] == "Runs it\n\nThe input must match this lark grammar:\nstart: /x/"
    assert function["parameters"]["required"] == ["input"]
    assert function["parameters"]["properties"]["input"]["type"] == "string"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "shell"}}
    assert context.echo["tools"] == [tool]
    assert context.tool("shell") == ("custom", "shell", None)
    assert context.tool("other") == ("function", "other", None)


def test_a_custom_call_is_replayed_in_the_form_in_which_the_model_made_it():
    (said, told) = messages(
        {"type": "custom_tool_call", "call_id": "c", "name": "shell", "input": 'ls "é"'},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
    )
    assert said["tool_calls"] == [call_up("c", "shell", '{"input": "ls \\"é\\""}')]
    assert told == {"role": "tool", "tool_call_id": "c", "content": "ok"}


def test_a_namespace_is_flattened():
    inner = [{"type": "function", "name": "find"}, {"type": "custom", "name": "run"}, {"type": "web_search"}]
    tools = [{"type": "namespace", "name": "crm", "description": "d", "tools": inner}]
    body, context = to_chat(
        {
            "input": [dict(call("c", "find"), namespace="crm")],
            "tools": tools,
            "tool_choice": {"type": "function", "name": "find"},
        }
    )
    assert [tool["function"]["name"] for tool in body["tools"]] == ["crm__find", "crm__run"]
    assert context.tool("crm__find") == ("function", "find", "crm")
    assert context.tool("crm__run") == ("custom", "run", "crm")
    assert body["messages"][0]["tool_calls"][0]["function"]["name"] == "crm__find"
    assert body["tool_choice"]["function"]["name"] == "crm__find"
    assert len(context.echo["tools"]) == 1
    assert [tool["name"] for tool in context.echo["tools"][0]["tools"]] == ["find", "run"]


def test_a_namespace_that_ends_in_its_own_separator_is_only_put_in_front():
    tools = [{"type": "namespace", "name": "mcp__x__", "tools": [{"type": "function", "name": "f"}]}]
    assert chat(tools=tools)["tools"][0]["function"]["name"] == "mcp__x__f"


def test_hosted_tools_are_left_out_and_named():
    body, context = to_chat(
        {
            "input": "x",
            "tools": [{"type": "web_search"}, WEATHER, {"type": "mcp", "server_label": "s"}, {"type": "web_search"}],
            "metadata": {"a": "b"},
        }
    )
    assert body["tools"] == [WEATHER_UP]
    assert context.warnings == [
        "tool 'web_search' was left out: vLLM does not offer it",
        "tool 'mcp' was left out: vLLM does not offer it",
    ]
    assert context.echo["metadata"] == {"a": "b", "vllm_bridge_warning": "; ".join(context.warnings)}
    assert [tool["name"] for tool in context.echo["tools"]] == ["get_weather"]


@pytest.mark.parametrize("tools", [[], [{"type": "web_search"}], [{"type": "namespace", "name": "n", "tools": []}]])
def test_without_a_tool_left_neither_tools_nor_a_choice_goes_up(tools):
    assert not {"tools", "tool_choice"} & set(chat(tools=tools, tool_choice="required"))


def test_tools_of_an_additional_tools_item_join_the_others():
    item = {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}
    assert chat(input=[item, {"role": "user", "content": "x"}])["tools"] == [WEATHER_UP]


@pytest.mark.parametrize(
    "choice, sent",
    [
        ("none", "none"),
        ("auto", "auto"),
        ({"type": "function", "name": "b"}, {"type": "function", "function": {"name": "b"}}),
        ({"type": "function", "function": {"name": "b"}}, {"type": "function", "function": {"name": "b"}}),
        ({"type": "function", "name": "unknown"}, {"type": "function", "function": {"name": "unknown"}}),
        ({"type": "function", "name": "n", "namespace": "s"}, {"type": "function", "function": {"name": "s__n"}}),
    ],
)
def test_every_form_of_tool_choice(choice, sent):
    body = chat(tools=[{"type": "function", "name": "a"}, {"type": "function", "name": "b"}], tool_choice=choice)
    assert body["tool_choice"] == sent and len(body["tools"]) == 2


@pytest.mark.parametrize("nested", [False, True])
def test_allowed_tools_narrow_the_list(nested):
    names = {"type": "namespace", "name": "s", "tools": [{"type": "function", "name": "c"}]}
    allowed = {
        "mode": "required",
        "tools": [
            {"type": "function", "function": {"name": "b"}} if nested else {"type": "function", "name": "b"},
            {"type": "namespace", "name": "s"},
            {"type": "mcp", "server_label": "s"},
        ],
    }
    choice = {"type": "allowed_tools", "allowed_tools": allowed} if nested else dict(allowed, type="allowed_tools")
    body, context = to_chat(
        {
            "input": "x",
            "tools": [{"type": "function", "name": "a"}, {"type": "function", "name": "b"}, names],
            "tool_choice": choice,
        }
    )
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b", "s__c"]
    assert body["tool_choice"] == "required"
    assert context.echo["tool_choice"] == choice
    assert [tool["name"] for tool in context.echo["tools"]] == ["a", "b", "s"]


def test_a_choice_of_a_hosted_tool_is_left_out_with_a_warning():
    body, context = to_chat({"input": "x", "tools": [WEATHER], "tool_choice": {"type": "file_search"}})
    assert "tool_choice" not in body and context.echo["tool_choice"] == "auto"
    assert context.warnings == ["tool_choice 'file_search' was left out: vLLM does not offer that tool"]


@pytest.mark.parametrize(
    "body, param",
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["a"]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": " "}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [1]}]}, "tools[0].tools[0]"),
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "tools": [1]}}, "tool_choice.tools[0]"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": []}]}}, "tool_choice.tools[0]"),
    ],
)
def test_tools_that_cannot_be_read_are_refused_where_they_are(body, param):
    assert refused(**body).param == param


def test_the_request_is_not_changed():
    body = {"input": [{"role": "user", "content": "x"}, call("c")], "tools": [WEATHER], "text": {"verbosity": "low"}}
    before = copy.deepcopy(body)
    to_chat(body)
    assert body == before


def test_what_is_converted_does_not_go_up_under_its_old_name():
    """vLLM would ignore or refuse the names of the Responses API in a chat request."""
    body = chat(input="Hi", instructions="Be brief", max_output_tokens=5, reasoning={"effort": "low"}, text={},
                tools=[], tool_choice="auto", include=[], truncation="disabled", temperature=0.5)
    assert set(body) == {"model", "messages", "max_completion_tokens", "reasoning_effort", "temperature"}


def test_what_is_not_given_is_echoed_as_openai_documents_its_defaults():
    """OpenAI's reference, the Response object."""
    echo = to_chat({"model": "m", "input": "Hi"})[1].echo
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_logprobs": 0, "truncation": "disabled", "tool_choice": "auto",
                "parallel_tool_calls": True, "presence_penalty": 0.0, "frequency_penalty": 0.0, "instructions": None,
                "max_output_tokens": None, "service_tier": "default"}
    assert {name: echo[name] for name in defaults} == defaults
