# Every target does its own set-up; a second run of it does nothing.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Empty is unset: the tests start BUL some hundred times, and compiling it takes 0.3 s each time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup setup-dev servers run demo test check nightly bench fix pins clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv with pinned wheels, .venv/bin/bul and the model; nothing compiles
	@tools/setup.sh run

setup-dev:
	@tools/setup.sh dev

servers: setup-dev
	@tools/test-servers.sh

run: setup ## A region on this machine: router on :8000, two replicas, a real model
	@exec $(BIN)/bul up

demo: setup ## Real conversations with the cache on and off, a table, exit
	@exec $(BIN)/bul demo

test: servers lint ## The whole gate, the same that CI runs
	@echo "[tests] the fast ones, on all cores (1 to 2 minutes)"
	@$(PYTEST) -q -n auto -m "not slow and not nightly"
	@echo "[tests] the slow ones that no busy neighbour can change, two files at a time (5 minutes)"
	@$(PYTEST) -q -n 2 --dist loadfile --no-loadscope-reorder -m "slow and steady and not nightly"
	@echo "[tests] the other slow ones, one after the other (5 minutes on 2 cores)"
	@$(PYTEST) -q -m "slow and not steady and not nightly"

check: setup-dev lint ## Format, lint, types, layers, tidy, fast tests: under a minute
	@$(PYTEST) -q -n auto -m "not slow and not nightly"

nightly: servers torch ## The long runs
	@tools/test-servers.sh nightly
	@$(PYTEST) -m nightly --timeout 0

.PHONY: torch
torch: setup-dev
	@$(BIN)/python -c "import torch" 2>/dev/null || { echo "[torch] the extra 'distributed' (200 MB, or 3 GB with CUDA)"; \
		$(BIN)/python -m pip install -q --disable-pip-version-check --only-binary=:all: torch==2.13.0; }

bench-distributed: torch

.PHONY: lint
lint: setup-dev
	@echo "[lint] format, lint, types, layers"
	@$(BIN)/ruff format --check --quiet . || { echo "format: run make fix"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >.venv/layers.txt || { cat .venv/layers.txt; exit 1; }

bench: ## All benches, one after the other
	@for file in bench/[a-z]*.py; do $(MAKE) bench-$$(basename $$file .py | tr _ -) || exit 1; done

bench-%: servers ## bench/NAME.py: prints a table, writes bench/out/NAME.json
	@mkdir -p bench/out
	@$(BIN)/python bench/$(subst -,_,$*).py

fix: setup-dev ## Format, and the lint's safe fixes
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

pins: ## Write requirements*.txt from what .venv holds
	@$(BIN)/python tools/pins.py

.PHONY: reference
reference: setup-dev ## The generated pages of docs/reference
	@$(BIN)/python tools/reference.py

clean: ## Remove .venv, caches and the region's state
	@rm -rf .venv .bul .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache bench/out
