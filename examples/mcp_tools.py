"""A LangChain agent whose tools come from a server of the Model Context Protocol: another process, over stdio.

Run it with `python examples/mcp_tools.py` where the package is installed with its extra `examples`. The server is this
file too: `python examples/mcp_tools.py serve`, which the agent's side starts.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Literal

from langchain.agents import create_agent
from langchain_core.tools import BaseTool
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.sessions import StdioConnection
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp.server.fastmcp import FastMCP
from transcript import console, show_turn

from ssd_integrations.langchain import ChatSSD

server = FastMCP("museum", log_level="WARNING")

PRICES = {"adult": 12.0, "student": 8.0, "child": 4.5}
INSTRUCTIONS = (
    "You are the assistant of a museum. Call a tool when you need one. "
    "Once you have its result, answer the visitor in one plain sentence."
)
QUESTIONS = (
    "Is the museum open on Mondays?",
    "What do tickets for 2 adults cost?",
    "In which room is the painting 'The Ferry'?",
)


@server.tool()
def opening_hours(
    day: Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
) -> str:
    """When the museum is open on a day of the week."""
    return {"Monday": "closed", "Thursday": "10:00 to 21:00"}.get(day, "10:00 to 18:00")


@server.tool()
def ticket_price(visitor: Literal["adult", "student", "child"], number: int) -> str:
    """Price of tickets for a number of visitors of one kind."""
    return f"{number * PRICES[visitor]:.2f} euros"


@server.tool()
def find_work(title: str) -> str:
    """Where in the museum a work of art is shown."""
    rooms = {"the ferry": "room 4, first floor", "harbour at night": "room 2, ground floor"}
    return rooms.get(title.lower(), f"There is no work called {title!r}.")


def make_client() -> MultiServerMCPClient:
    """Knows how the server is started; a session with it is that process."""
    # Without `env` the process has a few variables alone, and may not find the packages that this one does.
    connection = StdioConnection(
        transport="stdio", command=sys.executable, args=[__file__, "serve"], env={**os.environ}
    )
    return MultiServerMCPClient({"museum": connection})


def make_agent(model: ChatSSD, tools: list[BaseTool]) -> Any:
    return create_agent(model, tools, system_prompt=INSTRUCTIONS)


async def main(model: ChatSSD) -> None:
    async with make_client().session("museum") as session:
        tools = await load_mcp_tools(session)
        console.print("[bold]the server's tools[/]", ", ".join(tool.name for tool in tools))
        agent = make_agent(model, tools)
        for question in QUESTIONS:
            await show_turn(agent, question)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        server.run()
    else:
        chat_model = ChatSSD()
        with console.status("Loading the models"):
            chat_model.load()
        asyncio.run(main(chat_model))
