# `make demo` and `make test` need git, python3 (3.11 or newer) and make, and nothing else.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := data,dev
PYTEST_ARGS ?=
DEMO_ARGS ?=

export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
# uv reads its own variable for the folder of local wheels that pip is told of.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
INSTALL := install -c constraints.txt -e '.[$(EXTRAS)]'

.PHONY: demo test fuzz lint format docs site setup clean

demo: setup  ## the main job end to end, one seed: a table on the screen and an HTML report
	$(BIN)/tutelage demo $(DEMO_ARGS)

test: setup  ## the tests, two processes of one thread each
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

fuzz: setup  ## 30,000 damaged and hostile files of every format, two minutes
	$(BIN)/python -m pytest tests/fuzz -m slow

lint: setup  ## style, types, the arrows between packages, and the words
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_words.py

format: setup  ## rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup  ## a page for each system, from its docstring and its committed result
	$(BIN)/python scripts/make_docs.py

site: setup  ## the documentation site in site/; a broken link is an error
	@$(BIN)/python -c 'import mkdocstrings, material' 2>/dev/null \
	  || { $(MAKE) --no-print-directory -B $(VENV)/.ready EXTRAS=$(EXTRAS),docs; }
	$(BIN)/mkdocs build --strict

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("tutelage needs Python 3.11 or newer; make PYTHON=python3.12 …") if sys.version_info < (3, 11) else 0'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot make a venv; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip $(INSTALL) --python $(BIN)/python --quiet \
	  || { echo "uv could not install; trying pip"; $(BIN)/python -m pip $(INSTALL) --quiet; }
	@touch $@

clean:
	rm -rf $(VENV) dist site .pytest_cache .mypy_cache .ruff_cache
