#!/usr/bin/env bash
# The main job on one GPU in bf16: both stages on the embedded data, evaluation, the curve of validation losses.
# Usage: benchmarks/gpu_txt2img.sh [RUN_DIR] [BATCHES]      (about 8 minutes are meant; choose BATCHES to fit)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-outputs/gpu_txt2img}
batches=${2:-20000}
python train.py experiment=ldm_txt2img trainer=gpu trainer.precision=bf16-mixed max_batches="$batches" validate_every=1000 run_dir="$run"
python evaluate.py checkpoint="$run" trainer=gpu num_images=1000 run_dir="$run/evaluate"
python - "$run" <<'PY'
import json, sys
for line in open(f"{sys.argv[1]}/metrics.jsonl"):
    row = json.loads(line)
    if "val/loss" in row:
        print(row["batches_seen"], row["images_seen"], row["val/loss"])
PY
