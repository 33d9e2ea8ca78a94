# The commands of this repository. `make` alone lists them.

# The Python that makes .venv, 3.11 to 3.13: make setup PYTHON=/path/to/python3.12
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUITS)' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# Compiled modules are kept, also where this is set, as in many containers: importing torch takes seconds more without
export PYTHONDONTWRITEBYTECODE :=
# Test workers, each with one thread: torch's own threads would fight over the cores
JOBS ?= 2
# A file's tests go to one worker, which makes their fixtures once; tests/conftest.py says which files come first
DIST := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo train test test-slow test-gpu test-cluster bench-gpu lint clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: .venv/installed  ## make .venv and install everything, at the versions of constraints.txt

demo: .venv/installed  ## two short runs on real text, with and without dropping, and their comparison
	$(BIN)/python -m tid.demo

train: .venv/installed  ## train: make train ARGS="experiment=quickstart scorer=grad_norm"
	$(BIN)/python -m tid.train $(ARGS)

test: .venv/installed  ## run the tests; one file: make test ARGS=tests/test_config.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not cluster and not slow' -n $(JOBS) $(DIST) $(ARGS)

test-slow: .venv/installed  ## run the tests that take more than ten seconds each: sweeps, searches, torchrun
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not cluster' -n $(JOBS) $(DIST) $(ARGS)

test-gpu: .venv/installed  ## run the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

# Each command is of use by itself, and leaves its tables in outputs/bench/ as JSON as they come.
bench-gpu: .venv/installed  ## measure what README says of speed and memory, on one GPU (20 minutes)
	$(BIN)/python -m tid.bench measure=steps scorer=none,random,entropy,surprisal,attention_mass,grad_norm \
		scorer.source=fresh,cached $(ARGS)
	$(BIN)/python -m tid.bench measure=steps scorer=none,random drop_mode=zero,skip drop_schedule.rate=0.5 \
		batch_size=128 peers=gpt2 $(ARGS)
	$(BIN)/python -m tid.bench measure=steps scorer=none batch_size=8,128 peers=gpt2 \
		kernels=auto,none $(ARGS)
	$(BIN)/python -m tid.bench measure=steps scorer=none optim=adamw,adamw_8bit,adamw_4bit,muon peers=[] $(ARGS)
	$(BIN)/python -m tid.bench measure=run,start scorer=entropy cold=true $(ARGS)
	$(BIN)/python -m tid.bench measure=memory scorer=entropy optim=adamw,adamw_8bit,adamw_4bit,muon $(ARGS)

test-cluster: .venv/installed  ## test SLURM and Ray, each started on this machine (10 minutes); as root apt-get installs SLURM
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm,ray]'
	tests/cluster/slurm install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster tests/cluster $(ARGS)

lint: .venv/installed  ## check the code with ruff
	$(BIN)/ruff check .

clean:  ## remove .venv and caches; outputs/, data/ and tokenizer/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew whenever the dependencies change. pip would compile every module there is, which takes half of its time;
# Python does so with those that are imported.
.venv/installed: pyproject.toml constraints.txt
	@'$(PYTHON)' -c '$(SUITS)' 2>/dev/null || { \
		echo "error: TID needs Python 3.11, 3.12 or 3.13; $(or $(PYTHON),python3) is $$( \
			'$(or $(PYTHON),python3)' --version 2>/dev/null || echo 'not there')"; \
		echo "  name one that you have: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12"; exit 1; } >&2
	@echo "setting up .venv with $$('$(PYTHON)' --version): a few minutes, once"
	'$(PYTHON)' -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@
