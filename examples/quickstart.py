"""One agent question through LangChain and one RAG question through LlamaIndex, on the default pair.

Run it with `make demo`, or `python examples/quickstart.py` where the package is installed with its extras
`langchain` and `llama-index`. The first run fetches the pair's weights (1.6 GB).
"""

import time
from collections.abc import Iterable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from llama_index.core import SimpleDirectoryReader, SimpleKeywordTableIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent
from llama_index.core.node_parser import SentenceSplitter
from pydantic import Field
from rich.console import Console

from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

console = Console(highlight=False)
DOCS = Path(__file__).parent.parent / "docs"


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Lyon": 522_000, "Turin": 841_000}[city]


def shown(chunks: Iterable[Any]) -> list[Any]:
    """What a stream gives, chunks of a message or plain text, printed as it comes."""
    kept: list[Any] = []
    has_begun = False
    for chunk in chunks:
        kept.append(chunk)
        text = chunk if isinstance(chunk, str) else chunk.text
        if text and not has_begun:
            has_begun = True
            console.print("[bold]model[/] ", end="")
        console.print(text, end="", markup=False, soft_wrap=True)
    if has_begun:
        console.print()
    return kept


def show_trace(trace: dict[str, Any], tokens: int, seconds: float) -> None:
    ratios = ", ".join(f"{ratio:.2f}" for ratio in trace["match_ratios"]) or "none yet"
    console.print(
        f"  risk {trace['risk']} · match rate {trace['match_rate']:.2f} · bins {ratios}\n"
        f"  {tokens} tokens, {trace['tokens_per_round']:.2f} a round, {tokens / seconds:.1f} a second with the prompt",
        style="dim",
    )


def langchain_agent() -> None:
    """A tool call, executed and answered."""
    console.rule("LangChain: ChatSSD with a tool")
    model = ChatSSD(max_tokens=96).bind_tools([population])
    instructions = (
        "You are a helpful assistant. Call a tool when you need one. "
        "Once you have its result, answer the user in one plain sentence."
    )
    question = "How many people live in Lyon?"
    messages: list[Any] = [SystemMessage(instructions), HumanMessage(question)]
    console.print(f"[bold]user[/]  {question}")
    while True:
        start = time.perf_counter()
        answer = reduce(add, shown(model.stream(messages)))
        seconds = time.perf_counter() - start
        messages.append(answer)
        for call in answer.tool_calls:
            result = population.invoke(call)
            messages.append(result)
            console.print(f"[bold]tool[/]  {call['name']}({call['args']}) → {result.content}")
        show_trace(answer.response_metadata["ssd"], answer.usage_metadata["output_tokens"], seconds)
        if not answer.tool_calls:
            return


class Answers(BaseEventHandler):
    """Keeps what the model reports; a query engine passes on the text alone."""

    raw: list[dict[str, Any]] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Keep what an answer brought."""
        if isinstance(event, LLMChatEndEvent) and event.response is not None:
            self.raw.append(event.response.raw)


def llama_index_rag() -> None:
    """A question about this project, answered from its own documentation."""
    console.rule("LlamaIndex: SSDLLM over this project's docs")
    documents = SimpleDirectoryReader(str(DOCS), required_exts=[".md"]).load_data()
    splitter = SentenceSplitter(chunk_size=200, chunk_overlap=20)
    llm = SSDLLM(max_tokens=96)
    index = SimpleKeywordTableIndex.from_documents(documents, llm=llm, transformations=[splitter])
    engine = index.as_query_engine(llm=llm, num_chunks_per_query=2, streaming=True)
    question = "When does decoding switch to the Union scheme?"
    console.print(f"[bold]user[/]  {question}")
    answers = Answers()
    get_dispatcher().add_event_handler(answers)
    start = time.perf_counter()
    shown(engine.query(question).response_gen)
    for raw in answers.raw:
        show_trace(raw["ssd"], raw["usage"]["completion_tokens"], time.perf_counter() - start)


if __name__ == "__main__":
    ChatSSD().load()  # once for both
    langchain_agent()
    llama_index_rag()
