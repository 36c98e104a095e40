# make run: the whole experiment. make test: the test suite. Both set up .venv first, once, and again when the lock changes.
PYTHON ?= python3
# Python 3.14 would need a compiler: immutables, which Snakemake needs, has no wheel for it (make wheels)
PYTHONS := 3.11 3.12 3.13
UV := 0.13.9
BIN := .venv/bin
READY := .venv/.ready
TRACKING := sqlite:///$(CURDIR)/mlflow.db

.PHONY: run setup slurm test test-slow lint ui lock wheels bench assets

run: setup
	$(BIN)/snakemake --cores all

setup: $(READY)

# the lock holds versions and hashes; uv, itself of a fixed version, fetches in parallel. Compiled once: every stage is a process
# that imports torch and more
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); expected Python 3.11, 3.12 or 3.13. Fix: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

# what `snakemake --profile workflow/profiles/slurm` needs as well
slurm: setup
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r requirements-slurm.lock

test: setup chromium
	$(BIN)/python -m pytest

# what takes an hour: the paper's experiments with every run and shard, in miniature, and long series of faults
test-slow: setup
	$(BIN)/python -m pytest -m slow

# tests/browser opens pages in it; where it cannot be installed they fail and say so
chromium:
	@command -v chromium > /dev/null || { apt-get -qq update && apt-get -qq install --no-install-recommends chromium; } || true

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check --line-length 120 Snakefile workflow
	$(BIN)/snakemake --lint

# without MLflow's own job runner: nine idle processes that nothing here uses
ui: setup
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri $(TRACKING) --host 127.0.0.1 --port 5000

# after a change of the dependencies in pyproject.toml
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-deps --group slurm -o requirements-slurm.lock
	$(MAKE) wheels

# that no package of the lock needs a compiler, on any of these Pythons; connection-pool, the one without wheels, is plain Python
wheels: setup
	for python in $(PYTHONS); do \
	  $(BIN)/uv pip install --quiet --dry-run --target .venv/none --python-version $$python --only-binary :all: \
	    --no-binary connection-pool --require-hashes -r requirements.lock || exit 1; done

bench: setup
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# the shipped networks of the embedded experiment, trained from nothing (hours)
assets: setup
	$(BIN)/sid-core shapes-assets --out sid_core/data/shapes/assets
