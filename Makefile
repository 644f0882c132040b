# Each target does its own set-up: a virtual environment in .venv, filled from pyproject.toml at the versions of constraints.txt.
# A stamp file remembers what was installed, so that a second run starts at once.

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
BUILT_FROM := pyproject.toml constraints.txt hatch_build.py src/hwaga/kernels/avx512.c
DEV_EXTRAS := dev,server,sdxl,training

# The first Python on the path that is new enough; looked up only when the environment is made. Override: make PYTHON=…
PYTHON = $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)

# Extra arguments for pytest or the storm, as in: make test ARGS="tests/sampling -k euler"
ARGS :=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test lint format bench chaos soak clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(DEV) ## Make .venv with everything: Hwaga (editable), its extras, the developer's tools

demo: $(RUNTIME) ## Make pictures with the bundled model: from English, from Korean, and one prompt in three styles
	@mkdir -p demo
	$(BIN)/hwaga text2image "a red apple on a yellow background" --model mini --seed 7 -o demo/red-apple.png
	$(BIN)/hwaga text2image "파란 배경의 고양이" --model mini --seed 7 -o demo/blue-cat.png
	$(BIN)/python examples/style_sheet.py demo/three-styles.png "a red apple on a yellow background" --seed 7
	@echo
	@echo "Open them: $(CURDIR)/demo/red-apple.png"
	@echo "           $(CURDIR)/demo/blue-cat.png"
	@echo "           $(CURDIR)/demo/three-styles.png (realistic, semi_realistic, anime)"

test: $(DEV) ## Run the tests (offline, on the CPU)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV) ## Check style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## Time this engine beside diffusers on the bundled model
	$(BIN)/python benchmarks/cpu_mini.py

chaos: $(DEV) ## Kill a server and its worker over and over, crowd it, and see that nothing is lost (Linux; ARGS="--help")
	$(BIN)/python benchmarks/chaos.py $(ARGS)

soak: $(DEV) ## Make 500 mixed pictures and see that nothing grows (ARGS="--help")
	$(BIN)/python benchmarks/soak.py $(ARGS)

clean: ## Remove .venv, demo pictures, builds and caches
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples training -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# pip is the last thing that venv puts in place, so a half-made environment is made again.
$(BIN)/pip:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "Hwaga needs Python 3.11 or newer, and none is on the path. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Hwaga needs Python 3.11 or newer, and $$python is not one. Name another: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV)

$(RUNTIME): $(BUILT_FROM) | $(BIN)/pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

$(DEV): $(BUILT_FROM) | $(BIN)/pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[$(DEV_EXTRAS)]"
	@touch $(RUNTIME) $@
