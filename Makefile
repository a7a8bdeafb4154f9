# make demo   set up, then run the main job on the embedded model
# make test   set up, then lint, types and tests
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed.stamp
TORCH := $(shell grep '^torch==' constraints.txt)
# Where pip looks for the CPU build of torch, when its usual registry has only the CUDA build (see README.md).
TORCH_INDEX_URL ?=

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint clean

setup: $(INSTALLED)

# torch comes first, alone: once it is there, no resolver trades it for a build with CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing $(TORCH), then the rest (llama.cpp is compiled: 5 to 10 minutes on two cores)"
	$(BIN)/pip install -q $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	@touch $@

demo: setup
	$(BIN)/edgeft run recipes/home-assistant/recipe.yaml

test: lint
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
