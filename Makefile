# Everything runs in .venv; `make env` makes it. Another Python: make env PYTHON=python3.12
PYTHON ?= python3
RUN ?= runs/demo
BIN := .venv/bin

.PHONY: env lint test demo

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

test: lint
	$(BIN)/pytest

# An existing run is never overwritten: a second demo needs another folder.
demo: env
	@if [ -e "$(RUN)" ]; then \
	  echo "$(RUN) exists. Look at $(RUN)/report.html, or choose one of:" >&2; \
	  echo "  another run:     make demo RUN=$(RUN)-2" >&2; \
	  echo "  an aborted run:  $(BIN)/vla-crl train demo --run-dir $(RUN) --resume" >&2; \
	  exit 2; \
	fi
	$(BIN)/vla-crl train demo --run-dir "$(RUN)"
