# What one does with this repository. `make help` lists it.
#
# Everything lives in .venv. Stamp files in it remember what is installed, so a second run does no work until
# pyproject.toml or constraints.txt change.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINED := --constraint constraints.txt
TORCH := $(shell grep -E '^torch(vision)?==' constraints.txt)

# Two processes, each with whole files of tests: two cores are what the suite is made for.
PYTEST_ARGS := --numprocesses 2 --dist loadfile

# The first of these that runs, is new enough and can make environments. `make PYTHON=/path/to/python …` decides itself.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python)

.PHONY: help quickstart install test lint format bench starter clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
		while IFS='|' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done

quickstart: $(VENV)/installed ## install into .venv and try the starter model (offline once installed)
	@$(BIN)/mmbert quickstart

install: $(VENV)/installed-dev ## install into .venv with everything for development
	@echo "ready: $(BIN)/mmbert --help"

$(VENV)/created:
	@for python in $(PYTHONS); do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv $(VENV) && touch $@; \
			exit; \
		fi; \
	done; \
	echo "mm-bert needs Python 3.11 or newer with the venv module; tried: $(PYTHONS)" >&2; \
	for python in $(PYTHONS); do \
		version=$$("$$python" --version 2>/dev/null) && echo "  $$python is $$version" >&2; \
	done; \
	echo "install a newer Python, or name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

# PyTorch is by far the largest download: its own step, so that a failure further on does not repeat it.
$(VENV)/torch: constraints.txt $(VENV)/created
	@echo "installing $(TORCH)"
	@$(PIP) install $(TORCH) $(CONSTRAINED)
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/torch
	@echo "installing mm-bert and what it needs"
	@$(PIP) install --editable . $(CONSTRAINED)
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "installing the tools for development"
	@$(PIP) install --editable '.[dev,serve,build,features,export,report]' $(CONSTRAINED)
	@touch $@

test: $(VENV)/installed-dev ## every check: lint, format, types, layers, tests
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports --no-logo || status=1; \
	$(BIN)/python -m pytest $(PYTEST_ARGS) || status=1; \
	exit $$status

lint: $(VENV)/installed-dev ## the quick checks only (no tests)
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports --no-logo || status=1; \
	exit $$status

format: $(VENV)/installed-dev ## rewrite the code in the house format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/installed-dev ## run every benchmark (QUICK=1: the short versions)
	@for script in benchmarks/*.py; do $(BIN)/python "$$script" $(if $(QUICK),--quick) || exit 1; done

starter: $(VENV)/installed-dev ## rebuild the starter corpus (needs npm) and train the starter model
	@$(BIN)/python tools/build_starter_corpus.py
	@$(BIN)/mmbert train starter --out runs/starter
	@rm -rf src/mmbert/assets/starter/model && cp -r runs/starter/best src/mmbert/assets/starter/model

clean: ## remove .venv and what tools cached
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
