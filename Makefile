# make demo: bake a project, and talk to a bot that uses it
# make test: check the template, and the project that it bakes for each database
# make test-slow: run the contract on the databases, and more broken storages; CI runs this
#   after `make test`
# make test-nightly: test on every Python and the other servers, and run the whole contract against
#   each broken storage
# make test-servers: test on the servers in PATH; MYSQL_SERVER=mysqld uses MySQL instead of MariaDB,
#   and REDIS_SERVER=valkey-server uses Valkey instead of Redis
# make test-newer: test on the Pythons and servers of a newer Debian, which it unpacks into .newer
# make bench: measure everything that docs/benchmarks.md shows, and draw all pictures

PYTHON ?= python3
BIN = .venv/bin
READY = .venv/ready
# Many tests wait for something, so two cores serve four processes.
PYTEST = $(BIN)/python -m pytest -n 4 --dist worksteal
# The tests start hundreds of processes, each of which would compile all of Errbot again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench check clean demo test test-newer test-nightly test-servers test-slow

demo: $(READY)
	$(BIN)/python demo.py

test: check
	$(PYTEST)

test-slow: $(READY)
	$(PYTEST) -m "slow and not nightly"

test-nightly: $(READY)
	$(PYTEST) -m nightly

test-servers: $(READY)
	$(PYTEST) -m "" tests/test_sql.py tests/test_redis.py tests/test_planted_rows.py

NEWER = $(CURDIR)/.newer/usr
test-newer: export PATH := $(NEWER)/lib/postgresql/18/bin:$(NEWER)/sbin:$(NEWER)/bin:$(PATH)
test-newer: $(READY)
	[ -d .newer ] || tests/unpack_newer.sh .newer
	$(PYTEST) -m "" tests/test_installation.py -k "3.14 or 3.15"
	$(MAKE) test-servers
	$(MAKE) test-servers MYSQL_SERVER=mysqld REDIS_SERVER=valkey-server

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python docs/terminal.py
	$(BIN)/python benchmarks/move.py
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf .newer .venv demo

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group dev
	touch $@
