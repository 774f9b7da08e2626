# Every target makes .venv from constraints.txt if it is missing.
PYTHON ?= python3
BIN := .venv/bin

# Real datasets and a real encoder, where a checkout has them beside it; else those tests skip.
ifneq ($(wildcard ../shared/data/suite.toml),)
export COLD_FLOWER_REAL ?= $(abspath ../shared)
endif

.PHONY: demo install test acceptance mutants check docs bench
demo: $(BIN)/cold-flower
	$(BIN)/cold-flower simulate demo

install: $(BIN)/cold-flower

# Two files at a time, the longest first.
test: $(BIN)/cold-flower
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Hours, all parts of tests/acceptance.py; one: $(BIN)/python -m tests.acceptance crash
acceptance: $(BIN)/cold-flower
	$(BIN)/python -m tests.acceptance

# An hour: do the tests notice small faults? Some of them: $(BIN)/python -m tests.mutants gate
mutants: $(BIN)/cold-flower
	$(BIN)/python -m tests.mutants

check: $(BIN)/cold-flower
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A site of docs/ and of the docstrings, in dist/site.
docs: $(BIN)/cold-flower
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(BIN)/cold-flower
	$(BIN)/python -m benchmarks.probe
	$(BIN)/python -m benchmarks.server_memory
	$(BIN)/python -m benchmarks.fuse
	$(BIN)/python -m benchmarks.finetune
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.makespan
	$(BIN)/python -m benchmarks.cost

$(BIN)/cold-flower: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
