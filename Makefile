# Needs Python >= 3.11, git and make. Everything is installed into .venv; nothing outside this folder is touched, except by
# the targets that install Debian's packages when root asks for them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests wait a lot, and some start four processes.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 3 ? n : 3)))

.DEFAULT_GOAL := help

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: install ## Train a CNN and a DCGAN, sweep, and report, on built-in data: no network, account or GPU; three minutes.
	$(BIN)/cifarscale train demo
	$(BIN)/cifarscale predict runs/demo-* docs/images/yellow_striped_ring.png
	$(BIN)/cifarscale train gan-demo
	$(BIN)/cifarscale sweep demo
	$(BIN)/cifarscale report runs/demo-* runs/gan-demo-* runs/sweep-demo-* --out runs/report.html

test: install lint types ## Install, lint, check types, and run all tests.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Check types.
	$(BIN)/mypy

cluster-test: install slurm-packages ## Run tests/slurm on a SLURM of two nodes on this machine; as root it installs Debian's packages.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/slurm

slurm-packages: ## As root: install those of Debian's packages of SLURM that are missing.
	@missing=$$($(PYTHON) slurm/testcluster/testcluster packages) || exit 1; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing; \
	fi

browser-packages: ## As root: install Debian's Chromium and its driver where they are missing, for tests/report.
	@if ! { command -v chromium && command -v chromedriver; } > /dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; \
	fi

bench: install ## Measure our engine against a plain loop; CIFARSCALE_REAL_DATA names the folder of cifar-100-python/.
	$(BIN)/python tests/bench/bench_training.py
	$(BIN)/python tests/bench/bench_encoding.py
	$(BIN)/python tests/bench/bench_fid.py
	$(BIN)/python tests/bench/bench_sweep.py
	$(BIN)/python tests/bench/bench_tracking.py

install: $(VENV)/.installed ## Make the virtual environment.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about 6 GB, a few minutes'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## Remove the virtual environment and what tools leave behind; runs and shards stay.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

.PHONY: help demo test lint types cluster-test slurm-packages browser-packages bench install clean
