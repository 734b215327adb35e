"""How each agent is installed, told where the gateway is, and asked; the README of the gateway has the same lines."""

import json
import pathlib
import sys
from typing import Dict, List, NamedTuple, Tuple

TASK = "Write the file note.txt"
PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"


class Agent(NamedTuple):
    """One agent. `{gateway}`, `{home}`, `{node}` and `{python}` in its texts are filled in."""

    name: str
    npm: Tuple[str, ...]
    pip: Tuple[str, ...]
    environ: Dict[str, str]
    files: Dict[str, str]  # under its home
    command: Tuple[str, ...]
    turns: int = 3  # requests of a session, at least


CODEX = """model = "coder"
model_provider = "vllm"

[model_providers.vllm]
name = "vLLM"
base_url = "{gateway}/v1"
wire_api = "responses"
"""
OPENCODE = json.dumps({
    "$schema": "https://opencode.ai/config.json",
    "provider": {"vllm": {
        "npm": "@ai-sdk/openai-compatible", "name": "vLLM", "options": {"baseURL": "{gateway}/v1", "apiKey": "none"},
        "models": {"coder": {"name": "coder"}}}},
    "permission": {"edit": "allow", "bash": "allow"},
}, indent=1)
SDK = {"OPENAI_BASE_URL": "{gateway}/v1"}

AGENTS: List[Agent] = [
    Agent(
        "claude-code", ("@anthropic-ai/claude-code",), (),
        {"ANTHROPIC_BASE_URL": "{gateway}", "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_MODEL": "claude-sonnet-4-5",
         "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1"}, {},
        ("{node}/claude", "-p", TASK, "--permission-mode", "acceptEdits", "--allowedTools", "Bash,Write")),
    Agent(
        "codex", ("@openai/codex",), (), {"CODEX_HOME": "{home}/.codex"}, {".codex/config.toml": CODEX},
        ("{node}/codex", "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", TASK)),
    Agent(
        "opencode", ("opencode-ai",), (),
        {"OPENCODE_CONFIG": "{home}/opencode.json", "OPENCODE_DISABLE_MODELS_FETCH": "1",
         "OPENCODE_DISABLE_AUTOUPDATE": "1"}, {"opencode.json": OPENCODE},
        ("{node}/opencode", "run", "-m", "vllm/coder", TASK)),
    Agent(
        "aider", (), ("aider-chat",),
        {"OPENAI_API_BASE": "{gateway}/v1", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}, {},
        ("{python}/aider", "--model", "openai/coder", "--yes-always", "--no-git", "--no-check-update",
         "--no-show-release-notes", "--analytics-disable", "--no-show-model-warnings", "--message", TASK, "note.txt"),
        1),
    Agent(
        "agents-sdk-python", (), ("openai-agents",), SDK, {}, ("{python}/python", str(PROGRAMS / "agents_sdk.py")), 6),
    Agent("agents-sdk-js", ("@openai/agents", "zod"), (), SDK, {}, ("node", "agents_sdk.mjs"), 6),
    Agent("anthropic-sdk-js", ("@anthropic-ai/sdk",), (), {"ANTHROPIC_BASE_URL": "{gateway}"}, {},
          ("node", "anthropic_sdk.mjs"), 4),
    Agent("ai-sdk", ("ai", "@ai-sdk/openai", "zod"), (), SDK, {}, ("node", "ai_sdk.mjs")),
]


def filled(text: str, places: Dict[str, str]) -> str:
    """Fill the places of a text in."""
    for name, value in places.items():
        text = text.replace("{%s}" % name, value)
    return text


if __name__ == "__main__":
    sys.exit("run ../agents")
