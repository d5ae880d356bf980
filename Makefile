# The environment is made when it is missing; everything else runs in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= outputs/paper

.PHONY: help demo benchmark tables test test-slow check docs lab clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $(READY)

demo: $(READY)  ## wash the carried model with three methods and print the table
	$(BIN)/python experiments/wash.py experiment=demo
	$(BIN)/python experiments/table.py outputs/demo

tables: $(READY)  ## the tables of a sweep's finished runs, as far as it has come: RUNS=outputs/paper
	$(BIN)/python experiments/table.py $(RUNS)

benchmark: $(READY)  ## measure every stage against the textbook in tests/reference
	PYTHONPATH=tests $(BIN)/python experiments/benchmark.py

test: check docs  ## lint, types, the documentation, and the fast tests
	$(BIN)/pytest

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/pytest -m slow

check: $(READY)  ## lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into outputs/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lab: $(READY)  ## train the lab's model anew, into outputs/lab
	$(BIN)/python experiments/train_lab.py

clean:  ## remove runs and caches, not the environment
	rm -rf outputs/*
