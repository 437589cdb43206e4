# make demo: bake a project and talk to a bot that keeps its data in it.
# make test: check the template, and every project that it can bake.
# make test-servers: run the contract on every server with the oldest Python, too.
# make bench: measure everything that docs/benchmarks.md shows, and draw all pictures again.

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready

.PHONY: bench check clean demo test test-servers

demo: $(READY)
	$(BIN)/python demo.py

test: check
	$(BIN)/python -m pytest -n 2

test-servers: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python docs/terminal.py
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .venv demo

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group dev
	touch $@
