# SPDX-License-Identifier: Apache-2.0
# Every target that runs something installs first; an installation that is up to date costs
# a fraction of a second. Settings:
#   PYTHON=python3.12      the interpreter to use (3.11, 3.12 or 3.13)
#   VENV=path              the environment to install into, instead of .venv
#   SYSTEM_SITE_PACKAGES=1 let a new environment see the interpreter's own packages
#   TEST_WORKERS=4         how many processes the tests run in, each with one thread

VENV ?= .venv
RUN := $(VENV)/bin
PYTEST_FLAGS ?=
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install lock demo docs test coverage test-slow test-sanitizers fuzz test-cuda cuda-build lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: ## Create .venv with everything pinned, Detectron2 and the compiled extension
	@VENV="$(VENV)" PYTHON="$(PYTHON)" SYSTEM_SITE_PACKAGES="$(SYSTEM_SITE_PACKAGES)" \
		sh tools/install/install.sh

# Add LOCK_FLAGS=--upgrade for newer versions, or "LOCK_FLAGS=--upgrade-package torch".
lock: install ## Pin what pyproject.toml asks for, with hashes, in requirements/lock.txt
	@$(RUN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--python $(RUN)/python --generate-hashes --no-strip-extras --annotation-style line \
		--custom-compile-command "make lock" --quiet $(LOCK_FLAGS) --output-file requirements/lock.txt

demo: install ## Scan ten detectors, repair two backdoored ones, write runs/demo/report.html
	@$(RUN)/d2defense demo

TESTS := OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(TEST_WORKERS)
QUICK_TESTS := $(TESTS) --dist loadfile -m "not slow"

test: install ## Run the tests that take minutes at most
	@$(QUICK_TESTS) $(PYTEST_FLAGS)

# Apart, since the tracer makes them take half as long again.
coverage: install ## Run the same tests and show which lines none of them reaches
	@$(QUICK_TESTS) --cov=d2defense --cov-report=term $(PYTEST_FLAGS)

# pytest's exit status 5 means that no test is marked slow.
test-slow: install test-sanitizers fuzz ## Run the longer tests, sanitizer tests and fuzzing
	@$(TESTS) --dist worksteal -m slow $(PYTEST_FLAGS) || [ $$? -eq 5 ]

SANITIZERS := tests/ops/run_sanitizers.py
test-sanitizers: install ## Run the extension under the address and undefined-behaviour sanitizers
	@if [ -f $(SANITIZERS) ]; then $(RUN)/python $(SANITIZERS); fi

FUZZ_SECONDS ?= 60
# 0 draws one; both programs print theirs.
FUZZ_SEED ?= 0
# atheris has wheels for few platforms; where it has none the program says so and ends well.
fuzz: install ## Fuzz the readers of untrusted files for FUZZ_SECONDS (60)
	@mkdir -p runs/fuzz && $(RUN)/python -W ignore tests/fuzz/fuzz_loaders.py \
		-seed=$(FUZZ_SEED) -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=runs/fuzz/
	@$(RUN)/python -W ignore tests/fuzz/differential.py $(FUZZ_SECONDS) $(FUZZ_SEED)

# Also those that are marked slow, compute-sanitizer among them.
test-cuda: install ## Run the tests that need a GPU
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m cuda $(PYTEST_FLAGS)

cuda-build: install ## Compile and link the CUDA kernels (nvcc needed, a GPU is not)
	@sh tools/install/build_cuda.sh $(RUN)/python

CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

docs: install ## Write the generated parts of the documentation
	@$(RUN)/python -W ignore tools/generate_docs.py

lint: install ## Check the style of the Python and C++ sources
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(if $(CXX_FILES),$(RUN)/clang-format --dry-run --Werror $(CXX_FILES))

format: install ## Rewrite the sources in the project's style
	@$(RUN)/ruff check --fix .
	@$(RUN)/ruff format .
	@$(if $(CXX_FILES),$(RUN)/clang-format -i $(CXX_FILES))

clean: ## Remove build outputs, caches and .venv; runs/ stays
	@rm -rf .venv build dist d2defense.egg-info d2defense/_C*.so \
		.pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
