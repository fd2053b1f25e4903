# Every target sets up what it needs in .venv, and does that again only when something changed.
# PYTHON chooses the interpreter of a new .venv: make test PYTHON=python3.12

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test bench train-smoke train-default gpu cuda-check format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# The package is installed in place, so that Python files need no new installation. The compiler sees only what changed.
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt constraints.txt \
	$(shell find csrc -type f) $(shell find kernels -name '*.h' -o -name '*.cuh' -o -name '*.cu')

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## sets everything up and draws a red apple into apple.png
	$(BIN)/simplear generate "a red apple" -o apple.png --seed 7
	@echo "The picture is $(CURDIR)/apple.png"

test: $(VENV)/installed-test ## runs all tests on the CPU
	$(BIN)/python -m pytest

bench: $(VENV)/installed ## runs the benchmarks, which takes a while; docs/benchmarking.md has single ones
	@set -e; for command in "op all" step "image --model default" serve; do \
		echo "== simplear_engine.bench $$command"; \
		$(BIN)/python -m simplear_engine.bench $$command; \
	done
	@set -e; for benchmark in $(filter-out $(addprefix benchmarks/,attention_peers.py gpu_tables.py torch_decoder.py),$(wildcard benchmarks/*.py)); do \
		echo "== $$benchmark"; \
		$(BIN)/python $$benchmark; \
	done

train-smoke: $(VENV)/installed-train ## trains a tiny model, picture tokenizer to reinforcement, in three minutes on the CPU
	OMP_NUM_THREADS=1 $(BIN)/python -m simplear_train.recipe smoke --out runs/smoke

train-default: $(VENV)/installed-train ## trains the default model anew; some hours, goes on where it was cut off
	$(BIN)/python -m simplear_train.recipe default --out runs/default

gpu: ## builds, tests and measures on a machine with an NVIDIA GPU
	bash benchmarks/gpu.sh

cuda-check: ## compiles every CUDA kernel for sm_80 and sm_90a; no GPU needed
	bash .ci/cuda-check

format: $(VENV)/installed-format ## formats C++ and Python
	find csrc kernels -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i
	$(BIN)/ruff format .

clean: ## removes the environment and everything built
	rm -rf $(VENV) build *.egg-info simplear_engine/_C.*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python-ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is not Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "to do: install Python's venv module (Debian: python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/build-tools: $(VENV)/python-ready constraints.txt
	@command -v c++ g++ clang++ $(CXX) >/dev/null || { echo "no C++20 compiler found: install g++ or clang++" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "Python.h is missing: install Python's headers (Debian: python3-dev)" >&2; exit 1; }
	$(PIP) setuptools wheel pybind11 cmake ninja
	@touch $@

$(VENV)/installed: $(VENV)/build-tools $(BUILD_INPUTS)
	@echo "Compiling; the first time takes a few minutes."
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/installed-train: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable '.[train]'
	@touch $@

$(VENV)/installed-format: $(VENV)/python-ready constraints.txt
	$(PIP) ruff clang-format
	@touch $@
