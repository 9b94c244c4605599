#!/usr/bin/env bash
# Everything on docs/benchmarks.md that a CPU can measure, one after the other: two runs beside each
# other would time each other. Replaces the reports in benchmarks/results. Up to 20 minutes on two
# cores with nothing else to do.
#
#   benchmarks/speed/all.sh [--compile loop]
#
# --compile loop also compiles the whole loop of the 2-D step, and measures the memory of what compiles,
# for some minutes more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3}"
# The time to compile is that of a first use: nothing of an earlier run may be found.
TORCHINDUCTOR_CACHE_DIR="$(mktemp -d)"
export TORCHINDUCTOR_CACHE_DIR
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT

measure() {
  echo "bench: $*"
  "$python" -m "benchmarks.speed.$1" --results benchmarks/results "${@:2}"
}

measure steps --problem 2d --rounds 6 "$@"
measure steps --problem 2d --threads 2 --no-memory --rounds 4
measure steps --problem small --no-memory --rounds 4
for problem in table-6 table-21; do
  measure steps --problem $problem --compile no --no-memory --rounds 4
done
for problem in table-63 image; do
  measure steps --problem $problem --no-memory --rounds 3
done
measure memory
measure scaling --rounds 1
measure denoising
measure equal_compute --seconds 15
measure ops --seconds 0.3
"$python" -m benchmarks.pages.write
