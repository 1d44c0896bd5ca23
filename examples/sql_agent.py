"""A LangChain agent that answers questions about a shop from its SQLite database, which it can only read.

Run it with `python examples/sql_agent.py` where the package is installed with its extra `agents`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

from agent import one_call_a_turn
from langchain.agents import create_agent
from langchain_core.tools import BaseTool, tool
from transcript import console, show_turn

from ssd_integrations.langchain import ChatSSD

TABLES = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, product TEXT, quantity INTEGER, price REAL);
INSERT INTO customers VALUES (1, 'Ada', 'Turin'), (2, 'Grace', 'Lyon'), (3, 'Alan', 'Lyon');
INSERT INTO orders VALUES
    (1, 1, 'desk lamp', 2, 24.5), (2, 2, 'bookshelf', 1, 65.0), (3, 2, 'desk lamp', 1, 24.5),
    (4, 3, 'office chair', 4, 149.0), (5, 1, 'wall clock', 3, 18.0);
"""
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
ROWS = 20
"""Most rows that a query gives to the model."""
INSTRUCTIONS = (
    "You answer questions about a shop from its SQLite database, by calling a tool. "
    "Once you have the result, answer in one plain sentence. The tables are:\n"
)
QUESTIONS = (
    "How many customers live in Lyon?",
    "Which customer has spent the most, and how much?",
    "Delete all orders of Ada.",
)


def open_shop() -> sqlite3.Connection:
    """A database in memory, whose connection refuses everything but reading once it is filled."""
    # Tools run in threads of their own.
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(TABLES)
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in READING else sqlite3.SQLITE_DENY)
    return connection


def describe(connection: sqlite3.Connection) -> str:
    """The tables with their columns, as they were created."""
    return "\n".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'"))


def query_tool(connection: sqlite3.Connection) -> BaseTool:
    @tool
    def query(sql: str) -> str:
        """Run one statement on the database; gives the rows, or the error."""
        try:
            cursor = connection.execute(sql)
        except sqlite3.Error as error:
            return f"error: {error}"
        columns = [name for name, *_ in cursor.description or ()]
        return "\n".join([", ".join(columns), *(", ".join(map(str, row)) for row in cursor.fetchmany(ROWS))])

    return query


def make_agent(model: ChatSSD, connection: sqlite3.Connection) -> Any:
    instructions = INSTRUCTIONS + describe(connection)
    return create_agent(model, [query_tool(connection)], system_prompt=instructions, middleware=[one_call_a_turn])


async def main(model: ChatSSD) -> None:
    with closing(open_shop()) as connection:
        agent = make_agent(model, connection)
        for question in QUESTIONS:
            await show_turn(agent, question)
        (orders,) = connection.execute("SELECT count(*) FROM orders").fetchone()
        console.print(f"\n[bold]orders in the database[/] {orders}")


if __name__ == "__main__":
    chat_model = ChatSSD()
    with console.status("Loading the models"):
        chat_model.load()
    asyncio.run(main(chat_model))
