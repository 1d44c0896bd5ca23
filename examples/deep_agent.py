"""A deep agent (deepagents) with a folder of files: it looks something up in one, and writes it to another.

Run it with `python examples/deep_agent.py` where the package is installed with its extra `examples`.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from agent import one_call_a_turn
from deepagents import create_deep_agent
from deepagents.backends import FilesystemBackend
from langgraph.checkpoint.memory import InMemorySaver
from transcript import console, show_turn

from ssd_integrations.langchain import ChatSSD

MINUTES = """\
Minutes of the harbour club, 3 March

Ingrid reported that the jetty needs new planks. Decision: the planks are ordered in April, for 1,900 euros at most.
Odile asked for a longer season. There was no majority for it.
The boat race was discussed. Decision: it takes place on the first Sunday of August.
"""
INSTRUCTIONS = (
    "You work with the files of a folder. Call a tool when you need one. "
    "Once you have its result, answer the user in one plain sentence."
)
TURNS = (
    "Read /minutes.md. When does the boat race take place?",
    "Write a file /race.md that says when the boat race takes place.",
)


def make_folder(name: str) -> Path:
    folder = Path(name)
    (folder / "minutes.md").write_text(MINUTES, encoding="utf-8")
    return folder


def make_agent(model: ChatSSD, folder: Path) -> Any:
    """A deep agent whose files are those of `folder`; `/` is that folder."""
    backend = FilesystemBackend(root_dir=folder, virtual_mode=True)
    return create_deep_agent(
        model,
        backend=backend,
        system_prompt=INSTRUCTIONS,
        middleware=[one_call_a_turn],
        checkpointer=InMemorySaver(),
    )


def show_files(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        console.print(f"\n[bold]{file.name}[/]")
        console.print(file.read_text(encoding="utf-8").strip(), markup=False)


async def main(model: ChatSSD) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = make_folder(name)
        agent = make_agent(model, folder)
        for text in TURNS:
            await show_turn(agent, text, {"configurable": {"thread_id": "minutes"}})
        show_files(folder)


if __name__ == "__main__":
    chat_model = ChatSSD()
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
