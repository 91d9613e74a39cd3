#!/usr/bin/env bash
# Data and state on one GPU: the loader, a step with cached latents, FSDP2 over NCCL, a stop and a resume.
# Usage: benchmarks/gpu_data.sh [RUN_DIR]      (about 8 minutes are meant)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-outputs/gpu_data}
OMP_NUM_THREADS=1 python benchmarks/dataloader.py
python benchmarks/cached_latents.py --device cuda --large --size 512 --batch 8
python train.py experiment=ldm_txt2img trainer=gpu max_batches=600 validate_every=300 run_dir="$run/plain"
python train.py experiment=ldm_txt2img trainer=fsdp trainer.devices=1 max_batches=600 validate_every=300 \
  trainer.max_time=00:00:00:40 run_dir="$run/sharded"
python train.py experiment=ldm_txt2img trainer=gpu max_batches=600 validate_every=300 run_dir="$run/sharded"
python - "$run" <<'PY'
import json, sys
for name in ("plain", "sharded"):
    rows = [json.loads(line) for line in open(f"{sys.argv[1]}/{name}/metrics.jsonl")]
    print(name, [(row["batches_seen"], row["val/loss"]) for row in rows if "val/loss" in row])
PY
