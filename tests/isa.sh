#!/usr/bin/env bash
# The tests as an older processor runs them: with the switches that hide instructions from the libraries.
#
#   tests/isa.sh          training, export, quantization, parity and runtime, at each level (an hour on two cores)
#   tests/isa.sh quick    int8, types and a small run from data to report (minutes; part of .ci/run)
#   tests/isa.sh LEVEL…   only these levels, e.g. `tests/isa.sh sse`, `tests/isa.sh quick avx2`
#
# What hides what, as the libraries document it:
#   ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS   torch: its kernels, oneDNN, MKL (Intel only)
#   OPENBLAS_CORETYPE, NPY_DISABLE_CPU_FEATURES                        numpy: its products, its loops
#   LLAMA_CPP_LIB_PATH   llama.cpp: a folder without the newer kernels; needs the portable build (docs/processors.md)
# onnxruntime has no such switch: it takes what the processor has. Its int8 files are tested against float64 instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${BIN:-.venv/bin}
QUICK=(tests/export/test_onnx_encoders.py tests/export/test_encoder_ranges.py
  tests/export/onnx/test_int8_columns.py tests/runtime/test_int8_pairs.py tests/runtime/test_llama_build.py
  tests/test_planted_encoder_faults.py tests/test_torch_dtype.py
  -k "int8 or integer or smaller or dtype or llama_build")
WHOLE=(tests/numbers tests/test_torch_dtype.py tests/training tests/quant tests/export tests/runtime tests/test_merge_stage.py
  tests/test_parity.py tests/test_parity_stage.py tests/test_onnx_parity.py tests/test_encoder_road.py
  tests/test_classifier_stage.py tests/test_distill_stage.py tests/test_recover_stage.py tests/test_train_stage.py)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# older_llama LEVEL: the installed libraries without kernels newer than LEVEL, as links; nothing for a native build.
older_llama() {
  local from newest
  from=$("$BIN/python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("llama_cpp").origin).parent / "lib")')
  compgen -G "$from/libggml-cpu-*" >/dev/null || return 0
  case $1 in sse) newest='x64|sse42' ;; *) newest='x64|sse42|sandybridge|ivybridge|piledriver|haswell' ;; esac
  mkdir -p "$work/llama-$1"
  for library in "$from"/*; do
    case $(basename "$library") in
      libggml-cpu-*) [[ $(basename "$library") =~ ^libggml-cpu-($newest)\. ]] && ln -s "$library" "$work/llama-$1/" || true ;;
      *) ln -s "$library" "$work/llama-$1/" ;;
    esac
  done
  echo "LLAMA_CPP_LIB_PATH=$work/llama-$1"
}

# switches LEVEL: the environment of LEVEL, a variable a line.
switches() {
  case $1 in
    sse) echo ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
      OPENBLAS_CORETYPE=Nehalem "NPY_DISABLE_CPU_FEATURES=X86_V3,X86_V4" ;;
    avx2) echo ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
      OPENBLAS_CORETYPE=Haswell "NPY_DISABLE_CPU_FEATURES=X86_V4" ;;
  esac
  older_llama "$1"
}

what=whole
if [[ ${1:-} == quick ]]; then what=quick && shift; fi
levels=("$@")
((${#levels[@]})) || levels=(sse avx2)
for level in "${levels[@]}"; do
  [[ $level == sse || $level == avx2 ]] || { echo "tests/isa.sh: no level $level; there are sse and avx2" >&2 && exit 2; }
done
chosen=("${WHOLE[@]}")
[[ $what == quick ]] && chosen=("${QUICK[@]}")

"$BIN/edgeft" init "$work/task" --template tool-calls >/dev/null 2>&1
for level in "${levels[@]}"; do
  mapfile -t variables < <(switches "$level" | tr ' ' '\n')
  echo "== $level: ${variables[*]}"
  env "${variables[@]}" "$BIN/edgeft" run "$work/task/recipe.yaml" --workdir "$work/$level"
  env "${variables[@]}" "$BIN/python" -m pytest -p no:cacheprovider "${chosen[@]}"
done
