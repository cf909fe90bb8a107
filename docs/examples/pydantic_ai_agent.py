"""A PydanticAI agent with the tools of a pyro profile.

    pip install "pydantic-ai-slim[mcp,openai]"
    OPENAI_API_KEY=... OPENAI_MODEL=... python pydantic_ai_agent.py "Write a Fibonacci program and run it"
"""

import asyncio
import os
import sys

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.openai import OpenAIChatModel


async def run(task: str) -> str:
    transport = StdioTransport(
        command=os.environ.get("PYRO", "pyro"),
        args=["mcp", "serve", "--profile", os.environ.get("PYRO_PROFILE", "workspace-core")],
        env=dict(os.environ),
    )
    # A call may first have to build an environment.
    server = MCPToolset(transport, read_timeout=600, include_instructions=True)
    agent = Agent(OpenAIChatModel(os.environ.get("OPENAI_MODEL", "gpt-5")), toolsets=[server])
    async with agent:
        return (await agent.run(task)).output


if __name__ == "__main__":
    print(asyncio.run(run(" ".join(sys.argv[1:]) or "Create a debian:12 workspace, run `uname -a` in it, delete it.")))
