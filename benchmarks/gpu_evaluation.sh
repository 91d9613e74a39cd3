#!/usr/bin/env bash
# Evaluation on one GPU: what the numbers cost beside Inception and decoder, a whole evaluation, its repetition from the
# card, and the same images in other chunks.
# Usage: benchmarks/gpu_evaluation.sh [RUN_DIR] [CHECKPOINT]      (about 8 minutes are meant)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-outputs/gpu_evaluation}
checkpoint=${2:-$run/ldm}
python benchmarks/metrics.py --device cuda
[ -e "$checkpoint" ] || python train.py experiment=ldm_class trainer=gpu max_batches=600 run_dir="$checkpoint"
measured="checkpoint=$checkpoint trainer=gpu metrics=small conditions=made num_images=2000 num_reference=1000"
# shellcheck disable=SC2086
python evaluate.py $measured run_dir="$run/once"
python evaluate.py card="$run/once/results.json" run_dir="$run/again"
# shellcheck disable=SC2086
python evaluate.py $measured batch_size=125 run_dir="$run/chunks"
latentdiff compare "$run/once" "$run/chunks" --differ protocol.samples.chunk
