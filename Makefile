# Two commands for a first visit: `make demo` and `make test`. Both need Python 3.11 or newer and a package registry, nothing else.
# Each creates .venv where it is missing and installs once; a stamp newer than pyproject.toml means that nothing is installed again.

PYTHON ?= python3
BIN := .venv/bin
# One thread a worker: the suite runs one worker a core, and threads of one would slow the other.
SUITE_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-slow lint types suite docs clean

demo: .venv/.demo-installed
	$(BIN)/pelagia demo

test: lint types suite

lint: .venv/.test-installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: .venv/.test-installed
	$(BIN)/mypy

suite: .venv/.test-installed
	$(SUITE_ENV) $(BIN)/pytest -q -n auto --dist loadfile

test-slow: .venv/.test-installed
	$(BIN)/pytest -q -m slow

docs: .venv/.docs-installed
	$(BIN)/mkdocs build --strict

.venv/.created:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Pelagia needs Python 3.11 or newer, {sys.executable} is {sys.version.split()[0]}; name another with make PYTHON=..."'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' # the first that installs dependency groups
	touch $@

.venv/.demo-installed: pyproject.toml | .venv/.created
	@echo 'Installing Pelagia with its tensor side (PyTorch: several GB on Linux, a few minutes).'
	$(BIN)/python -m pip install --quiet -e '.[train]'
	touch $@

.venv/.test-installed: pyproject.toml | .venv/.created
	@echo 'Installing Pelagia with everything its tests use (PyTorch: several GB on Linux, a few minutes).'
	$(BIN)/python -m pip install --quiet -e '.[train,export]' --group test
	touch $@

.venv/.docs-installed: pyproject.toml | .venv/.created
	$(BIN)/python -m pip install --quiet -e . --group docs
	touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
