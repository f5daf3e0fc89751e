# make demo | test | check | audit | fuzz | site | bench | results | results-quick | setup | clean
# PYTHON=python3.12 make test    chooses another Python
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test check site audit fuzz bench results results-quick clean

setup: $(READY)

demo: setup
	$(BIN)/ia2 demo

test: setup
	$(BIN)/python -m pytest

check: setup site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Into build/site; a link that leads nowhere is an error.
site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Known vulnerabilities of what `make setup` installs; needs the network. What could not be looked up is a failure.
audit: setup
	$(BIN)/pip install -qq --disable-pip-version-check pip-audit==2.10.1
	@$(BIN)/pip-audit --strict --requirement requirements.txt --no-deps --disable-pip || \
		{ echo "audit: failed (see above); a package that is 'not found' was not looked up: pypi.org itself must be in reach"; exit 1; }

# Ten minutes each; a finding is written to runs/fuzzing and ends it.
fuzz: setup
	$(BIN)/pip install -qq --disable-pip-version-check atheris==3.0.0
	for target in tasks data answers; do $(BIN)/python -m benchmarks.fuzzing $$target || exit 1; done

bench: setup
	$(BIN)/python -m benchmarks

results: setup
	for part in study-n study study-gpt2 high-data; do \
		$(BIN)/ia2 sweep recipes/$$part.yaml --output runs/study/$$part --engine ray || exit; done
	awk 'FNR > 1 || NR == 1' runs/study/study*/results.csv > runs/study/study.csv
	$(BIN)/python -m benchmarks.ablations --output runs/study/ablations
	$(BIN)/python -m benchmarks.overlaps runs/study/study > runs/study/overlap.csv
	$(BIN)/python -m benchmarks.results runs/study

results-quick: setup
	$(BIN)/ia2 sweep recipes/study-quick.yaml --output runs/study-quick
	$(BIN)/python -m benchmarks.results_quick runs/study-quick/results.csv

clean:
	rm -rf $(VENV) build demo runs

# torch first: the exact version, so that a CPU build which the machine has is taken as it is.
$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "setup: no '$(PYTHON)' here; install Python 3.11 or newer, or run 'make PYTHON=...'"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: $$($(PYTHON) --version 2>&1) is too old for the versions in requirements.txt; choose Python 3.11 or newer: 'make PYTHON=python3.12 ...'"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "setup: cannot make a virtual environment in $(VENV); is Python's venv module installed?"; exit 1; }
	@echo "setup: installing into $(VENV); a few minutes the first time"
	@{ $(BIN)/pip install -qq --disable-pip-version-check "$$(grep '^torch==' requirements.txt)" && \
	   $(BIN)/pip install -qq --disable-pip-version-check -r requirements.txt && \
	   $(BIN)/pip install -qq --disable-pip-version-check --no-deps --editable . ; } || \
		{ echo "setup: packages could not be installed (see above): is a package index in reach?"; exit 1; }
	@touch $(READY)
