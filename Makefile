# Needs Python >= 3.11, git and make. Everything is installed into .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

help: ## Show the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: install ## Train, evaluate and ask the CNN, on built-in data: no network, account or GPU; about a minute.
	$(BIN)/cifarscale train demo
	$(BIN)/cifarscale evaluate runs/demo-*
	$(BIN)/cifarscale predict runs/demo-* docs/images/yellow_striped_ring.png

test: install lint types ## Install, lint, check types, and run all tests.
	$(BIN)/pytest -n 2 --dist loadfile

lint: install ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Check types.
	$(BIN)/mypy

bench: install ## Measure our engine against a plain loop; CIFARSCALE_REAL_DATA names the folder of cifar-100-python/.
	$(BIN)/python tests/bench/bench_training.py
	$(BIN)/python tests/bench/bench_encoding.py
	$(BIN)/python tests/bench/bench_fid.py

install: $(VENV)/.installed ## Make the virtual environment.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about 6 GB, a few minutes'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## Remove the virtual environment and what tools leave behind; runs and shards stay.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

.PHONY: help demo test lint types bench install clean
