"""An agent of LlamaIndex whose tools do not run on an answer of elevated risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from llama_index.core.agent.workflow import AgentOutput, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import Field
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

Judge = Callable[[Sequence[ChatMessage]], bool]
"""Says of a conversation whether its last message's calls may run. A guard model, for one."""
_ASKED = "ssd_asked_output"
"""The key of an agent's context under which the output waits that a human is asked about."""
_YES = ("yes", "y", "true")


class SSDFunctionAgent(FunctionAgent):
    """A `FunctionAgent` that keeps tools from running on an answer during which the pair's risk was elevated.

    The counterpart of LangChain's `SSDRiskMiddleware`; it works alone and in an `AgentWorkflow`.
    """

    on_risk: Literal["stop", "ask"] | Judge = Field(
        default="stop",
        description="'stop' ends the run with `note`. 'ask' waits for a `HumanResponseEvent`: after 'yes' the calls "
        "run, after anything else the run ends as for 'stop'. A function is asked whether the calls may run, at "
        "elevated risk alone, so a guard model costs nothing elsewhere.",
    )
    note: str = Field(
        default="I stopped before using a tool, because this request looks unsafe.",
        description="What the user reads where calls were kept back.",
    )

    async def take_step(
        self, ctx: Any, llm_input: list[ChatMessage], tools: Sequence[AsyncBaseTool], memory: BaseMemory
    ) -> AgentOutput:
        """Let the model's calls pass, or put `note` in their place."""
        # A step that waits for a human is run again from its beginning; what was asked about stays what it was.
        output = await ctx.store.get(_ASKED, default=None)
        if output is None:
            output = await super().take_step(ctx, llm_input, tools, memory)
        if not output.tool_calls or _risk_of(output) != "elevated":
            return cast("AgentOutput", output)
        if await self._may_run(ctx, output, llm_input):
            return cast("AgentOutput", output)
        said = ChatMessage(role=MessageRole.ASSISTANT, content=self.note)
        scratchpad = await ctx.store.get(self.scratchpad_key, default=[])
        await ctx.store.set(self.scratchpad_key, [*scratchpad[:-1], said])
        return cast("AgentOutput", output.model_copy(update={"response": said, "tool_calls": []}))

    async def _may_run(self, ctx: Context, output: AgentOutput, llm_input: list[ChatMessage]) -> bool:
        if self.on_risk == "stop":
            return False
        if callable(self.on_risk):
            return self.on_risk([*llm_input, output.response])
        await ctx.store.set(_ASKED, output)
        names = ", ".join(call.tool_name for call in output.tool_calls)
        question = InputRequiredEvent(
            prefix=f"This request looks unsafe. Run {names}? ",
            tool_calls=[call.model_dump() for call in output.tool_calls],
            ssd=_trace_of(output),
        )
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=question)
        await ctx.store.set(_ASKED, None)
        return str(answer.response).strip().lower() in _YES


def _trace_of(output: AgentOutput) -> dict[str, Any]:
    return output.raw.get("ssd", {}) if isinstance(output.raw, dict) else {}


def _risk_of(output: AgentOutput) -> Any:
    return _trace_of(output).get("risk")
