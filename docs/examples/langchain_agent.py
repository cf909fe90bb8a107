"""A LangChain agent with the tools of a pyro profile.

    pip install langchain langchain-mcp-adapters langchain-openai
    OPENAI_API_KEY=... OPENAI_MODEL=... python langchain_agent.py "Write a Fibonacci program and run it"
"""

import asyncio
import os
import sys

from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from langchain_openai import ChatOpenAI


async def run(task: str) -> str:
    client = MultiServerMCPClient(
        {
            "pyro": {
                "transport": "stdio",
                "command": os.environ.get("PYRO", "pyro"),
                "args": ["mcp", "serve", "--profile", os.environ.get("PYRO_PROFILE", "workspace-core")],
                "env": dict(os.environ),
            }
        }
    )
    # One session for the whole task, so that one server serves it.
    async with client.session("pyro") as session:
        tools = await load_mcp_tools(session)
        agent = create_agent(ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5")), tools)
        result = await agent.ainvoke({"messages": [("user", task)]})
        return result["messages"][-1].text


if __name__ == "__main__":
    print(asyncio.run(run(" ".join(sys.argv[1:]) or "Create a debian:12 workspace, run `uname -a` in it, delete it.")))
