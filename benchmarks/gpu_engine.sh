#!/usr/bin/env bash
# The engine on one GPU in bf16: training and sampling of Stable Diffusion 1's UNet against diffusers', eager and
# compiled, each in one run.
# Usage: benchmarks/gpu_engine.sh [OUT_DIR] [BATCH]      (about 20 minutes are meant, most of them compiling)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-outputs/gpu_engine}
batch=${2:-16}
python benchmarks/gpu_engine.py train --batch "$batch" --out "$out/train.json"
python benchmarks/gpu_engine.py sample --batches 1 --rounds 5 --out "$out/sample_1.json"
python benchmarks/gpu_engine.py sample --batches 16 --rounds 5 --out "$out/sample_16.json"
