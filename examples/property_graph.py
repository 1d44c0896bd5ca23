"""A LlamaIndex property graph: the model reads persons, places and buildings out of texts, and answers from the graph.

Run it with `python examples/property_graph.py`; see `embedding.py` for what it needs besides `llama-index`.
"""

from __future__ import annotations

from typing import Literal

from embedding import llama_index_embedding
from llama_index.core import Document, PropertyGraphIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor, VectorContextRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from rich.console import Console

from ssd_integrations.llama_index import SSDLLM

console = Console(highlight=False, soft_wrap=True)

TEXTS = (
    "Odile Ferrant was born in Tern Bay. She built the lighthouse.",
    "Ingrid Solheim was born in Oslo. She lives in Marrow Point. She built the museum.",
)
Entity = Literal["PERSON", "PLACE", "BUILDING"]
Relation = Literal["BORN_IN", "LIVES_IN", "BUILT"]
TRIPLES = [
    ("PERSON", "BORN_IN", "PLACE"),
    ("PERSON", "LIVES_IN", "PLACE"),
    ("PERSON", "BUILT", "BUILDING"),
]
"""What may be said of what; anything else that the model reads is left out."""
QUESTIONS = ("Where was Odile Ferrant born?", "Where does Ingrid Solheim live?")


def make_index(llm: SSDLLM, embedding: BaseEmbedding) -> PropertyGraphIndex:
    extractor = SchemaLLMPathExtractor(
        llm=llm,
        possible_entities=Entity,
        possible_relations=Relation,
        kg_validation_schema=TRIPLES,
        max_triplets_per_chunk=4,
    )
    documents = [Document(text=text) for text in TEXTS]
    return PropertyGraphIndex.from_documents(
        documents, llm=llm, embed_model=embedding, kg_extractors=[extractor], use_async=False
    )


def make_engine(index: PropertyGraphIndex, llm: SSDLLM, embedding: BaseEmbedding) -> RetrieverQueryEngine:
    """Answers from the graph's paths alone: those that begin or end at what a question is nearest to."""
    paths = VectorContextRetriever(
        index.property_graph_store,
        vector_store=index.vector_store,
        embed_model=embedding,
        include_text=False,
        similarity_top_k=2,
        path_depth=1,
    )
    return RetrieverQueryEngine.from_args(index.as_retriever(sub_retrievers=[paths]), llm=llm)


def main(llm: SSDLLM) -> None:
    embedding = llama_index_embedding()
    with console.status("Reading the texts into a graph"):
        index = make_index(llm, embedding)
    console.rule("The graph")
    for subject, relation, thing in index.property_graph_store.get_triplets(relation_names=[t[1] for t in TRIPLES]):
        console.print(f"{subject.name} ({subject.label})  {relation.label}  {thing.name} ({thing.label})")

    console.rule("Questions")
    engine = make_engine(index, llm, embedding)
    for question in QUESTIONS:
        console.print(f"[bold]user[/]   {question}")
        answer = engine.query(question)
        for found in answer.source_nodes:
            console.print(f"[bold]path[/]   {found.text}", style="dim")
        console.print("[bold]model[/] ", str(answer).strip())


if __name__ == "__main__":
    ssd = SSDLLM()
    with console.status("Loading the models"):
        ssd.load()
    main(ssd)
