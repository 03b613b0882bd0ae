# Targets set up what they need; a fresh clone with Python 3.11 and make is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUN    ?= runs/fourrooms-demo
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help venv demo test test-slow check format docs bench clean

help:
	@echo "make demo       train a policy on FourRooms and evaluate it in the real environment"
	@echo "make test       the tests (a few minutes)"
	@echo "make test-slow  the long tests too"
	@echo "make check      lint, format, types, layers, sizes"
	@echo "make format     let ruff rewrite what it can"
	@echo "make docs       the documentation site, in site/"
	@echo "make bench      every module of benchmarks/, as JSON lines"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

# A run that stands there already is gone on with; a finished one is only evaluated.
demo: export OMP_WAIT_POLICY = passive
demo: $(STAMP)
	$(BIN)/onpath train fourrooms-demo --run $(RUN) $(if $(wildcard $(RUN)/config.yaml),--resume)
	$(BIN)/onpath evaluate $(RUN)
	$(BIN)/onpath report $(RUN)

test: $(STAMP)
	$(PYTEST) -q

test-slow: $(STAMP)
	$(PYTEST) -q -m "slow or not slow"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(PYTEST) -q tests/test_structure.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site works from disk; a warning ends the build.
docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -E -W --keep-going -b html docs site
	@echo "open site/index.html"

bench: $(STAMP)
	@for file in benchmarks/*.py; do \
		name=$$(basename $$file .py); \
		case $$name in _*) continue;; esac; \
		$(BIN)/python -m benchmarks.$$name || exit 1; \
	done

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build site docs/api
