# `make repro` and `make test` are complete by themselves in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test test-faults test-presets test-cluster test-gpu lint clean
.DEFAULT_GOAL := repro

repro: $(BIN)/.ready
	dvc repro
	@tspace report --if-needed # DVC does not track the page: it may be of other results

test: $(BIN)/.ready-test lint
	pytest -n auto -m "not cluster and not presets and not exhaustive"

# Every kind of job killed at every point and refused every write; every kind of file damaged.
test-faults: $(BIN)/.ready-test
	pytest tests/faults -n auto -v --durations=0

# Every preset from raw files to the report, cut down: minutes each.
test-presets: $(BIN)/.ready-test
	pytest tests/test_presets.py -m presets -v --durations=0

# Starts a private one-machine SLURM (as root; Debian: apt-get install slurm-wlm munge).
test-cluster: $(BIN)/.ready-test
	pytest tests/cluster -v -rs $(CLUSTER)

# The paths of tests/test_device.py on a real GPU; skipped by name where there is none.
test-gpu: $(BIN)/.ready-test
	pytest tests/gpu -v -rs

lint: $(BIN)/.ready-test
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	snakemake --lint --config plan=tests/data/plan.json

$(BIN)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tspace needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(BIN)/.ready-test: $(BIN)/.ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .tspace .snakemake artefacts results
