# Needs Python >= 3.11, git and make. Everything is installed into .venv; nothing outside this folder is touched, except by
# the targets that install Debian's packages when root asks for them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests wait a lot, so there are more workers than cores; each test's processes take one core each.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

TELLING := \
	tests/distributed/test_training.py::test_a_run_goes_on_after_a_rank_was_killed_and_after_its_launcher_was \
	tests/slurm/test_submit.py::test_a_training_on_two_nodes_equals_one_process_and_every_step_is_completed \
	tests/sweep/test_sweep.py::test_the_best_trial_is_a_recipe_that_trains_and_one_that_diverges_is_marked_with_its_reason \
	tests/tracking/test_wandb.py \
	tests/report/test_report.py

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
	$(PYTEST) --durations=20

thorough: install lint types ## The same with every combination, of which `make test` runs a tenth, another one each day.
	$(PYTEST) --durations=20 --thorough all

quick: install lint types ## In two minutes: lint, types, unit tests, and the most telling test of each real part.
	$(PYTEST) tests/unit tests/distributed/test_exchange.py $(TELLING)

lint: install ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## Check types.
	$(BIN)/mypy

cluster-test: install slurm-packages ## Run tests/slurm on a SLURM of two nodes on this machine; as root it installs Debian's packages.
	$(PYTEST) tests/slurm

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

docs: install ## Write the pages that are made of the code: docs/recipes.md, docs/api.md.
	@sed '/<!-- cifarscale jobs keys -->/q' docs/recipes.md > docs/recipes.md.new
	@$(BIN)/cifarscale jobs keys >> docs/recipes.md.new
	@mv docs/recipes.md.new docs/recipes.md
	@$(BIN)/python tests/api_page.py

bench: install ## Measure our engine against a plain loop; CIFARSCALE_REAL_DATA names the folder of cifar-100-python/.
	$(BIN)/python tests/bench/bench_training.py
	$(BIN)/python tests/bench/bench_encoding.py
	$(BIN)/python tests/bench/bench_fid.py
	$(BIN)/python tests/bench/bench_sweep.py
	$(BIN)/python tests/bench/bench_tracking.py
	$(BIN)/python tests/bench/bench_start.py

install: $(VENV)/.installed ## Make the virtual environment.

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo 'installing into $(VENV): about 6 GB, a few minutes'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean: ## Remove the virtual environment and what tools leave behind; runs and shards stay.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

.PHONY: help demo test thorough quick lint types cluster-test slurm-packages browser-packages docs bench install clean
