# `make quickstart` and `make test` are all one needs on a fresh machine; see CONTRIBUTING.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test check fix demo docs dist package

quickstart: $(INSTALLED)
	$(BIN)/align quickstart

# Two processes with one thread each use two cores better than one process with two.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal -m "not slow and not gpu and not weights"

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

fix: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(INSTALLED)
	$(BIN)/align demo

# Into build/docs; the tutorial is executed, warnings are errors.
docs: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs build/docs

# The sdist and, from it, the wheel; setuptools comes from PyPI.
dist: $(INSTALLED)
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build

package: dist
	$(BIN)/python scripts/check_package.py dist

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "align needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "no virtual environment could be made; on Debian and Ubuntu:" \
		"apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
