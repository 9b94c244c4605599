#!/usr/bin/env bash
# Builds this checkout for the GPU of this machine, checks it and measures it: one JSON, exit code 0
# only if every check passes. Works offline. Needs python3 with torch (CUDA), pytest, hypothesis,
# pybind11 and ninja, CMake, nvcc; compute-sanitizer is used where it is.
#
#   benchmarks/gpu/check.sh [--out FOLDER] [--commit NAME]
#
# The report goes to FOLDER, else to $OUT, else to benchmarks/results.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
for folder in /usr/local/cuda/bin /usr/local/cuda/compute-sanitizer; do
  [ -d "$folder" ] && PATH="$PATH:$folder"
done
# Scripts of the interpreter's own environment: ninja and cmake may be there alone.
PATH="$PATH:$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')"
export PATH

echo "check: building" >&2
cuda=ON
case " $* " in *" --dry-run-on-cpu "*) cuda="${DIFFFLOW_CUDA:-AUTO}" ;; esac
if ! DIFFFLOW_CUDA="$cuda" "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
  --target "$site" "$root" > "$site/build.log" 2>&1; then
  cat "$site/build.log" >&2
  exit 3
fi
# What was installed comes before the checkout, whose package has no compiled module. `python -m`
# would put the current folder before both, and that may be the checkout.
PYTHONPATH="$site:$root" "$python" -c '
import runpy, sys
del sys.path[0]
runpy.run_module("benchmarks.gpu.check", run_name="__main__", alter_sys=True)
' "$@"
