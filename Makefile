# Every target installs what it needs in .venv; a second call does not install it again.
# `make test PYTHON=python3.12 JOBS=8` chooses the interpreter that .venv is made from and the number of test workers.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# With this variable, each of the hundred programs that the tests start would compile the Python files of torch.
unexport PYTHONDONTWRITEBYTECODE
# Each worker has one thread, because the workers run in parallel.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=40 --durations-min=2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-gpu lint docs bench bench-gpu
.SECONDARY:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed-demo ## from text to corrected samples, on a laptop
	$(BIN)/hdlm demo

test: lint ## lint, types and the fast tests
	$(PYTEST) -m "not slow" -p no:schemathesis

test-all: lint $(VENV)/installed-browser ## lint, types and every test; those of pages need Chromium
	@command -v chromium > /dev/null || { command -v apt-get > /dev/null && apt-get install --yes chromium; } \
		|| echo "There is no Chromium here, so the tests of pages are skipped."
	$(PYTEST)

test-gpu: $(VENV)/installed-dev ## the tests that need a GPU; docs/gpu.md says where to send the output
	@$(BIN)/python -m benchmarks.gpu --describe
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu -v

lint: $(VENV)/installed-dev ## style and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without `--quiet`, because it would also hide the warnings from `--strict`.
docs: $(VENV)/installed-docs ## the site, from the pages and the docstrings; build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --strict

bench: $(VENV)/installed-dev ## measure what docs/benchmarks.md reports
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/installed-dev ## measure on a GPU; docs/gpu.md says where to send the output
	@$(BIN)/python -m benchmarks.gpu --describe
	$(BIN)/python -m benchmarks.gpu

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "hdlm needs Python 3.11 to 3.13; '$(PYTHON)' is not: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch is installed first and alone, so that no other package installs another build.
$(VENV)/installed-torch: constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) torch
	@touch $@

$(VENV)/installed-%: pyproject.toml constraints.txt $(VENV)/installed-torch
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@
