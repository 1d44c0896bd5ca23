"""How the examples with agents show what happens: the user's words, calls, results and answers, one a line."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from rich.console import Console
from rich.markup import escape

console = Console(highlight=False, soft_wrap=True)


async def show_turn(agent: Any, text: str, config: RunnableConfig | None = None) -> None:
    """Ask a LangChain agent, and show each message when it is there; those of agents within it are indented."""
    console.print(f"\n[bold]user[/]   {text}")
    question = {"messages": [{"role": "user", "content": text}]}
    async for graph, update in agent.astream(question, config, stream_mode="updates", subgraphs=True):
        for change in update.values():
            for message in (change or {}).get("messages", ()):
                show_message(message, indent="  " * len(graph))


def show_message(message: BaseMessage, indent: str = "") -> None:
    match message:
        case AIMessage():
            for call in message.tool_calls:
                arguments = ", ".join(f"{name}={value!r}" for name, value in call["args"].items())
                console.print(f"{indent}[bold]call[/]   {call['name']}({escape(arguments)})")
            if message.text.strip():
                console.print(f"{indent}[bold]model[/]  {escape(message.text.strip())}")
        case ToolMessage():
            console.print(f"{indent}[bold]tool[/]   {escape(message.text.strip())}")
