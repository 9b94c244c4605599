#!/usr/bin/env bash
# Builds this checkout for the GPU of this machine, checks it and measures it in a given time: one
# JSON, exit code 0 only if everything that ran has passed. Works offline, installs nothing.
#
#   benchmarks/gpu/check.sh [--seconds 540] [--out FOLDER] [--commit NAME] [--dry-run-on-cpu]
#
# Needs python3 with torch (CUDA) and pybind11, CMake, nvcc and g++; sections that need more
# (pytest with hypothesis and filelock, compute-sanitizer) name what is missing.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# `python -m` would put the current folder first, which may hold another `benchmarks`.
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -c '
import runpy, sys
del sys.path[0]
runpy.run_module("benchmarks.gpu.check", run_name="__main__", alter_sys=True)
' "$@"
