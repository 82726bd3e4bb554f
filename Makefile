.PHONY: setup train test check bench
BIN := .venv/bin
RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c '$(RECENT)' 2>/dev/null && echo $$p && break; done)

setup: .venv/.installed

.venv/.installed: pyproject.toml
	@$(or $(PYTHON),false) -c '$(RECENT)' || { echo "Starling needs Python 3.11 or newer: install one, or name it with make setup PYTHON=..." >&2; exit 1; }
	$(or $(PYTHON),false) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

train: setup
	$(BIN)/starling train cartpole

test: check
	$(BIN)/pytest -n 2 --dist worksteal

bench: setup
	$(BIN)/starling bench all --json bench.json

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
