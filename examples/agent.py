"""A LangChain agent that takes an order over three turns: it searches, computes and writes to a database.

Run it with `python examples/agent.py` where the package is installed with `langchain` and `langgraph`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console

from ssd_integrations.langchain import ChatSSD

console = Console(highlight=False, soft_wrap=True)

CATALOGUE = {
    "desk lamp": 24.5,
    "floor lamp": 79.0,
    "office chair": 149.0,
    "standing desk": 320.0,
    "bookshelf": 65.0,
    "wall clock": 18.0,
    "coat rack": 35.0,
    "monitor arm": 54.0,
}
INSTRUCTIONS = (
    "You are a helpful assistant. Call a tool when you need one. "
    "Once you have its result, answer the user in one plain sentence."
)
TURNS = (
    "Search the catalogue for the desk lamp. What does it cost?",
    "Compute the total of 3 desk lamps.",
    "Save the order of 3 desk lamps with this total.",
)


@tool
def search_catalogue(query: str) -> str:
    """Search the shop's products for a name; gives the price of one piece."""
    words = set(query.lower().split())
    found = [f"The {name} costs {price} euros." for name, price in CATALOGUE.items() if set(name.split()) <= words]
    return " ".join(found) or f"There is no {query}."


@tool
def compute(operation: Literal["add", "subtract", "multiply", "divide"], a: float, b: float) -> float:
    """Calculate with two numbers, for example a total: price times quantity."""
    match operation:
        case "add":
            return a + b
        case "subtract":
            return a - b
        case "multiply":
            return a * b
        case "divide":
            return a / b


def order_tool(database: Path) -> BaseTool:
    """A tool that writes orders to `database`."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, product TEXT, quantity INTEGER, total REAL)")

    @tool
    def save_order(product: str, quantity: int, total: float) -> str:
        """Save an order in the shop's database."""
        # Tools run in threads, and a connection of SQLite belongs to the thread that opened it.
        with closing(sqlite3.connect(database)) as connection, connection:
            row = connection.execute(
                "INSERT INTO orders (product, quantity, total) VALUES (?, ?, ?)", (product, quantity, total)
            )
            return f"saved as order {row.lastrowid}"

    return save_order


def saved_orders(database: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT product, quantity, total FROM orders").fetchall()


@wrap_model_call
async def one_call_a_turn(
    request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse]]
) -> ModelResponse:
    """A question gets a tool call, the tool's result gets a sentence.

    Left to itself so small a model calls again what it has called, or says that it has saved what it has not. With
    tool_choice="any" decoding is constrained to a call whose arguments fit the tool.
    """
    has_result = isinstance(request.messages[-1], ToolMessage)
    return await handler(request.override(tool_choice="none" if has_result else "any"))


def make_agent(model: ChatSSD, database: Path) -> Any:
    """The agent; its checkpointer keeps the conversation of each `thread_id`."""
    return create_agent(
        model,
        [search_catalogue, compute, order_tool(database)],
        system_prompt=INSTRUCTIONS,
        middleware=[one_call_a_turn],
        checkpointer=InMemorySaver(),
    )


async def events_of_turn(agent: Any, text: str, thread_id: str) -> AsyncIterator[tuple[str, Any]]:
    """What happens while the agent answers: ("token", text), ("call", tool-call chunk) and ("result", message)."""
    config = {"configurable": {"thread_id": thread_id}}
    messages = {"messages": [{"role": "user", "content": text}]}
    async for event in agent.astream_events(messages, config, version="v2"):
        if event["event"] == "on_chat_model_stream":
            chunk = event["data"]["chunk"]
            if chunk.text:
                yield "token", chunk.text
            for call in chunk.tool_call_chunks:
                yield "call", call
        elif event["event"] == "on_tool_end":
            yield "result", event["data"]["output"]


async def show_turn(agent: Any, text: str, thread_id: str) -> None:
    console.print(f"\n[bold]user[/]  {text}")
    async for kind, value in events_of_turn(agent, text, thread_id):
        match kind:
            case "token":
                console.print(value, end="", markup=False)
            case "call":
                console.print(f"[bold]call[/]  {value['name']}({value['args']})")
            case "result":
                console.print(f"[bold]tool[/]  {value.content}")
    console.print()


async def main(model: ChatSSD) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "orders.sqlite"
        agent = make_agent(model, database)
        for text in TURNS:
            await show_turn(agent, text, thread_id="order")
        console.print("\n[bold]rows in the database[/]", saved_orders(database))


if __name__ == "__main__":
    chat_model = ChatSSD(max_tokens=96)
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
