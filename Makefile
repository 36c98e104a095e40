# Every target sets up .venv first, once, and again when the lock changes. `make help` prints what follows ##.
PYTHON ?= python3
# Python 3.14 would need a compiler: immutables, which Snakemake needs, has no wheel for it (make wheels)
PYTHONS := 3.11 3.12 3.13
UV := 0.13.9
BIN := .venv/bin
READY := .venv/.ready
TRACKING := sqlite:///$(CURDIR)/mlflow.db

.PHONY: run help setup slurm test test-all test-slow lint reference ui lock wheels bench gpu assets chromium

run: setup ## run the embedded experiment: results/shapes/report.html
	$(BIN)/snakemake --cores all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv with the locked packages

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

slurm: setup ## add what `snakemake --profile workflow/profiles/slurm` needs
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes --compile-bytecode -r requirements-slurm.lock

# Snakemake's and matplotlib's caches go below .venv too. Two processes of one thread: a file's tests stay together, since they share
# fixtures, and files start in the order of tests/conftest.py
test: setup ## run the fast tests; changes nothing outside of .venv but temporary files
	XDG_CACHE_HOME=$(CURDIR)/.venv/.cache OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: test chromium ## also test in Chromium and on Slurm; installs both by apt-get (root, Debian)
	$(BIN)/python -m pytest -m 'system and not slow'

test-slow: setup ## an hour: the paper's experiments in miniature, long series of faults (apt-get, as test-all)
	$(BIN)/python -m pytest -m slow

# without it the tests of tests/browser fail and name it
chromium:
	@command -v chromium > /dev/null || { apt-get -qq update && apt-get -qq install --no-install-recommends chromium; } || true

lint: setup ## check style, layers of the package and rules
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check --line-length 120 Snakefile workflow
	$(BIN)/snakemake --lint

reference: setup ## renew docs/reference and the JSON schema after a change of settings or commands
	$(BIN)/python docs/reference.py

# without MLflow's own job runner: nine idle processes that nothing here uses
ui: setup ## show the runs in MLflow on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri $(TRACKING) --host 127.0.0.1 --port 5000

lock: setup ## renew the locks after a change of dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-deps --group slurm -o requirements-slurm.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-deps --group lora -o requirements-lora.lock
	$(MAKE) wheels

# connection-pool, the one without wheels, is plain Python
wheels: setup ## check that no locked package needs a compiler on any supported Python
	for python in $(PYTHONS); do \
	  $(BIN)/uv pip install --quiet --dry-run --target .venv/none --python-version $$python --only-binary :all: \
	    --no-binary connection-pool --require-hashes -r requirements.lock || exit 1; done

bench: setup ## run every benchmark
	for script in $(filter-out %/gpu_day.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# no set-up, which would need a network: an environment with torch, diffusers and safetensors suffices
gpu: ## measure in 20 minutes, without a network, all that needs a GPU
	PYTHONPATH=$(CURDIR) $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_day.py --docs

assets: setup ## train the shipped networks of the embedded experiment (hours)
	$(BIN)/python -m recipes --out sid_core/data/shapes/assets
