# Every target but gpu-check sets up .venv first. A change of pyproject.toml or constraints.txt updates it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

CARD   := $(shell command -v nvidia-smi 2>/dev/null)

# `==` accepts a CPU-only wheel (2.13.0+cpu); `===` does not, so a machine with an NVIDIA GPU gets the CUDA build.
TORCH := torch$(if $(CARD),===,==)2.13.0
PIP   := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Parallel workers (tests/conftest.py says how many); a file is one worker's. ARGS="-n 0 tests/test_x.py" has none.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help setup train test test-kernels bench horizon gpu-check nsys ncu check clean

help:
	@echo 'make setup  make .venv and nothing else; the others do so too'
	@echo 'make train  train on the recorded sample: 20 minutes, preset small; ARGS="--preset debug --steps 50" replaces the flags'
	@echo 'make test   the tests, then those that need a card if there is one; ARGS="-m slow" runs the slow ones'
	@echo 'make test-kernels  every kernel in the interpreter, and compiled for three GPU types; needs no GPU'
	@echo 'make bench  the benchmarks, into benchmarks/results; ARGS="benchmarks -m quick --compare FILE" compares the quick ones'
	@echo 'make horizon  train and judge the model by the protocol of docs/learning.md; ARGS="--quick" is the short form'
	@echo 'make gpu-check  checks and measures on a GPU, without .venv: docs/gpu-check.md; ARGS="--device cpu" tries it on a CPU'
	@echo 'make nsys   record steps with Nsight Systems; make ncu: measure kernels with Nsight Compute (docs/profiling.md)'
	@echo 'make check  lint, format and types'
	@echo 'PYTHON=python3.12 chooses the interpreter of .venv (3.11 or newer)'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: $(PYTHON) is missing or older than 3.11; choose another: make PYTHON=python3.12'; exit 2; }
	@echo 'Setting up $(VENV): this downloads a few gigabytes once and takes a few minutes.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt '$(TORCH)'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)

train: ARGS ?= --preset small --minutes 20
train: $(READY)
	$(BIN)/python -m aime_fast.launch aime_fast/train.py --ds_config ds_configs/zero2.json $(ARGS)

test: $(READY)
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,$(if $(CARD),$(PYTEST) -m 'gpu and not slow'))

test-kernels: $(READY)
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels/parity -m 'slow or not slow' $(ARGS)
	$(PYTEST) tests/kernels/test_ahead_of_time.py tests/kernels/test_dispatch.py -m 'slow or not slow' $(ARGS)

bench: ARGS ?= benchmarks --write benchmarks/results
bench: $(READY)
	$(BIN)/python -m pytest $(ARGS)

horizon: $(READY)
	$(BIN)/python -m benchmarks.horizon $(ARGS)

# For a bare machine with a GPU: its own Python and torch, no .venv.
gpu-check:
	@$(PYTHON) benchmarks/gpu_check $(ARGS)

nsys ncu: ARGS ?= --preset small
nsys ncu: $(READY)
	$(BIN)/python -m aime_fast profile --under $@ $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
