"""The short form of scripts/agents: sessions of tools over each API, through the gateway, in front of its script."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from faces import own
from vllm_bridge import VLLMProvider
from vllm_bridge.api.messages import folded
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from agents_rig.agents import main, problems, statuses  # noqa: E402
from agents_rig.sessions import AGENTS, CODEX  # noqa: E402
from agents_rig.upstream import FILE, LAST, LINE, Upstream, refused  # noqa: E402

SCHEMAS = {
    "write_file": {"type": "object", "required": ["path", "content"],
                   "properties": {"path": {"type": "string"}, "content": {"type": "string"}}},
    "run_command": {"type": "object", "required": ["command"], "properties": {"command": {"type": "string"}}},
}
TASK = {"role": "user", "content": "Write the file"}


@pytest.fixture
def stage(tmp_path):
    """An upstream that is busy at first, a gateway before it, and a provider of the gateway."""
    upstream = Upstream(str(tmp_path))
    thread = threading.Thread(target=upstream.serve_forever, args=(0.01,))
    thread.start()
    config = {"keys": [{"url": upstream.url, "aliases": {"claude-*": "coder"}}],
              "network_config": {"retry_backoff_initial_ms": 1}}
    try:
        with own(Gateway(Settings(ProviderConfig.from_dict(config, environ={})))) as address:
            with VLLMProvider("http://%s:%d" % address, max_retries=0) as vllm:
                yield vllm, upstream
    finally:
        upstream.shutdown()
        thread.join()
        upstream.server_close()


def carry_out(name, arguments):
    if name == "write_file":
        Path(arguments["path"]).write_text(arguments["content"], encoding="utf-8")
        return "written"
    return subprocess.run(arguments["command"], shell=True, stdout=subprocess.PIPE, check=True).stdout.decode()


def chats(vllm):
    messages, tools = [TASK], [{"type": "function", "function": {"name": name, "parameters": schema}}
                               for name, schema in SCHEMAS.items()]
    while True:
        message = vllm.chat_completion(model="coder", messages=messages, tools=tools).choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(dict(message))
        for call in message.tool_calls:
            result = carry_out(call.function.name, json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def anthropic(vllm):
    messages, tools = [TASK], [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    tools.append({"type": "web_search_20250305", "name": "web_search"})
    while True:
        with vllm.messages_stream(model="claude-x", messages=messages, tools=tools, max_tokens=100) as stream:
            message = folded(stream)
        if message["stop_reason"] != "tool_use":
            return message["content"][-1]["text"]
        messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": block["id"], "content": carry_out(block["name"], block["input"])}
            for block in message["content"] if block["type"] == "tool_use"]}]


def responses(vllm):
    items = [TASK]
    tools = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
    while True:
        events = list(vllm.responses_stream(model="coder", input=items, tools=tools, store=False))
        output = events[-1].response.output
        calls = [item for item in output if item.type == "function_call"]
        if not calls:
            return output[-1].content[0].text
        items += [dict(item) for item in output]
        items += [{"type": "function_call_output", "call_id": call.call_id,
                   "output": carry_out(call.name, json.loads(call.arguments))} for call in calls]


@pytest.mark.parametrize("talk", [chats, anthropic, responses])
def test_a_session_of_tools_ends_well(talk, stage, tmp_path, monkeypatch):
    vllm, upstream = stage
    monkeypatch.chdir(tmp_path)
    assert talk(vllm).endswith(LAST)
    assert (tmp_path / FILE).read_text(encoding="utf-8").strip() == LINE
    assert len(upstream.requests) == 4 and upstream.refused == []  # one was told that the server is busy


def test_what_vllm_would_refuse_is_refused():
    assert refused("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]})
    assert refused("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "document"}]}]})
    assert refused("/v1/chat/completions", {"tools": [{"type": "web_search"}]})
    assert refused("/v1/chat/completions", {"messages": [{"role": "critic", "content": ""}]})
    assert refused("/v1/chat/completions", {"messages": [TASK], "tools": []}) == ""


def test_what_is_wrong_with_a_session_is_told(tmp_path):
    upstream = Upstream(str(tmp_path))
    upstream.server_close()
    upstream.refused.append("no tool")
    wrong = problems(AGENTS[0], tmp_path, 1, "", upstream, {"POST /v1/messages 500": 1})
    assert len(wrong) == 6
    (tmp_path / FILE).write_text(LINE, encoding="utf-8")
    upstream.refused.clear()
    upstream.requests += [("/", {}, {})] * 3
    assert problems(AGENTS[0], tmp_path, 0, LAST, upstream, {"POST /v1/messages 200": 3, "HEAD / 404": 1}) == []
    (tmp_path.parent / (tmp_path.name + ".log")).write_text(
        'x\n{"level": "INFO"}\n{"method": "GET", "path": "/a", "status": 200}\n', encoding="utf-8")
    assert statuses(str(tmp_path)) == {"GET /a 200": 1}


def test_the_lines_of_the_page_are_those_that_ran():
    page = (ROOT / "vllm_bridge" / "gateway" / "README.md").read_text(encoding="utf-8")
    page = page.replace("http://localhost:8080", "{gateway}")
    for agent in AGENTS:
        for package in agent.npm + agent.pip:
            assert package in ("zod", "ai") or "`%s`" % package in page, package
        for name, value in agent.environ.items():
            assert "%s=%s" % (name, value) in page or name in ("CODEX_HOME", "OPENCODE_CONFIG", "OPENAI_BASE_URL"), name
    assert CODEX in page
    assert '"npm": "@ai-sdk/openai-compatible"' in page and "opencode run -m vllm/coder" in page


def test_wrong_usage():
    with pytest.raises(SystemExit) as caught:
        main(["nobody"])
    assert caught.value.code == 2
