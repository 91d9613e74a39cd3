#!/usr/bin/env bash
# Stage one on one GPU in bf16: speed of kl_f8 at 256 px against diffusers, then a training of it on photographs.
# Usage: benchmarks/gpu_stage_one.sh TRAIN_SHARDS VAL_SHARDS [RUN_DIR] [BATCHES] [VGG16]     (about 8 minutes are meant)
# VGG16 is torchvision's vgg16-397923af.pth; without it the perceptual term is the gradient pyramid.
set -euo pipefail
cd "$(dirname "$0")/.."
train=$1 val=$2 run=${3:-outputs/gpu_stage_one} batches=${4:-3000} vgg=${5:-}
python benchmarks/stage_one_step.py --gpu
if [ -n "$vgg" ]; then
  perceptual=(reconstruction=lpips "reconstruction.perceptual.weights='$vgg'")
  measures=("metrics=[frechet,reconstruction,lpips]" "metrics.lpips.weights='$vgg'")
else
  perceptual=(reconstruction=gradient_pyramid)
  measures=("metrics=[frechet,reconstruction]")
fi
python train.py experiment=ae_kl autoencoder=kl_f8 "${perceptual[@]}" adversarial=patch \
  adversarial.schedule.start=$((batches / 2)) optim=adamw_cosine optim.lr=1e-4 data=webdataset data.size=256 \
  data.train="$train" data.val="$val" global_batch=16 trainer=gpu trainer.precision=bf16-mixed \
  max_batches="$batches" validate_every=$((batches / 6)) run_dir="$run"
python evaluate.py checkpoint="$run" trainer=gpu "${measures[@]}" run_dir="$run/evaluate"
