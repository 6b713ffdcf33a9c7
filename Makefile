# Everything a developer does here, by name. Each target sets up what it needs; `make` alone lists them.
# Needs Python 3.11 or newer with its venv module, and the package index that pip is configured for. Nothing else.

.DEFAULT_GOAL := help
SHELL := /bin/sh
ARGS ?=
SECONDS ?= 180

# An existing .venv keeps its Python; `make PYTHON=python3.13 …` builds it anew with another one.
# Candidates are run, not only looked up: version managers put commands on the PATH that refuse to start.
CANDIDATES := .venv/bin/python python3.13 python3.12 python3.11 python3.14 python3 python
OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	"$$python" -c '$(OLD_ENOUGH)' 2>/dev/null && echo "$$python" && break; done)
VENV := .venv/bin
UV ?= uv
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-header

# Scripts, and what the names of their results begin with.
define benchmarks
@"$(PYTHON)" requirements/sync.py bench
@for script in $(1); do echo "$$script"; .venv-bench/bin/python "$$script" $(ARGS) || exit 1; done
@.venv-bench/bin/python benchmarks/summary.py $(2)
endef

.PHONY: help venv run test test-all chaos lint types fmt bench bench-cache bench-http bench-queue docs pins clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

venv: ## Fill .venv with the pinned packages and this project; every other target does it first
	@"$(PYTHON)" -c '$(OLD_ENOUGH)' 2>/dev/null || { \
		echo "No Python 3.11 or newer found$(if $(PYTHON), as PYTHON=$(PYTHON)). Install one (https://www.python.org/downloads/)" \
			"or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" requirements/sync.py

run: venv ## Start everything: server, migrations, API, worker, beat, Flower, mail catcher
	@$(VENV)/backburner dev $(ARGS)

test: venv ## Run the tests that need no service; under five minutes
	@$(VENV)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-all: venv ## Run all tests; those with Redis, PostgreSQL, RabbitMQ or Node are skipped where these are not installed
	@$(VENV)/python -m pytest $(ARGS)

chaos: venv ## Kill workers, servers and connections for three minutes, or SECONDS=600, and count the jobs
	@$(VENV)/python -m tests.faults.chaos --seconds $(SECONDS) $(ARGS)

lint: venv ## Check style: ruff check, ruff format
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .

types: venv ## Check types: mypy, strict
	@$(VENV)/mypy

fmt: venv ## Put the code into shape: ruff format, and what ruff can mend by itself
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

bench: bench-cache bench-http bench-queue ## Run all benchmarks, beside the peers that they compare with

bench-cache: venv ## Run those of the cache; six minutes on a machine that has nothing else to do
	$(call benchmarks,benchmarks/cache_*.py benchmarks/codec.py benchmarks/pipelining.py,cache_)

bench-http: venv ## Run those of the HTTP cache; a quarter of an hour; needs wrk
	$(call benchmarks,benchmarks/http_*.py,http_)

bench-queue: venv ## Run those of the queue; twenty minutes
	$(call benchmarks,benchmarks/queue_*.py,queue_)

docs: venv ## Check the documentation: run every code block, follow every link between its files
	@$(VENV)/python -m pytest tests/test_readme.py $(ARGS)

pins: ## Pin the requirements again after a change in pyproject.toml; newest versions: make pins ARGS=--upgrade
	@command -v "$(UV)" >/dev/null || { echo "Pinning needs uv; name it if it is elsewhere: make pins UV=/path/to/uv" >&2; exit 1; }
	@$(COMPILE) pyproject.toml --all-extras --group work --output-file requirements/dev.txt $(ARGS) >/dev/null
	@$(COMPILE) pyproject.toml --extra celery --extra fastapi --group deploy --constraint requirements/dev.txt \
		--output-file requirements/run.txt $(ARGS) >/dev/null
	@$(COMPILE) pyproject.toml --all-extras --group work --group bench --constraint requirements/dev.txt \
		--output-file requirements/bench.txt $(ARGS) >/dev/null
	@$(COMPILE) --group build --constraint requirements/dev.txt \
		--output-file requirements/build.txt $(ARGS) >/dev/null

clean: ## Remove .venv, caches and build files; data in .backburner/ stays
	@rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov build dist
	@find . \( -name .git -o -name .backburner \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
