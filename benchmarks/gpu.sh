#!/usr/bin/env bash
# Builds for the GPU of this machine, measures, tests there, looks for bad accesses and races.
#   bash benchmarks/gpu.sh [OUT]
# Needs PyTorch with CUDA, nvcc, pybind11, setuptools and pytest, and no network. An order for `auto`
# is there after at most eight minutes; tests take up to two more, sanitizers up to four. Leaves
# logs, gpu.json, gpu.png and order.json, what `auto` would go by, in OUT (gpu-results). Exits
# non-zero if the build, a test (one that is skipped, too) or a sanitizer fails. A kernel whose
# results are wrong is not measured: it fails its self-check.
set -uo pipefail

cd "$(dirname "$0")/.."
out=${1:-gpu-results}
python=${PYTHON:-python3}
failed=0

if ! capability=$("$python" -c '
import torch
assert torch.cuda.is_available()
print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null); then
  echo "error: benchmarks/gpu.sh needs an NVIDIA GPU, and PyTorch sees none" >&2
  exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)

# step NAME SECONDS COMMAND...: runs it with a time limit, output to OUT/NAME.log
step() {
  local name=$1 limit=$2
  shift 2
  local begin=$SECONDS
  if timeout "$limit" "$@" > "$out/$name.log" 2>&1; then
    echo "$name: ok ($((SECONDS - begin)) s)"
  else
    echo "$name: FAILED with status $? ($((SECONDS - begin)) s), see $out/$name.log"
    failed=1
    return 1
  fi
}

nvidia-smi > "$out/nvidia-smi.log" 2>&1
export DMLAP_CUDA=1 DMLAP_CUDA_ARCHS=$capability
# Editable: what runs in this folder imports the package that lies here.
step build 150 "$python" -m pip install --no-build-isolation --no-deps -e . || exit 1
"$python" -c 'from dmlap_kernels import info; print(*info.headline(), sep="\n")' || exit 1
step info 15 "$python" -m dmlap_kernels info
# What is wrong is found by the self-check of each op, before it is measured, and forgotten after.
export DMLAP_CACHE_DIR=$out/cache
rm -rf "$DMLAP_CACHE_DIR"
left=$((455 - SECONDS))
step benchmark "$((left > 60 ? left : 60))" \
  "$python" -m benchmarks.gpu --out "$out" --seconds "$((left > 90 ? left - 60 : 30))"
# shellcheck disable=SC2016
step order 15 bash -c '"$0" -m benchmarks.order "$1" > "$2"' \
  "$python" "$out/gpu.json" "$out/order.json"
# Triton compiles in each process of pytest-xdist's, where it is installed.
workers=()
"$python" -c 'import xdist' 2> /dev/null && workers=(-n 6)
export DMLAP_REQUIRE_GPU=1
step tests 120 "$python" -m pytest -q "${workers[@]}" tests/gpu
tail -n 3 "$out/tests.log"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q tests/gpu -k "small and (nt_xent or triplet_hard or contrastive)"
  done
else
  echo "no compute-sanitizer on PATH" | tee "$out/sanitizer.log"
fi
exit "$failed"
