PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install book smoke paper bank bench test defaults lab format lock clean distclean

help:
	@echo "make book     run the notebooks and build the book"
	@echo "make test     all tests: ruff, types, pytest, a small book of all notebooks with warnings as errors"
	@echo "make defaults  every notebook with its own defaults, by nbval; takes longer than make test"
	@echo "make smoke    the book with as little data as shows that every step works"
	@echo "make paper    the book with as many images as there are, and the paper's experiment with downloaded weights"
	@echo "make bank     the task banks: seven times rooms, networks and transfers; takes hours, goes on where it stopped"
	@echo "make bench    time and memory, side by side with what they are compared with; writes data/benchmarks.csv"
	@echo "make lab      JupyterLab, in the browser, on the introduction"
	@echo "make install  only the environment, in $(VENV)"
	@echo "make format   let ruff lay out the Python files"
	@echo "make lock     new requirements.lock from pyproject.toml"
	@echo "make clean    remove what was built; the environment stays"
	@echo "make distclean  remove the environment too"
	@echo "With another Python or another place for the environment: make book PYTHON=python3.12 VENV=/path/to/folder"
	@echo "More processes for the task banks: make bank WORKERS=8"

install:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "$(PYTHON) was not found: install Python 3.11, 3.12 or 3.13, or name one: make book PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" tools/install.py "$(VENV)"

book smoke paper: install
	@"$(BIN)/python" -m support.book --profile $@ --strict

bank: install
	@for seed in 0 1 2 3 4 5 6; do "$(BIN)/python" -m support.bank all --seed $$seed --workers $(WORKERS) || exit 1; done
	@"$(BIN)/python" -m support.bank budget --seed 0 --workers $(WORKERS)
	@"$(BIN)/python" -m support.bank report

bench: install
	@"$(BIN)/python" tests/benchmarks/run.py

test: install
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder

defaults: install
	@"$(BIN)/python" -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=1200 notebooks

lab: install
	@"$(BIN)/jupyter" lab --LabApp.app_settings_dir=tools/lab --LabApp.default_url=/lab/tree/book/intro.md

format: install
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

lock:
	@"$(PYTHON)" tools/install.py --lock

clean:
	rm -rf book/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf "$(VENV)"
