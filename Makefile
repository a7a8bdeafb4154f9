# make demo   set up, then run the main job on the embedded model
# make test   set up, then lint, types and tests
# make quick  the tests that take seconds, less than a minute in all on two free cores
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)
STAMPS := .venv/installed.stamp .venv/portable.stamp
# What llama.cpp is compiled for: `native`, processors like this one, or `portable`, any (docs/processors.md). What is
# installed stays.
LLAMA_CPU ?= $(if $(wildcard .venv/portable.stamp),portable,native)
LLAMA := $(shell grep '^llama-cpp-python==' constraints.txt)
# Where pip looks for the CPU build of torch, when its usual registry has only the CUDA build (see README.md).
TORCH_INDEX_URL ?=

ifeq ($(LLAMA_CPU),native)
INSTALLED := .venv/installed.stamp
else ifeq ($(LLAMA_CPU),portable)
INSTALLED := .venv/portable.stamp
export CMAKE_ARGS := -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
  -DGGML_BACKEND_DIR:STRING=llama_cpp/lib -DLLAVA_BUILD=OFF $(CMAKE_ARGS)
else
$(error LLAMA_CPU is native or portable, not $(LLAMA_CPU))
endif
# Installed for the other kind: llama.cpp is compiled again, and not taken from pip's cache.
OTHER := $(filter-out $(INSTALLED),$(wildcard $(STAMPS)))

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test quick lint clean

setup: $(INSTALLED)

# torch comes first, alone: once it is there, no resolver trades it for a build with CUDA libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing $(TORCH), then the rest (llama.cpp is compiled: 5 to 10 minutes on two cores, portable about three times that)"
	$(BIN)/pip install -q $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(if $(filter portable,$(LLAMA_CPU))$(OTHER),$(BIN)/pip install -q --no-cache-dir --force-reinstall --no-deps \
	  --no-binary llama-cpp-python $(LLAMA))
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	@rm -f $(STAMPS) && touch $@

demo: setup
	$(BIN)/edgeft run recipes/home-assistant/recipe.yaml

test: lint
	$(BIN)/pytest

quick: setup
	$(BIN)/pytest -m quick -n logical --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
