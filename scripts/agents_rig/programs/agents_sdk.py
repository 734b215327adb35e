"""OpenAI's Agents SDK for Python: a session of tools through the gateway, over Responses, then over chats."""

import asyncio
import os
import subprocess

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.models.openai_provider import OpenAIProvider
from agents import RunConfig


@function_tool
def write_file(path: str, content: str) -> str:
    """Write a file."""
    with open(path, "w") as file:
        file.write(content)
    return "written"


@function_tool
def run_command(command: str) -> str:
    """Run a command."""
    return subprocess.run(command, shell=True, capture_output=True, text=True).stdout


async def main() -> None:
    set_tracing_disabled(True)
    for responses in (True, False):
        if os.path.exists("note.txt"):
            os.remove("note.txt")
        provider = OpenAIProvider(base_url=os.environ["OPENAI_BASE_URL"], api_key="none", use_responses=responses)
        agent = Agent(name="writer", model="coder", tools=[write_file, run_command])
        result = Runner.run_streamed(agent, "Write the file note.txt", run_config=RunConfig(model_provider=provider))
        async for _ in result.stream_events():
            pass
        print(result.final_output[-60:])


asyncio.run(main())
