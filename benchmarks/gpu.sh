#!/usr/bin/env bash
# One command for a machine with an NVIDIA GPU: build with what is installed there, test, measure. Nine minutes at most.
#
#   bash benchmarks/gpu.sh                      all stages, one after the other
#   bash benchmarks/gpu.sh build ops            only these
#   OUT=results bash benchmarks/gpu.sh     results go there (default: benchmarks/results/<device>)
#
# Stages: build, ops (CUDA kernels against references), images (whole images against the CPU's, alone, batched,
# speculated), edges (kernels that begin early, behind delays), tables (times, plain torch beside them), speculation
# (what windows of drafts gain), train (fine-tuning and GRPO of the default model on its own pictures), triton (Triton's
# kernels against references), sanitize (compute-sanitizer, where it is installed). When the nine minutes are over, what
# is left is cut short and counts as failed. A stage that fails does not stop the others; the last line says which did,
# and the exit status too. Nothing is downloaded: setuptools, pybind11, cmake, ninja, pytest and the packages of the
# engine must be present.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
started=$SECONDS
deadline=$((SECONDS + ${SECONDS_AT_MOST:-530}))

if ! nvidia-smi -L; then
  echo "no GPU here: nvidia-smi finds none, so nothing was built or measured" >&2
  exit 1
fi
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
out=${OUT:-$root/benchmarks/results/$device}
mkdir -p "$out"

# The GPU that is here and no other, which halves the time to compile.
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
[ "$capability" = 90 ] && capability=90a

stage_build() {
  SIMPLEAR_CMAKE_ARGS="-DSIMPLEAR_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$capability ${SIMPLEAR_CMAKE_ARGS:-}" \
    within 240 "$python" -m pip install --no-build-isolation --no-deps --editable .
}
# within SECONDS COMMAND...: cut short after so many seconds, and at the deadline
within() {
  local left=$((deadline - SECONDS))
  [ "$left" -gt 5 ] || { echo "no time left for: ${*:2}"; return 124; }
  timeout "$(($1 < left ? $1 : left))" "${@:2}"
}
export SIMPLEAR_TEST_GPU=1
tests() { within "$1" "$python" -m pytest -q -x --tb=short "${@:2}"; }
stage_ops() { tests 120 python_tests/test_gpu.py -k "matches_reference" --maxfail=20; }
stage_triton() { tests 90 python_tests/test_triton_ops.py --maxfail=20; }
stage_images() { tests 120 python_tests/test_gpu.py -k "not matches_reference and not kernels_begin"; }
stage_edges() { tests 60 python_tests/test_gpu.py -k "kernels_begin"; }
stage_sanitize() {
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not installed here: memory errors and races were NOT looked for"
    return 0
  fi
  for tool in memcheck racecheck; do
    # One small case of each kernel: what it finds, it finds there, and it is a hundred times slower.
    within 60 compute-sanitizer --tool $tool --error-exitcode 1 \
      "$python" -m pytest -q -x python_tests/test_gpu.py -k "matches_reference and (N1- or N2- or P1- or W2-)" || return 1
  done
}
stage_tables() { within 200 "$python" benchmarks/gpu_tables.py --out "$out" --seconds "${SECONDS_FOR_TABLES:-150}"; }
stage_speculation() {
  within 60 "$python" benchmarks/speculation.py --device cuda --sources left --windows 4,8,16 --images 60
}
stage_train() {
  if ! "$python" -c "import tokenizers, tqdm"; then
    echo "tokenizers or tqdm is not installed here: training was NOT run"
    return 0
  fi
  local folder
  folder=$(mktemp -d)
  within 110 "$python" benchmarks/training/self_taught.py --out "$folder" --pictures 1024 --steps 100
  local status=$?
  rm -rf "$folder"
  return $status
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(build ops images edges tables speculation train triton sanitize)
failed=()
for stage in "${stages[@]}"; do
  if ! declare -F "stage_$stage" >/dev/null; then
    echo "gpu.sh: expected build, ops, images, edges, tables, speculation, train, triton or sanitize, got $stage" >&2
    exit 2
  fi
  echo "== $stage, after $((SECONDS - started)) s"
  "stage_$stage" 2>&1 | tee "$out/$stage.log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$stage")
done
echo "== done after $((SECONDS - started)) s; failed: ${failed[*]:-none}; results: $out"
[ ${#failed[@]} -eq 0 ]
