# make demo     train, evaluate on unseen weather and draw, offline, on a CPU
# make test     the whole test suite, offline
# make parity   our numbers beside the reference implementation's
# make lint     ruff (lint and format), and the floors of the house
# make clean    remove the virtual environment and all outputs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test parity lint clean

demo: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/demo/run.sh

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

parity: $(READY)
	$(BIN)/python -m tests.reference.test_parity

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

# torch first and alone: a CPU build in the tested version, whatever the other packages would accept
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) outputs
