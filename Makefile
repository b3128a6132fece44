# `make demo` and `make test` set up what they need: a virtual environment in .venv, pinned by
# constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint setup clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	touch $@

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadgroup

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis runs
