# On a machine with Python >= 3.11 and make: `make demo` shows what this is, `make test` says whether it works.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread in each process; tests/conftest.py shares the tests out. Those with processes of their own mostly wait.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
RUNS := $(patsubst benchmarks/%.py,benchmark-%,$(filter-out %/harness.py %/bit_identity.py,$(wildcard benchmarks/*.py)))

.PHONY: install demo test test-slow test-soak test-all lint format benchmarks $(RUNS) clean

install: $(INSTALLED)  ## only the installation into .venv

demo: $(INSTALLED)  ## the whole path on Maze2D-UMaze, four to seven minutes on two cores
	$(BIN)/python jobs/pipeline.py maze2d-umaze

test: $(INSTALLED)  ## all tests but the slow ones, about twenty minutes on two cores
	$(PYTEST) -n 3 -m "not slow and not soak" $(ARGS)

test-slow: $(INSTALLED)  ## whole paths, faults, clusters of several nodes, object stores
	$(PYTEST) -n 3 -m "slow and not soak" $(ARGS)

test-soak: $(INSTALLED)  ## many kills, all damages, every environment and benchmark; property tests with many examples
	$(PYTEST) -n 3 -m "soak or hypothesis" --hypothesis-profile=thorough $(ARGS)

test-all: test test-slow test-soak  ## every test, more than an hour

lint: $(INSTALLED)  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(RUNS)  ## every benchmark, hours; rewrites docs/results/ (QUICK=1: only to see that they run, minutes)

$(RUNS): benchmark-%: $(INSTALLED)  ## one of them, such as benchmark-planning
	$(BIN)/python benchmarks/$*.py $(if $(QUICK),--quick,--json docs/results/$*.json)

# `.installed` is newer than what it was installed from, or the installation runs again.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist build
