# Two commands on a fresh machine: `make demo` and `make test`. Everything else is built on their environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo examples test check format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install  ## one agent question through LangChain, one RAG question through LlamaIndex
	$(BIN)/ssd models pull
	$(BIN)/python examples/quickstart.py

examples: demo  ## agents, a graph and RAG, in LangChain and LlamaIndex
	$(BIN)/python examples/agent.py
	$(BIN)/python examples/graph.py
	$(BIN)/python examples/rag_langchain.py
	$(BIN)/python examples/rag_llama_index.py

test: install  ## the whole suite, the real pair included
	$(BIN)/python -m pytest

check: install  ## formatter, linter, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
