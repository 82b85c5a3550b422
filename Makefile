# Everything below sets itself up: a machine with Python 3.10 or newer and make is enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/ready
WORKDIR ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-isa test-slow test-wheel lint format types bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# Rebuilt when the lock file or the project's own metadata changes; a half-made environment is begun anew.
$(READY): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ]; then rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $(READY)

demo: $(READY)  ## train on the embedded digits, sample, encode, interpolate, score: minutes on two cores
	$(BIN)/python main.py --mode=demo --workdir=$(WORKDIR)

test: $(READY)  ## the tests
	$(BIN)/python -m pytest

# Rounding differs between instruction sets, so a tolerance that holds with one may not hold with another.
test-isa: $(READY)  ## the comparisons with other implementations, as on a processor without AVX-512
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -m 'agreement and not slow'

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-wheel: $(READY)  ## the wheel of the last commit, installed into an empty environment and used
	$(BIN)/python -m pytest -n 0 -m wheel tests/test_wheel.py

lint: $(READY)  ## style and mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A type checker looks for a folder named as the package.
types: $(READY)  ## static types
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/scorefield
	cd $(VENV)/src && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p scorefield

bench: $(READY)  ## the figures of benchmarks/RESULTS.md
	$(BIN)/python -m scorefield.benchmarks.run

clean:  ## remove the environment; runs stay
	rm -rf $(VENV)
