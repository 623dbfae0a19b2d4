# Each target sets up .venv by itself. PYTHON may name any Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test modules that run at once.
TEST_JOBS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test chaos quick check docs format bench clean

help:  ## Show what there is to make.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else "ray-sassl needs Python 3.11 to 3.13; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/run.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

demo: $(VENV)/run.stamp  ## Pretrain on the embedded data set, with and without style augmentation.
	$(BIN)/ray-sassl demo

test: $(VENV)/dev.stamp  ## Run all tests.
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder --durations 20

chaos: $(VENV)/dev.stamp  ## Kill nodes, workers and commands: the slow fault tests, then 30 minutes of chaos.
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

quick: $(VENV)/dev.stamp  ## Run the tests that need neither Ray nor patience.
	$(BIN)/python -m pytest -q -m 'not slow and not ray'

check: $(VENV)/dev.stamp  ## Format, lint, types, layers, the site, and the wheel in an environment of its own.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python tests/wheel.py

docs: $(VENV)/dev.stamp  ## Build the site into site/; a broken link fails.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(VENV)/dev.stamp  ## Format the code and mend what the linter can.
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/bench.stamp  ## Measure every speed claim; prints a table, writes benchmarks/results/.
	$(BIN)/python -m benchmarks

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build site *.egg-info
