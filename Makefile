# Everything runs in .venv; `make env` makes it. Another Python: make env PYTHON=python3.12
PYTHON ?= python3
RUN ?= runs/demo
VIDEO ?= runs/libero_object.mp4
BIN := .venv/bin

.PHONY: env env-libero lint test demo libero

env: .venv/installed

# LIBERO brings 340 MB of meshes and textures, which only its suites and their tests need.
env-libero: .venv/with-libero

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/with-libero: .venv/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,datasets,libero]'
	touch $@

lint: env-libero
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

# The shipped policy on LIBERO: a video, made once, and its success on ten official states of each task.
$(VIDEO): | env-libero
	$(BIN)/vla-crl rollout --policy tiny_libero --suite libero_object --episodes 2 --output "$@"

libero: env-libero $(VIDEO)
	$(BIN)/vla-crl evaluate --policy tiny_libero --suite libero_object --episodes 10
