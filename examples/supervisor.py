"""A supervisor and two agents: each of the two has tools of its own, and is itself a tool of the supervisor.

Run it with `python examples/supervisor.py` where the package is installed with its extra `agents`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agent import one_call_a_turn
from langchain.agents import create_agent
from langchain_core.tools import tool
from transcript import console, show_turn

from ssd_integrations.langchain import ChatSSD

INSTRUCTIONS = "Call a tool when you need one. When it has answered, tell the user in one plain sentence what it said."
QUESTIONS = (
    "When does the first train from Lyon to Turin leave?",
    "Will it rain in Turin tomorrow?",
)


@tool
def departures(start: str, destination: str) -> str:
    """Trains of a day from one city to another, with their times."""
    trains = {("lyon", "turin"): "06:44, arrives 10:35; 14:41, arrives 18:30", ("turin", "lyon"): "07:38; 16:55"}
    return trains.get((start.lower(), destination.lower()), f"no train from {start} to {destination}")


@tool
def forecast(city: str) -> str:
    """The weather of tomorrow in a city."""
    return {"turin": "rain in the morning, 14 degrees", "lyon": "sunny, 19 degrees"}.get(city.lower(), "unknown")


def make_supervisor(model: ChatSSD) -> Any:
    rail = create_agent(model, [departures], system_prompt=f"You know the trains. {INSTRUCTIONS}")
    weather = create_agent(model, [forecast], system_prompt=f"You know the weather. {INSTRUCTIONS}")

    async def ask(agent: Any, question: str) -> str:
        state = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})
        return str(state["messages"][-1].text)

    @tool
    async def ask_rail_agent(question: str) -> str:
        """Ask the agent that knows the trains, in a whole sentence with all that it has to know."""
        return await ask(rail, question)

    @tool
    async def ask_weather_agent(question: str) -> str:
        """Ask the agent that knows the weather, in a whole sentence with all that it has to know."""
        return await ask(weather, question)

    instructions = f"You help travellers. {INSTRUCTIONS}"
    agents = [ask_rail_agent, ask_weather_agent]
    return create_agent(model, agents, system_prompt=instructions, middleware=[one_call_a_turn])


async def main(model: ChatSSD) -> None:
    supervisor = make_supervisor(model)
    for question in QUESTIONS:
        await show_turn(supervisor, question)


if __name__ == "__main__":
    chat_model = ChatSSD()
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
