# Two commands for a bare checkout (python3 and make suffice; the rest is installed into .venv):
#   make demo   train, relax, simulate in a few minutes; leaves demo/report.html
#   make test   every check and every test
# Variables: PYTHON (default python3), TORCH_ARGS (for pip when it installs torch, e.g. the index of its small CPU
# builds), WORKERS (parallel test processes, default 2).

PYTHON ?= python3
VENV ?= .venv
TORCH_ARGS ?=
WORKERS ?= 2
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH = $(shell grep '^torch==' constraints.txt)

# a bare `import datasets` must never find the room of that name
export PYTHONSAFEPATH = 1
# threads that wait by spinning make a shared machine many times slower
export OMP_WAIT_POLICY = PASSIVE

.PHONY: help demo test check lint types contracts tests clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.installed
	$(VENV)/bin/tesseral demo -o demo --force

test: $(VENV)/.installed-dev
	$(MAKE) check BIN=$(VENV)/bin/

# checks and tests with the tools on PATH (BIN= chooses another folder of tools)
check: lint types contracts tests

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check --quiet .

types:
	$(BIN)mypy

contracts:
	$(BIN)lint-imports

# one thread per process: the processes share the cores already
tests:
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -q -n $(WORKERS) --dist loadfile

# torch comes first and alone: a later step must not pull another build of it in
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch setup.py
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev,evaluation,hamiltonian]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
