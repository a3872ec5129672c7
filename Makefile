# `make repro` and `make test` are all the set-up there is: each makes the environment first.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install check format test repro ui

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## the environment, with the pinned torch

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --disable-pip-version-check -c constraints.txt torch
	pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

check: install  ## format, lint and types
	ruff format --check .
	ruff check .
	mypy

format: install  ## put the code in order
	ruff format .
	ruff check --fix .

test: install  ## the tests
	pytest --numprocesses auto --maxprocesses 4 --dist loadfile

repro: install  ## the whole pipeline, then the comparison table
	dvc repro
	turbopress compare

ui: install  ## the variants side by side in MLflow, http://127.0.0.1:5000
	mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --workers 1
