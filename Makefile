# Two commands set up a fresh machine that has Python, pip and a C++ compiler: `make quickstart` and `make test`.
# Each makes .venv if there is none. Another Python: `make PYTHON=python3.12 test`.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Whatever changes how Boxwright is installed or compiled; Python files are used in place.
INSTALL_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*.*)
# Tests run side by side, so each process keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PYTEST_JOBS ?= 2

.PHONY: help install quickstart test test-full test-gpu lint format clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: $(INSTALLED)  ## Make .venv and install Boxwright there with all extras, compiled kernels and tools.

quickstart: $(INSTALLED)  ## Generate data, train, export, quantize and bench a small detector; writes quickstart/.
	$(BIN)/boxwright quickstart

test: $(INSTALLED)  ## Run the tests, but those that take long or need a GPU.
	$(PYTEST) -n $(PYTEST_JOBS) --dist loadgroup -m "not slow and not full and not gpu" --durations=10

test-full: $(INSTALLED)  ## Run every test that does not need a GPU.
	$(PYTEST) -n $(PYTEST_JOBS) --dist loadgroup -m "not gpu"

test-gpu: $(INSTALLED)  ## Run the tests that need an NVIDIA GPU.
	$(PYTEST) -m gpu

lint: $(INSTALLED)  ## Check style (ruff) and types (mypy, strict).
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Mend what ruff can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and what was built.
	rm -rf $(VENV) build

# The compiler's output stays in build/, so that a change in csrc/ compiles that file alone.
$(INSTALLED): $(INSTALL_INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt scikit-build-core nanobind cmake ninja
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation \
		--config-settings=build-dir='build/{wheel_tag}' --editable '.[all,dev]'
	touch $@

# Debian leaves ensurepip out of its Python: there the system's pip puts one into the environment.
$(BIN)/python:
	@fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$candidate -c "$$fits" 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "make: expected Python 3.11 to 3.13, got $$($(or $(PYTHON),python3) --version 2>&1);" \
			"install one of those or name it: make PYTHON=python3.12 ..." >&2; \
		exit 2; \
	fi; \
	echo "making $(VENV) with $$python ($$($$python --version))"; \
	$$python -m venv $(VENV) || { \
		$$python -m venv --clear --without-pip $(VENV) && \
		$$python -m pip --python $(BIN)/python install pip; \
	} || { rm -rf $(VENV); exit 1; }
