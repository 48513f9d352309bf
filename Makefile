# Two commands do everything on a machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test lint format benchmarks clean

install: $(INSTALLED)  ## only the installation into .venv

demo: $(INSTALLED)  ## the whole path on Maze2D-UMaze, about five minutes on two cores
	$(BIN)/python jobs/pipeline.py maze2d-umaze

test: $(INSTALLED)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(INSTALLED)  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(INSTALLED)  ## measure and rewrite docs/results/
	$(BIN)/python benchmarks/collection.py
	$(BIN)/python benchmarks/maze2d_references.py --episodes 300
	$(BIN)/python benchmarks/maze2d_limits.py --episodes 300

# `.installed` is newer than what it was installed from, or the installation runs again.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist build
