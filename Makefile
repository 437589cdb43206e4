# make demo: bake a project, and talk to a bot that uses it
# make test: check the template, and the project that it bakes for each database
# make test-slow: test on every Python, and the whole contract against each broken storage
# make test-newer: install and test every bake on the Pythons of a newer Debian as well
# make bench: measure everything that docs/benchmarks.md shows, and draw all pictures

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready

.PHONY: bench check clean demo test test-newer test-slow

demo: $(READY)
	$(BIN)/python demo.py

test: check
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

test-newer: $(READY)
	[ -d .newer ] || tests/unpack_newer.sh .newer
	PATH="$$PATH:$(CURDIR)/.newer/usr/bin" $(BIN)/python -m pytest -n 2 tests/test_installation.py

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python docs/terminal.py
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/move.py

clean:
	rm -rf .newer .venv demo

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group dev
	touch $@
