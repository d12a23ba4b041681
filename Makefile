# Everything runs in .venv, made by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all check docs wheel clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/.installed ## Render manifests/demo.csv with the demo models on the CPU, build the page
	$(BIN)/hv15-batch manifests/demo.csv model=demo_t2v
	$(BIN)/hv15-batch manifests/demo_i2v.csv model=demo_i2v
	$(BIN)/hv15-batch report outputs/demo

test: .venv/.installed ## Run the tests, of long enumerations a sample
	$(BIN)/python -m pytest -n 2

test-all: .venv/.installed ## Run the tests with every kill, fuzz case and option
	$(BIN)/python -m pytest -n 2 -m ''

check: .venv/.installed ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict conf
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.installed ## Write the pages of the reference from the code, build docs/ as a site in site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/.installed ## Build the wheel
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove what the targets made, but no outputs
	rm -rf .venv dist build site .pytest_cache .mypy_cache .ruff_cache
