# `make demo`, `make test` and `make docs` set up what they need: a virtual environment in .venv,
# pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Over $(VENV): what other libraries' loops need, without a second PyTorch.
ADAPTERS := .venv-adapters
# With what it imports; its own pins want an older `datasets`, which its readers of text alone need.
TORCHTITAN := torchtitan torchdata torch_checkpointing spmd_types einops
# For who changes a formula: the counter alone, installed in seconds.
COUNTER := .venv-counter
DEMO_MODEL := perceiver-ar --vocab-size 262 --num-latents 128 --num-prefix 128 --num-channels 48 \
	--num-layers 2 --num-heads 2

.PHONY: demo docs test test-counter test-adapters lint setup clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[lab,ray,dev]'
	touch $@

demo: setup
	@echo "[1/4] Count the largest model of the sweep, and compare the ways to count it"
	@$(RUN) -m flopcount count $(DEMO_MODEL)
	@$(RUN) -m flopcount compare $(DEMO_MODEL)
	@echo "[2/4] Hold every formula against its witnesses"
	@OMP_NUM_THREADS=1 $(RUN) -m validate --quick
	@echo "[3/4] Plan the sweep: every model at the same causal FLOPs"
	@$(RUN) -m models plan demo
	@echo "[4/4] Train it, fit, and write the report"
	@$(RUN) -m models sweep runs/demo demo

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadgroup

test-counter: $(COUNTER)/.installed
	$(COUNTER)/bin/python -m pytest --numprocesses 2 tests/flopcount flopcount

$(COUNTER)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(COUNTER)
	$(COUNTER)/bin/python -m pip install --quiet --constraint constraints.txt '.[explore,fit,plot,testing]' mini-racer pytest pytest-xdist
	touch $@

test-adapters: $(ADAPTERS)/.installed
	OMP_NUM_THREADS=1 $(ADAPTERS)/bin/python -m pytest tests/adapters flopcount/callbacks

$(ADAPTERS)/.installed: $(INSTALLED)
	$(PYTHON) -m venv $(ADAPTERS)
	$(RUN) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(ADAPTERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(ADAPTERS)/bin/python -m pip install --quiet --constraint constraints.txt '.[adapters]'
	$(ADAPTERS)/bin/python -m pip install --quiet --constraint constraints.txt --no-deps $(TORCHTITAN)
	touch $@

docs: setup
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) $(ADAPTERS) $(COUNTER) build dist .mypy_cache .ruff_cache .hypothesis runs
