#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build with what is installed there, test, measure.
# Nothing is downloaded: setuptools, pybind11, cmake, ninja and the packages of the test extra must be present.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! nvidia-smi -L; then
  echo "no GPU here: nvidia-smi finds none, so nothing was built or measured" >&2
  exit 1
fi
python=${PYTHON:-python3}
"$python" -m pip install --no-build-isolation --no-deps .
# From another folder, so that the installed package is tested and not this tree.
root=$PWD
cd "$(mktemp -d)"
"$python" -m pytest "$root/python_tests" -c "$root/pyproject.toml"
"$python" -m simplear_engine.bench step
for benchmark in "$root"/benchmarks/*.py; do
  echo "== $(basename "$benchmark")"
  "$python" "$benchmark"
done
