#!/usr/bin/env bash
# All that only a GPU can show, and what its host may (a processor with bf16 and AMX): tests first, then the pages.
#
#     tests/benchmarks/on_a_gpu.sh            # 16 minutes on an H200
#
# Run it in the repository's root with onnxruntime-gpu, onnxruntime-genai-cuda, PyTorch, transformers and pytest, beside
# runs/iu (of iu_decoder.py), phantoms (of trrg-train phantom), mini_fp16 and mini_int4-fp16 (of trrg-export).
set -uo pipefail
pages=tests/benchmarks/results
decode="python3 tests/benchmarks/decode.py"
failed=0

step() {
    echo "== $*"
    "$@" || failed=1
}

step python3 -m pytest -q -m gpu -rs tests/export/test_cuda.py tests/export/test_engines.py
step $decode llama1b iu mini --device cuda --iu runs/iu --dicom phantoms --bundles mini_fp16 mini_int4-fp16 \
    --threads 4 --turns 5 --studies 30 --write $pages/decode_gpu.md
step $decode llama7b --device cuda --iu runs/iu --threads 4 --turns 3 --studies 12 --write $pages/decode_gpu_7b.md
step python3 tests/benchmarks/report_many.py --studies phantoms --bundle mini_fp16 --device cuda --turns 3 \
    --write $pages/report_many_gpu.md
step taskset -c 0,1 $decode iu --iu runs/iu --threads 2 --turns 3 --studies 30 --write $pages/decode_host.md
exit $failed
