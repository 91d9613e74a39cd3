# Every target makes .venv and installs what it needs; nothing else has to be there but Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo results notebooks test test-slow test-faults test-browser test-gpu bench docs lint clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/python -m latentdiff.app.demo

# Every application trained and measured; hours. ARGS: experiments, and overrides of train.py and evaluate.py.
results: install
	$(BIN)/python -m latentdiff.app.results $(ARGS)

# Executes the notebooks at full length and keeps their outputs; some minutes. ARGS: numbers, e.g. ARGS=02.
notebooks: install
	OMP_NUM_THREADS=2 $(BIN)/python notebooks/run.py $(ARGS)

test: install
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

test-faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults -rP

# Skipped with the reason where there is no Chromium: playwright's own (playwright install chromium) or the system's.
test-browser: install
	$(BIN)/python -m pip install --quiet -e '.[browser,demo]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser -rs

test-gpu: install
	$(BIN)/python -m pytest -m gpu

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_step.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sample.py

# site/index.html; a link to nothing ends it.
docs: install
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --quiet

lint: docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

clean:
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache
