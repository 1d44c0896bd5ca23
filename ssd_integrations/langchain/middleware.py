"""Middleware for LangChain's agents: what becomes of calls of elevated risk, and of calls that were cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, hook_config
except ImportError as error:
    raise ImportError('middleware for agents needs langchain: pip install "ssd-integrations[agents]"') from error
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langgraph.runtime import Runtime
from langgraph.types import interrupt

Judge = Callable[[Sequence[AnyMessage]], bool]
"""Says of a conversation whether its last message's calls may run. A guard model, for one."""


class SSDRiskMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Keeps tools from running on an answer during which the pair's risk was elevated.

    Attributes:
        on_risk: "stop" ends the run with `note`; "ask" interrupts it until a human says yes (`Command(resume=True)`),
            and needs a checkpointer; a function is asked whether the calls may run. It is asked at elevated risk alone,
            so a guard model costs nothing elsewhere.
        note: what the user reads where calls were kept back.
    """

    def __init__(
        self,
        on_risk: Literal["stop", "ask"] | Judge = "stop",
        *,
        note: str = "I stopped before using a tool, because this request looks unsafe.",
    ) -> None:
        super().__init__()
        self.on_risk = on_risk
        self.note = note

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Let calls pass, or put `note` in their place and end the run."""
        messages = state["messages"]
        last = messages[-1]
        if not isinstance(last, AIMessage) or not last.tool_calls or _risk_of(last) != "elevated":
            return None
        if self._may_run(messages, last):
            return None
        kept = last.model_copy(update={"content": self.note, "tool_calls": [], "invalid_tool_calls": []})
        return {"messages": [kept], "jump_to": "end"}

    def _may_run(self, messages: Sequence[AnyMessage], last: AIMessage) -> bool:
        if self.on_risk == "stop":
            return False
        if self.on_risk == "ask":
            return bool(interrupt({"tool_calls": last.tool_calls, "ssd": last.response_metadata["ssd"]}))
        return self.on_risk(messages)


class RetryCutCalls(AgentMiddleware[AgentState[Any], Any, Any]):
    """Has the model try again where its answer was a call that is none: cut off by `max_tokens`, or no valid JSON.

    Attributes:
        max_retries: tries in a row, after which the run ends with the note that `ChatSSD` writes of such an answer.
    """

    def __init__(self, max_retries: int = 2) -> None:
        super().__init__()
        self.max_retries = max_retries

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Tell the model what was wrong with its call, and ask it again."""
        messages = state["messages"]
        last = messages[-1]
        if not isinstance(last, AIMessage) or last.tool_calls or not last.invalid_tool_calls:
            return None
        if _failures_in_a_row(messages) > self.max_retries:
            return None
        is_cut = last.response_metadata.get("finish_reason") == "length"
        advice = "Call it again, in full, with shorter arguments." if is_cut else "Call it again, in full."
        told = [
            ToolMessage(
                f"The call could not be run: {call['error']}. {advice}",
                tool_call_id=call["id"] or "",
                name=call["name"],
                status="error",
            )
            for call in last.invalid_tool_calls
        ]
        return {"messages": told, "jump_to": "model"}


def _risk_of(message: AIMessage) -> Any:
    return message.response_metadata.get("ssd", {}).get("risk")


def _failures_in_a_row(messages: Sequence[AnyMessage]) -> int:
    """Answers at the end, with the words on them, of which none is a valid call."""
    count = 0
    for message in reversed(messages):
        if isinstance(message, AIMessage) and message.invalid_tool_calls and not message.tool_calls:
            count += 1
        elif not isinstance(message, ToolMessage):
            break
    return count
