# make demo     train, evaluate on unseen weather and draw, offline, on a CPU
# make test     the whole test suite, offline
# make test-torch VERSION=2.11.0    what depends on torch's version, in an environment of its own
# make parity   our numbers beside the reference implementation's
# make lint     ruff (lint and format), and the floors of the house
# make clean    remove the virtual environment and all outputs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-torch parity lint clean

demo: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/demo/run.sh

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# what torch.compile, torch.export, operators and hooks do differs from version to version
test-torch:
	@test -n "$(VERSION)" || { echo "make test-torch needs a version of torch: make test-torch VERSION=2.11.0"; exit 2; }
	$(PYTHON) -m venv $(VENV)-torch-$(VERSION)
	$(VENV)-torch-$(VERSION)/bin/python -m pip install --quiet torch==$(VERSION)
	grep -v "^torch==\|^triton==" constraints.txt > $(VENV)-torch-$(VERSION)/constraints.txt
	$(VENV)-torch-$(VERSION)/bin/python -m pip install --quiet --constraint $(VENV)-torch-$(VERSION)/constraints.txt \
		torch==$(VERSION) --editable ".[dev]"
	HF_HUB_OFFLINE=1 $(VENV)-torch-$(VERSION)/bin/python -m pytest -n 2 --dist worksteal \
		tests/tuner tests/adaptformer tests/vpt tests/head tests/backbone tests/inference \
		tests/training/test_graphed_step.py

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
	rm -rf $(VENV) $(VENV)-torch-* outputs
