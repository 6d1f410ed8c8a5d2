# Everything runs in .venv, which the first target that needs it creates from constraints.txt.
# Nothing but python3 (3.11 or newer), make and git has to be installed.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
N ?= 20
SEED ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES := partitioning pipeline benchmarks examples tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast lint format up down bench chaos lock reference clean

help: ## list these targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv from the hash-locked constraints.txt

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "chunkmap needs Python 3.11 or newer and $(PYTHON) is older: make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments. On Debian and Ubuntu:" >&2; \
	  $(PYTHON) -c 'import sys; print("  sudo apt-get install python%d.%d-venv" % sys.version_info[:2])' >&2; \
	  exit 2; }
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@# The lock is complete, so nothing is resolved; `pip check` proves that it is.
	@$(PIP) install -qq --no-deps --require-hashes --only-binary :all: -r constraints.txt
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(PIP) check
	@touch $@

demo: $(STAMP) ## run the main job end to end: local S3, Prefect and Dask, TPC-H lineitem
	@$(BIN)/chunkmap demo $(ARGS)

test: $(STAMP) ## run every test
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

test-fast: $(STAMP) ## run the tests that start no servers
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope -m "not integration and not faults" $(ARGS)

lint: $(STAMP) ## ruff (rules and format) and mypy --strict
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

format: $(STAMP) ## let ruff fix and format
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

up: $(STAMP) ## start the local S3, Prefect server and Dask cluster
	@$(BIN)/chunkmap up $(ARGS)

down: $(STAMP) ## stop what `make up` started
	@$(BIN)/chunkmap down $(ARGS)

bench: $(STAMP) ## measure chunkmap beside its peers and write a report (ARGS=--full for all)
	@$(BIN)/chunkmap bench run $(ARGS)

chaos: $(STAMP) ## long fault suite with N=20 random schedules; SEED=n plays one of them again
	@CHAOS=$(N) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m faults --timeout 600 \
	  $(if $(SEED),tests/faults/test_schedules.py -s,tests/faults) $(ARGS)

lock: $(STAMP) ## resolve constraints.txt again (ARGS=--upgrade for newer versions)
	@$(BIN)/uv pip compile pyproject.toml --extra local --extra bench --extra dev \
	  --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --quiet --output-file constraints.txt $(ARGS)
	@for peer in benchmarks/peers/locks/*.in; do $(BIN)/uv pip compile $$peer \
	  --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --quiet --output-file $${peer%.in}.txt $(ARGS) || exit; done

reference: $(STAMP) ## write docs/reference from the code
	@$(BIN)/python -m pipeline.cli.reference

clean: ## remove .venv and caches (never .chunkmap, where servers keep their state)
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
