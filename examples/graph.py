"""Two LangGraph nodes that answer at once on one engine, joined by a third.

Run it with `python examples/graph.py` where the package is installed with `langgraph`.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from rich.console import Console

from ssd_integrations.langchain import ChatSSD

console = Console(highlight=False, soft_wrap=True)

TOPIC = "working from home"


def larger(a: int, b: int) -> int:
    return max(a, b)  # LangGraph asks a reducer for its signature, and `max` itself has none


class Debate(TypedDict, total=False):
    """What the nodes know; `at_once` keeps the most requests that any node saw the engine answer at one time."""

    topic: str
    pros: str
    cons: str
    verdict: str
    at_once: Annotated[int, larger]


def make_graph(model: ChatSSD) -> Any:
    """START -> pros and cons, side by side -> verdict -> END."""
    engine = model.load()

    async def ask(prompt: str) -> tuple[str, int]:
        """The answer, and how many requests were answered meanwhile, this one included."""
        parts: list[str] = []
        at_once = 0
        async for chunk in model.astream(prompt):
            parts.append(chunk.text)
            at_once = max(at_once, engine.num_running)
        return "".join(parts), at_once

    async def pros(state: Debate) -> Debate:
        text, at_once = await ask(f"Name one advantage of {state['topic']}, in one short sentence.")
        return {"pros": text, "at_once": at_once}

    async def cons(state: Debate) -> Debate:
        text, at_once = await ask(f"Name one disadvantage of {state['topic']}, in one short sentence.")
        return {"cons": text, "at_once": at_once}

    async def verdict(state: Debate) -> Debate:
        arguments = f"For {state['topic']}: {state['pros']}\nAgainst it: {state['cons']}"
        text, at_once = await ask(f"{arguments}\n\nWeigh both in one short sentence.")
        return {"verdict": text, "at_once": at_once}

    graph = StateGraph(Debate)
    for node in (pros, cons, verdict):
        graph.add_node(node.__name__, node)
    for side in ("pros", "cons"):
        graph.add_edge(START, side)
    graph.add_edge(["pros", "cons"], "verdict")  # waits for both
    graph.add_edge("verdict", END)
    return graph.compile()


async def main(model: ChatSSD) -> None:
    debate = await make_graph(model).ainvoke({"topic": TOPIC})
    for part in ("topic", "pros", "cons", "verdict"):
        console.print(f"[bold]{part:<8}[/]", debate[part])
    console.print(f"[dim]answered at once: {debate['at_once']}[/]")


if __name__ == "__main__":
    chat_model = ChatSSD(max_tokens=64)
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
