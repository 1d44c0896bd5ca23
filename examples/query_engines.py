"""LlamaIndex engines that ask other engines: a router, which chooses one, and one that asks several sub-questions.

Run it with `python examples/query_engines.py`; see `embedding.py` for what it needs besides `llama-index`.
"""

from __future__ import annotations

from embedding import llama_index_embedding
from llama_index.core import Document, SummaryIndex, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.tools import QueryEngineTool
from rich.console import Console

from ssd_integrations.llama_index import SSDLLM

console = Console(highlight=False, soft_wrap=True)

TOWNS = {
    "marrow_point": [
        "Marrow Point has 1,240 inhabitants. Its mayor is Ingrid Solheim.",
        "The lighthouse of Marrow Point was built in 1874 by the engineer Odile Ferrant.",
        "Marrow Point lives on its fishing boats and on the visitors of its lighthouse.",
    ],
    "tern_bay": [
        "Tern Bay has 5,300 inhabitants. Its mayor is Jonas Lind.",
        "The ferry from Tern Bay to Marrow Point leaves every two hours; a ticket costs 9 euros.",
        "Tern Bay lives on its shipyard, which was founded in 1921.",
    ],
}
ROUTED = ("Who built the lighthouse of Marrow Point?", "Give a summary of what is known of both towns.")
COMPARISON = "Which town has more inhabitants, Marrow Point or Tern Bay?"


def documents(town: str) -> list[Document]:
    return [Document(text=text) for text in TOWNS[town]]


def make_router(llm: SSDLLM, embedding: BaseEmbedding) -> RouterQueryEngine:
    """Chooses between looking a fact up and summing up all there is."""
    everything = [document for town in TOWNS for document in documents(town)]
    facts = VectorStoreIndex.from_documents(everything, embed_model=embedding)
    summary = SummaryIndex.from_documents(everything)
    tools = [
        QueryEngineTool.from_defaults(
            facts.as_query_engine(llm=llm, similarity_top_k=2),
            name="facts",
            description="Answers a question about a single fact, such as a name, a price or a year.",
        ),
        QueryEngineTool.from_defaults(
            summary.as_query_engine(llm=llm, response_mode="compact"),
            name="summary",
            description="Summarises all the documents.",
        ),
    ]
    return RouterQueryEngine.from_defaults(tools, llm=llm)


def make_comparison(llm: SSDLLM, embedding: BaseEmbedding) -> SubQuestionQueryEngine:
    """Takes a question apart, asks each town's own engine, and answers from their answers."""
    tools = [
        QueryEngineTool.from_defaults(
            VectorStoreIndex.from_documents(documents(town), embed_model=embedding).as_query_engine(llm=llm),
            name=town,
            description=f"Facts about the town {town.replace('_', ' ').title()}.",
        )
        for town in TOWNS
    ]
    questions = LLMQuestionGenerator.from_defaults(llm=llm)
    return SubQuestionQueryEngine.from_defaults(tools, llm=llm, question_gen=questions, verbose=False)


def main(llm: SSDLLM) -> None:
    embedding = llama_index_embedding()

    console.rule("Router")
    router = make_router(llm, embedding)
    for question in ROUTED:
        answer = router.query(question)
        choice = answer.metadata["selector_result"].selections[0]
        console.print(f"[bold]user[/]   {question}")
        console.print(f"[bold]choice[/] {('facts', 'summary')[choice.index]}: {choice.reason}", style="dim")
        console.print("[bold]model[/] ", str(answer).strip())

    console.rule("Sub-questions")
    console.print(f"[bold]user[/]   {COMPARISON}")
    answer = make_comparison(llm, embedding).query(COMPARISON)
    for found in answer.source_nodes:
        if found.text.startswith("Sub question"):
            console.print(found.text, style="dim")
    console.print("[bold]model[/] ", str(answer).strip())


if __name__ == "__main__":
    ssd = SSDLLM()
    with console.status("Loading the models"):
        ssd.load()
    main(ssd)
