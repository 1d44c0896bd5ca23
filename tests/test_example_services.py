"""What the examples put around a model, whichever it is: a server of tools, a database, an endpoint."""

from __future__ import annotations

import asyncio
import importlib
import sys
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from conftest import wait_for

from ssd_engine import SSDEngine
from ssd_engine.serving.request import Request
from ssd_integrations.langchain import ChatSSD

sys.path.append(str(Path(__file__).parent.parent / "examples"))
mcp_tools, sql_agent, streaming_api = map(importlib.import_module, ("mcp_tools", "sql_agent", "streaming_api"))


async def test_the_tools_of_another_process_are_called() -> None:
    async with mcp_tools.make_client().session("museum") as session:
        tools = {tool.name: tool for tool in await mcp_tools.load_mcp_tools(session)}
        assert tools.keys() == {"opening_hours", "ticket_price", "find_work"}
        call = {"type": "tool_call", "id": "1", "name": "ticket_price", "args": {"visitor": "child", "number": 2}}
        assert (await tools["ticket_price"].ainvoke(call)).text == "9.00 euros"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders",
        "DROP TABLE orders",
        "UPDATE orders SET price = 0",
        "PRAGMA writable_schema = 1",
        "ATTACH ':memory:' AS other",
    ],
)
def test_the_shop_can_only_be_read(sql: str) -> None:
    with closing(sql_agent.open_shop()) as connection:
        query = sql_agent.query_tool(connection)
        assert query.invoke({"sql": sql}) == "error: not authorized"
        assert query.invoke({"sql": "SELECT count(*) AS n FROM orders"}) == "n\n5"


async def test_an_answer_arrives_as_events(tiny_engine: SSDEngine) -> None:
    model = ChatSSD(engine=tiny_engine, max_tokens=24)
    async with streaming_api.serving(streaming_api.make_app(model)) as address:
        *pieces, (name, end) = [event async for event in streaming_api.events(address, "Hello")]
    assert len(pieces) > 1
    assert "".join(text for _, text in pieces) == model.invoke("Hello").content
    assert (name, end["tokens"]) == ("end", 24)


async def test_a_client_that_hangs_up_stops_decoding(tiny_engine: SSDEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []
    submit = tiny_engine._scheduler.submit
    monkeypatch.setattr(tiny_engine._scheduler, "submit", lambda request: (requests.append(request), submit(request)))
    model = ChatSSD(engine=tiny_engine, max_tokens=1900)
    async with streaming_api.serving(streaming_api.make_app(model)) as address:
        async with aclosing(streaming_api.events(address, "Hello")) as events:
            await anext(events)
        await asyncio.to_thread(wait_for, lambda: tiny_engine.is_idle)
    (request,) = requests
    assert request.is_cancelled
