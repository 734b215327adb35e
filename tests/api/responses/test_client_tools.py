"""Tools that the client itself runs: what goes up for them, and their calls and outputs."""

import json

import pytest

from validity import check_event, check_response, openai_types
from vllm_bridge.api.responses import from_chat, iter_events, to_chat
from vllm_bridge.errors import BadRequestError

SCREEN = {"type": "computer_use_preview", "display_width": 1024, "display_height": 768, "environment": "browser"}
SEARCH = {"type": "object", "properties": {"goal": {"type": "string"}}, "required": ["goal"]}
TOOLS = {
    "local_shell": {"type": "local_shell"},
    "shell": {"type": "shell"},
    "apply_patch": {"type": "apply_patch"},
    "computer_use_preview": SCREEN,
    "tool_search": {"type": "tool_search", "execution": "client", "description": "Find tools", "parameters": SEARCH},
}
ITEMS = {
    "local_shell": "local_shell_call", "shell": "shell_call", "apply_patch": "apply_patch_call",
    "computer_use_preview": "computer_call", "tool_search": "tool_search_call",
}
FIELDS = {"apply_patch": "operation", "tool_search": "arguments"}
CREATE = {"type": "create_file", "path": "a.txt", "diff": "+a"}
CLICK = {"type": "click", "button": "left", "x": 1, "y": 2}

# What a model may write, and the field of the call's item that it makes.
FITTING = [
    ("local_shell", {"command": ["ls", "-l"]}, {"type": "exec", "command": ["ls", "-l"], "env": {}}),
    ("local_shell", {"type": "exec", "command": ["ls"], "env": {"A": "b"}, "timeout_ms": 5, "user": None},
     {"type": "exec", "command": ["ls"], "env": {"A": "b"}, "timeout_ms": 5}),
    ("local_shell", {"action": {"command": ["ls"], "working_directory": "/"}},
     {"type": "exec", "command": ["ls"], "env": {}, "working_directory": "/"}),
    ("shell", {"commands": ["ls", "pwd"]}, {"commands": ["ls", "pwd"], "timeout_ms": None, "max_output_length": None}),
    ("shell", {"action": {"commands": ["ls"], "timeout_ms": 9}},
     {"commands": ["ls"], "timeout_ms": 9, "max_output_length": None}),
    ("apply_patch", {"operation": CREATE}, CREATE),
    ("apply_patch", CREATE, CREATE),
    ("apply_patch", {"operation": {"type": "delete_file", "path": "a"}}, {"type": "delete_file", "path": "a"}),
    ("computer_use_preview", {"action": CLICK}, CLICK),
    ("computer_use_preview", CLICK, CLICK),
    ("computer_use_preview", {"action": {"type": "screenshot"}}, {"type": "screenshot"}),
    ("computer_use_preview", {"action": {"type": "drag", "path": [{"x": 1, "y": 2}], "keys": ["CTRL"]}},
     {"type": "drag", "path": [{"x": 1, "y": 2}], "keys": ["CTRL"]}),
    ("tool_search", {"goal": "tides"}, {"goal": "tides"}),
] + [("computer_use_preview", {"action": one}, one) for one in (
    {"type": "wait"}, {"type": "type", "text": "a"}, {"type": "keypress", "keys": ["ENTER"]},
    {"type": "double_click", "x": 1, "y": 2}, {"type": "move", "x": 1, "y": 2, "keys": ["SHIFT"]},
    {"type": "scroll", "x": 1, "y": 2, "scroll_x": 0, "scroll_y": -5},
)]
PREFIXES = {
    "local_shell": "lsh_", "shell": "sh_", "apply_patch": "apc_", "computer_use_preview": "cu_", "tool_search": "tsc_",
}
OTHERS = [
    ("local_shell", '{"command": "ls"}'), ("local_shell", '{"command": []}'), ("local_shell", '{"cmd": ["ls"]}'),
    ("local_shell", '{"command": ["ls"], "workdir": "/"}'), ("local_shell", '{"command": ["ls"], "env": {"A": 1}}'),
    ("local_shell", '{"command": ["ls"], "timeout_ms": true}'), ("local_shell", '{"command": ["ls"'),
    ("local_shell", ""), ("local_shell", '["ls"]'),
    ("shell", '{"commands": "ls"}'), ("shell", '{"commands": [["ls"]]}'), ("shell", '{"command": ["ls"]}'),
    ("apply_patch", '{"operation": {"type": "create_file", "path": "a"}}'), ("apply_patch", '{"patch": "*** Begin"}'),
    ("apply_patch", '{"operation": {"type": "move_file", "path": "a"}}'), ("apply_patch", '{"operation": "x"}'),
    ("computer_use_preview", '{"action": {"type": "click", "x": 1}}'),
    ("computer_use_preview", '{"action": {"type": "click", "button": "left", "x": 1.5, "y": 2}}'),
    ("computer_use_preview", '{"action": {"type": "drag", "path": [1]}}'), ("computer_use_preview", "{}"),
    ("tool_search", '{"goal": '), ("tool_search", "[]"),
]


def called(name, arguments, call_id="c1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def streamed(calls, context, finish="tool_calls"):
    """Return the events of calls whose arguments come in two pieces, all firsts before all seconds."""
    head = {"id": "chatcmpl-1", "created": 5, "model": "m"}
    fragments = []
    for at, call in enumerate(calls):
        text = call["function"]["arguments"]
        first = dict(call, index=at, function=dict(call["function"], arguments=text[:3]))
        fragments.insert(at, first)
        fragments.append({"index": at, "function": {"arguments": text[3:]}})
    deltas = [({"tool_calls": [one]}, None) for one in fragments] + [({}, finish)]
    chunks = [dict(head, choices=[{"index": 0, "delta": delta, "finish_reason": end}]) for delta, end in deltas]
    events = list(iter_events(chunks, context))
    for event in events:
        check_event(event)
    return events


def answered(*calls, tools, finish="tool_calls"):
    """Return the items of a reply with these calls, after a look at the same reply as a stream."""
    context = to_chat({"input": "x", "tools": tools})[1]
    message = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    whole = from_chat({"id": "chatcmpl-1", "created": 5, "model": "m", "choices": choices}, context)
    check_response(whole)
    events = streamed(calls, context, finish)
    assert events[-1]["response"] == whole
    for kind in ("added", "done"):
        told = [event["item"] for event in events if event["type"] == "response.output_item." + kind]
        assert [(item["type"], item["id"]) for item in told] == [(item["type"], item["id"]) for item in whole["output"]]
    return whole["output"]


@pytest.mark.parametrize("kind, arguments, made", FITTING)
def test_a_call_comes_back_as_an_item_of_its_own(kind, arguments, made):
    (item,) = answered(called(kind, json.dumps(arguments)), tools=[TOOLS[kind]])
    beside = {"computer_use_preview": {"pending_safety_checks": []}, "tool_search": {"execution": "client"}}
    assert item == {
        "type": ITEMS[kind], "id": item["id"], "call_id": "c1", "status": "completed",
        FIELDS.get(kind, "action"): made, **beside.get(kind, {}),
    }
    assert item["id"] == PREFIXES[kind] + "chatcmpl-1_item_0"


@pytest.mark.parametrize("kind, arguments", OTHERS)
def test_a_call_that_does_not_fit_is_what_the_model_wrote(kind, arguments):
    (item,) = answered(called(kind, arguments), tools=[TOOLS[kind]])
    assert (item["type"], item["name"], item["call_id"]) == ("function_call", kind, "c1")
    assert (item["arguments"], item["status"]) == (arguments, "incomplete")
    output = {"type": "function_call_output", "call_id": "c1", "output": "unsupported call"}
    body, context = to_chat({"input": [item, output], "tools": [TOOLS[kind]]})
    (call,) = body["messages"][0]["tool_calls"]
    assert call["function"]["name"] == kind and isinstance(json.loads(call["function"]["arguments"]), dict)


@pytest.mark.parametrize("kind, arguments, made", FITTING)
def test_what_came_back_goes_up_as_the_same_call(kind, arguments, made):
    (item,) = answered(called(kind, json.dumps(arguments)), tools=[TOOLS[kind]])
    (message,) = to_chat({"input": [item]})[0]["messages"]
    (call,) = message["tool_calls"]
    assert (call["id"], call["function"]["name"]) == ("c1", kind)
    (again,) = answered(called(kind, call["function"]["arguments"]), tools=[TOOLS[kind]])
    assert again == item


@pytest.mark.parametrize("kind", sorted(TOOLS))
def test_a_call_that_is_cut_short_is_not_the_clients_to_run(kind):
    arguments = next(json.dumps(given) for name, given, _ in FITTING if name == kind)
    tools = [TOOLS[kind]]
    (item,) = answered(called(kind, arguments), tools=tools, finish="length")
    assert (item["type"], item["status"], item["arguments"]) == ("function_call", "incomplete", arguments)
    first, second = answered(called(kind, arguments), called(kind, arguments, "c2"), tools=tools, finish="length")
    assert (first["type"], first["status"]) == (ITEMS[kind], "completed")
    assert (second["type"], second["status"]) == ("function_call", "incomplete")


def test_calls_of_several_kinds_keep_their_order():
    tools = [{"type": "function", "name": "f", "parameters": {}}, TOOLS["shell"], {"type": "custom", "name": "g"}]
    items = answered(
        called("f", "{}"), called("shell", '{"commands": ["ls"]}', "c2"), called("g", '{"input": "x"}', "c3"),
        called("f", "{}", "c4"), called("shell", "{}", "c5"), tools=tools)
    assert [item["type"] for item in items] == [
        "function_call", "shell_call", "custom_tool_call", "function_call", "function_call"]
    assert [item["call_id"] for item in items] == ["c1", "c2", "c3", "c4", "c5"]
    assert [item["status"] for item in items] == ["completed"] * 4 + ["incomplete"]


# ---------------------------------------------------------------- the way up


@pytest.mark.parametrize("kind", sorted(TOOLS))
def test_a_tool_goes_up_as_a_function_with_the_schema_of_its_calls(kind):
    jsonschema = pytest.importorskip("jsonschema")
    body, context = to_chat({"input": "x", "tools": [TOOLS[kind]], "tool_choice": {"type": kind}})
    (tool,) = body["tools"]
    assert tool["type"] == "function" and tool["function"]["name"] == kind and tool["function"]["description"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": kind}}
    assert context.echo["tools"] == [TOOLS[kind]] and context.warnings == []
    check = jsonschema.Draft202012Validator(tool["function"]["parameters"])
    wrapped = [{FIELDS.get(kind, "action"): made} for name, _, made in FITTING if name == kind]
    made = [given for name, given, _ in FITTING if name == kind]
    assert any(check.is_valid(given) for given in made + wrapped)
    for name, arguments in OTHERS:
        if name == kind and arguments.endswith("}") and arguments != '{"goal": ':
            assert not check.is_valid(json.loads(arguments)), arguments


def test_the_search_and_the_computer_are_described_as_the_client_has_them():
    search, computer = to_chat({"input": "x", "tools": [TOOLS["tool_search"], SCREEN]})[0]["tools"]
    assert search["function"] == {"name": "tool_search", "description": "Find tools", "parameters": SEARCH}
    assert "1024 x 768" in computer["function"]["description"] and "browser" in computer["function"]["description"]
    (bare,) = to_chat({"input": "x", "tools": [{"type": "tool_search", "execution": "client"}]})[0]["tools"]
    assert bare["function"]["parameters"]["properties"]["paths"]["type"] == "array"


@pytest.mark.parametrize("tool", [
    {"type": "tool_search"}, {"type": "tool_search", "execution": "server"},
    {"type": "shell", "environment": {"type": "container_auto"}}, {"type": "code_interpreter"}, {"type": ["shell"]},
])
def test_what_openai_runs_is_left_out(tool):
    body, context = to_chat({"input": "x", "tools": [tool]})
    assert "tools" not in body and len(context.warnings) == 1


def test_a_shell_of_the_clients_own_environment_goes_up():
    tool = {"type": "shell", "environment": {"type": "local", "skills": []}}
    body, context = to_chat({"input": "x", "tools": [tool]})
    assert [one["function"]["name"] for one in body["tools"]] == ["shell"] and context.echo["tools"] == [tool]


def test_a_function_of_the_same_name_keeps_it():
    function = {"type": "function", "name": "shell", "parameters": {}}
    for tools in ([TOOLS["shell"], function], [function, TOOLS["shell"]]):
        body, context = to_chat({"input": "x", "tools": tools, "tool_choice": {"type": "shell"}})
        assert sorted(tool["function"]["name"] for tool in body["tools"]) == ["shell", "shell_tool"]
        assert body["tool_choice"]["function"]["name"] == "shell_tool"
        assert (context.tool("shell").kind, context.tool("shell_tool").kind) == ("function", "shell")


def test_allowed_tools_may_name_them():
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "shell"}, {"type": "local_shell"}]}
    body = to_chat({"input": "x", "tools": [TOOLS["apply_patch"], TOOLS["shell"]], "tool_choice": choice})[0]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["shell"] and body["tool_choice"] == "required"


# ---------------------------------------------------------------- outputs


EXIT = {"stdout": "a.txt\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
SHOT = {"type": "computer_screenshot", "image_url": "data:image/png;base64,AA=="}
FOUND = {"type": "function", "name": "get_tide", "parameters": {"type": "object"}}


@pytest.mark.parametrize("item, content", [
    ({"type": "local_shell_call_output", "id": "c1", "output": '{"stdout": "a"}'}, '{"stdout": "a"}'),
    ({"type": "local_shell_call_output", "id": "lsho_1", "call_id": "c1", "output": "a"}, "a"),
    ({"type": "shell_call_output", "call_id": "c1", "output": [EXIT]}, json.dumps([EXIT])),
    ({"type": "shell_call_output", "call_id": "c1", "output": "a"}, "a"),
    ({"type": "apply_patch_call_output", "call_id": "c1", "status": "failed", "output": "no file"}, "failed: no file"),
    ({"type": "apply_patch_call_output", "call_id": "c1", "status": "completed"}, "completed"),
    ({"type": "apply_patch_call_output", "call_id": "c1", "status": "completed", "output": ""}, "completed"),
    ({"type": "computer_call_output", "call_id": "c1", "output": SHOT},
     [{"type": "image_url", "image_url": {"url": SHOT["image_url"]}}]),
    ({"type": "tool_search_output", "call_id": "c1", "execution": "client", "tools": [FOUND]}, json.dumps([FOUND])),
])
def test_outputs_are_messages_of_the_tool(item, content):
    body, context = to_chat({"input": [item]})
    assert body["messages"] == [{"role": "tool", "tool_call_id": "c1", "content": content}]
    assert context.warnings == []


def test_an_output_may_name_the_item_of_its_call():
    call = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c1", "action": {"type": "exec", "command": ["ls"]}}
    output = {"type": "local_shell_call_output", "id": "lsh_1", "output": "a"}
    said, told = to_chat({"input": [call, output]})[0]["messages"]
    assert said["tool_calls"][0]["function"]["arguments"] == '{"command": ["ls"]}'
    assert told["tool_call_id"] == said["tool_calls"][0]["id"] == "c1"


def test_tools_that_were_found_can_be_called():
    call = {"type": "tool_search_call", "call_id": "c1", "execution": "client", "arguments": {"goal": "tides"}}
    output = {"type": "tool_search_output", "call_id": "c1", "execution": "client", "tools": [FOUND]}
    for tools in ([TOOLS["tool_search"]], [TOOLS["tool_search"], FOUND]):
        body = to_chat({"input": [call, output], "tools": tools})[0]
        assert [tool["function"]["name"] for tool in body["tools"]] == ["tool_search", "get_tide"]
    assert body["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"goal": "tides"}'


def test_a_call_with_one_of_several_actions_is_that_action():
    call = {"type": "computer_call", "call_id": "c1", "actions": [CLICK]}
    (message,) = to_chat({"input": [call]})[0]["messages"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"action": CLICK}


def test_what_openai_searched_for_is_left_out():
    items = [{"type": "tool_search_call", "execution": "server", "arguments": {}, "call_id": None},
             {"type": "tool_search_output", "execution": "server", "tools": [FOUND], "call_id": None}]
    body, context = to_chat({"input": [*items, {"role": "user", "content": "x"}]})
    assert len(body["messages"]) == 1 and len(context.warnings) == 2


@pytest.mark.parametrize("item, param", [
    ({"type": "shell_call", "call_id": "c1"}, "input[0].action"),
    ({"type": "shell_call", "action": {"commands": ["ls"]}}, "input[0].call_id"),
    ({"type": "apply_patch_call", "call_id": "c1", "operation": "x"}, "input[0].operation"),
    ({"type": "shell_call_output", "output": []}, "input[0].call_id"),
    ({"type": "local_shell_call_output", "output": ""}, "input[0].id"),
    ({"type": "computer_call_output", "call_id": "c1", "output": {"file_id": "f"}}, "input[0].output[0].image_url"),
    ({"type": "tool_search_output", "call_id": "c1", "tools": "x"}, "input[0].tools"),
])
def test_items_that_cannot_be_read_are_refused_where_they_are(item, param):
    with pytest.raises(BadRequestError) as caught:
        to_chat({"input": [item]})
    assert caught.value.param == param


@pytest.mark.skipif(openai_types is None, reason="openai is not installed")
@pytest.mark.parametrize("kind", sorted(TOOLS))
def test_the_items_are_those_of_openais_own_types(kind):
    arguments = next(given for name, given, _ in FITTING if name == kind)
    (item,) = answered(called(kind, json.dumps(arguments)), tools=[TOOLS[kind]])
    names = {
        "local_shell": "LocalShellCall", "shell": "ResponseFunctionShellToolCall",
        "apply_patch": "ResponseApplyPatchToolCall", "computer_use_preview": "ResponseComputerToolCall",
        "tool_search": "ResponseToolSearchCall",
    }
    found = openai_types.Response.model_validate(dict(from_chat({}), output=[item])).output[0]
    assert type(found).__name__ == names[kind] and found.to_dict(mode="json", exclude_unset=True) == item
