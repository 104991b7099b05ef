# `make run`: the main job on the embedded data. `make test`: everything that must pass before a change lands.
# Both make `.venv` first, once, and again when the dependencies change. `make results`: docs/results.md from the result
# files that docs/results/published.txt names, in that order.

PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# torch is named beside the package so that pip chooses its build in the same resolution.
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt torch -e

.PHONY: run test results

run: .venv/.train
	$(BIN)/moekd run configs/tiny.toml

test: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

results: .venv/.train
	$(BIN)/python -m moekd.report $(patsubst %,docs/results/%.json,$(shell cat docs/results/published.txt)) > docs/results.md

.venv/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[train]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch .venv/.train $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
