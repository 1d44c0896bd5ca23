"""LlamaIndex answers questions about this project and about the licences of what it uses: query, stream, chat.

Run it with `python examples/rag_llama_index.py`; see `embedding.py` for what it needs besides `llama-index`.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from embedding import llama_index_embedding
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.memory import Memory
from llama_index.core.node_parser import SentenceSplitter
from rich.console import Console

from ssd_integrations.llama_index import SSDLLM

console = Console(highlight=False, soft_wrap=True)

PROJECT = Path(__file__).parent.parent
LICENSED = ("transformers", "langchain-core", "llama-index-core", "pydantic", "numpy")
PASSAGES = 2
"""How many the model reads for one question; the fewer, the sooner the answer begins."""

QUESTION = "When does decoding switch to the Union scheme?"
STREAMED_QUESTION = "Who holds the copyright of pydantic?"
CHAT = ("Under which licence is transformers?", "May I use it in a product that I sell?")


def project_documents() -> list[Document]:
    """The readme and the documentation of this project."""
    paths = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    return [Document(text=path.read_text(encoding="utf-8"), metadata={"source": path.name}) for path in paths]


def licence_documents() -> list[Document]:
    """The licence texts of installed packages, as the packages carry them; not those of what they bundle."""
    documents = []
    for package in LICENSED:
        for file in distribution(package).files or ():
            if file.stem == "LICENSE" and file.parent.name == "licenses":
                text = f"Licence of {package}\n\n{file.read_text(encoding='utf-8')}"
                documents.append(Document(text=text, metadata={"source": f"licence of {package}"}))
    return documents


def make_index(documents: list[Document], embedding: BaseEmbedding) -> VectorStoreIndex:
    # The embedding reads at most 256 word pieces; a longer passage would be found by its beginning alone.
    splitter = SentenceSplitter(chunk_size=200, chunk_overlap=20)
    return VectorStoreIndex.from_documents(documents, embed_model=embedding, transformations=[splitter])


def make_chat(index: VectorStoreIndex, llm: SSDLLM) -> BaseChatEngine:
    """A chat that writes each question anew, so that it can be searched for without what was said before."""
    return index.as_chat_engine(
        chat_mode="condense_plus_context", llm=llm, memory=Memory.from_defaults(), similarity_top_k=PASSAGES
    )


def main(llm: SSDLLM) -> None:
    with console.status("Building the index"):
        index = make_index([*project_documents(), *licence_documents()], llama_index_embedding())
    console.print(f"[dim]{len(index.docstore.docs)} passages[/]")

    console.rule("Query engine")
    console.print(f"[bold]user[/]   {QUESTION}")
    answer = index.as_query_engine(llm=llm, similarity_top_k=PASSAGES).query(QUESTION)
    console.print("[bold]model[/] ", str(answer).strip())
    for found in answer.source_nodes:
        console.print(f"  {found.score:.2f} {found.metadata['source']}", style="dim")

    console.rule("Streaming query engine")
    console.print(f"[bold]user[/]   {STREAMED_QUESTION}")
    console.print("[bold]model[/]  ", end="")
    streaming = index.as_query_engine(llm=llm, similarity_top_k=PASSAGES, streaming=True)
    for part in streaming.query(STREAMED_QUESTION).response_gen:
        console.print(part, end="", markup=False)
    console.print()

    console.rule("Chat engine with memory")
    chat = make_chat(index, llm)
    for question in CHAT:
        console.print(f"[bold]user[/]   {question}")
        console.print("[bold]model[/] ", str(chat.chat(question)).strip())


if __name__ == "__main__":
    ssd = SSDLLM(max_tokens=96)
    with console.status("Loading the models"):
        ssd.load()
    main(ssd)
