# Every target sets up .venv by itself, once; after a change of pyproject.toml or constraints.txt it brings it up to date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# `==` accepts a CPU-only wheel (2.13.0+cpu) that pip may find at hand; `===` does not, so an NVIDIA machine gets CUDA.
TORCH := torch$(if $(shell command -v nvidia-smi 2>/dev/null),===,==)2.13.0
PIP   := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help train test test-kernels bench check clean

help:
	@echo 'make train  train on the recorded sample: 20 minutes, preset small; ARGS="--preset debug --steps 50" replaces the flags'
	@echo 'make test   the tests; ARGS="-m slow" runs the long ones'
	@echo 'make test-kernels  every kernel in the interpreter and compiled for three GPUs; needs none'
	@echo 'make bench  the benchmarks; ARGS=benchmarks/test_bench_rgb.py picks some, and passes flags to pytest'
	@echo 'make check  lint, format and types'
	@echo 'PYTHON=python3.12 picks the interpreter that makes .venv (3.11 or newer)'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12'; exit 2; }
	@echo 'Setting up $(VENV): this downloads some gigabytes and takes a few minutes, once.'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt '$(TORCH)'
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

train: ARGS ?= --preset small --minutes 20
train: $(READY)
	$(BIN)/deepspeed aime_fast/train.py --ds_config ds_configs/zero2.json $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

test-kernels: $(READY)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels/parity -m 'slow or not slow' $(ARGS)
	$(BIN)/python -m pytest tests/kernels/test_ahead_of_time.py tests/kernels/test_dispatch.py -m 'slow or not slow' $(ARGS)

bench: ARGS ?= benchmarks
bench: $(READY)
	$(BIN)/python -m pytest $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
