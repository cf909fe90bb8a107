"""A model works in a pyro workspace, over OpenAI's Responses API.

    pip install mcp openai
    OPENAI_API_KEY=... OPENAI_MODEL=... python openai_responses.py "Write a Fibonacci program and run it"

The tools are those of the profile `workspace-core`, taken from the server's `tools/list`; nothing is written twice.
"""

import asyncio
import json
import os
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import AsyncOpenAI

MAX_TURNS = 30


def function_of(tool):
    """A tool of MCP as a function of the Responses API."""
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": schema_of(tool),
        "strict": False,
    }


def schema_of(tool):
    # The attribute's name changed between releases of the MCP package.
    return getattr(tool, "input_schema", None) or tool.inputSchema


async def run(task: str) -> str:
    server = StdioServerParameters(
        command=os.environ.get("PYRO", "pyro"),
        args=["mcp", "serve", "--profile", os.environ.get("PYRO_PROFILE", "workspace-core")],
        env=dict(os.environ),
    )
    model = AsyncOpenAI()
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = [function_of(tool) for tool in (await session.list_tools()).tools]
        items = [{"role": "user", "content": task}]
        for _ in range(MAX_TURNS):
            response = await model.responses.create(
                model=os.environ.get("OPENAI_MODEL", "gpt-5"), input=items, tools=tools
            )
            items += [item.model_dump(exclude_none=True) for item in response.output]
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return response.output_text
            for call in calls:
                result = await session.call_tool(call.name, json.loads(call.arguments or "{}"))
                text = "\n".join(block.text for block in result.content if block.type == "text")
                print(f"{call.name}: {text[:200]}", file=sys.stderr)
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": text})
        raise RuntimeError(f"the model did not finish within {MAX_TURNS} turns")


if __name__ == "__main__":
    print(asyncio.run(run(" ".join(sys.argv[1:]) or "Create a debian:12 workspace, run `uname -a` in it, delete it.")))
