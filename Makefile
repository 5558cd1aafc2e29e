# One interface for people and CI. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv --no-config
# Hashes are checked on every install; the machine's own certificates are trusted.
INSTALL := UV_SYSTEM_CERTS=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet
WORKERS ?= 2
# Where byte code may not be written, each of the tests' hundreds of processes would compile anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo ui test soak check lint types bench recovery backfill-proof lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/runtime.stamp: $(BIN)/uv requirements/runtime.txt setup.py
	$(INSTALL) --require-hashes -r requirements/runtime.txt
	$(INSTALL) --no-deps -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/runtime.stamp requirements/dev.txt
	$(INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

install: $(VENV)/runtime.stamp ## make .venv with the pinned run-time packages

demo: $(VENV)/runtime.stamp ## build a demonstration home and learn every client's patterns
	$(BIN)/conversion-assets demo

ui: $(VENV)/runtime.stamp ## open the Dagster UI on the same home
	$(BIN)/conversion-assets ui

check: $(VENV)/dev.stamp ## format, lint, types, layering, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) -m "not slow" conversion_assets_tests/architecture conversion_assets_tests/unit

test: $(VENV)/dev.stamp ## every test; of the soak tests a smaller size
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not soak"

soak: $(VENV)/dev.stamp ## kills of a deployment, of a cluster and of a backfill on PostgreSQL; two days on PostgreSQL
	$(BIN)/pytest -m soak

bench: $(VENV)/dev.stamp ## every goal of speed beside what this machine reaches; OUT=bench.json writes it
	$(BIN)/python -m benchmarks $(if $(OUT),--out $(OUT))

recovery: $(VENV)/dev.stamp ## acceptance marks at full size, a table; OUT=file.md or .json writes it
	$(BIN)/python -m conversion_assets_tests.recovery --full $(if $(OUT),--out $(OUT))

backfill-proof: $(VENV)/dev.stamp ## two million activities backfilled, killed twenty times
	$(BIN)/python -m benchmarks.backfill_proof

lock: $(BIN)/uv ## pin requirements/*.in again
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/runtime.in -o requirements/runtime.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/cluster.in -c requirements/runtime.txt -o requirements/cluster.txt
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/dev.in -c requirements/runtime.txt -c requirements/cluster.txt -o requirements/dev.txt

clean: ## remove the environment, caches and the embedded home
	rm -rf $(VENV) .conversion build dist *.egg-info .mypy_cache .ruff_cache .hypothesis
