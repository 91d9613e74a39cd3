"""What the numbers of an evaluation cost beside the images that they are of.

    taskset -c 0,1 env OMP_NUM_THREADS=2 python benchmarks/metrics.py [--count 10000] [--threads 2] [--device cuda]

Random features of the Inception's widths (2,048 and 2,023, a spectrum that falls as i^-1.2; 1,008 logits) of generated
and of real images lie in the files of an evaluation, and every measure is computed from them once, as evaluate.py
computes it: reading included, on the CPU. The moments of the reference, which belong to its file, are timed by
themselves. Beside it: seconds that the Inception (random weights) takes for as many images of 256 px, and the decoder
of LDM's kl-f8 to make them, from a few batches, on ``--device``; sampling comes on top. Peak memory is that of a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from interleave import gpu_seconds, output_of_process, peak_mib, verdict, wall_seconds
from torch import Tensor

from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import index_chunks
from latentdiff.metrics.density_coverage import DensityCoverage
from latentdiff.metrics.features.base import LOGITS, POOL, SPATIAL
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.frechet_infinity import FrechetInfinity
from latentdiff.metrics.inception_score import InceptionScore
from latentdiff.metrics.kernel_distance import GaussianKernelDistance, KernelDistance
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.precision_recall import PrecisionRecall
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.types import Batch

CHUNK = 50
WIDTH, SPATIAL_WIDTH = 2048, 2023
GOAL = 0.05
MEASURES = {
    "FID": FrechetDistance(),
    "sFID": FrechetDistance(layer=SPATIAL),
    "FID infinity, 15 points": FrechetInfinity(),
    "KID, 100 subsets of 1,000": KernelDistance(),
    "IS": InceptionScore(),
    "precision and recall, k = 3": PrecisionRecall(),
    "density and coverage, k = 5": DensityCoverage(),
}
CMMD = "CMMD on these features"
MEMORY = [("FID", count) for count in (2_500, 10_000, 30_000)] + [("precision and recall, k = 3", 10_000)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--memory", nargs=2, help="what a process of its own does: a measure and a count")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.memory:
            print(memory_of(args.memory[0], int(args.memory[1])))
            return
        found = seconds_of_measures(args.count) | seconds_of_networks(args.count, torch.device(args.device))
    found["peak MiB"] = {
        f"{name}, N = {count:,}": float(
            output_of_process(__file__, "--threads", str(args.threads), "--memory", name, str(count))
        )
        for name, count in MEMORY
    }
    show(found, args)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2))


def seconds_of_measures(count: int) -> dict:
    with evaluation(count) as (rows, reference):
        naming = Naming("random", published=True, count=count)
        found = {
            f"moments and root of the reference, {layer}": wall_seconds(
                lambda layer=layer: reference.moments(layer).root
            )
            for layer in (POOL, SPATIAL)
        }
        for name, measure in (MEASURES | {CMMD: GaussianKernelDistance()}).items():
            found[name] = wall_seconds(lambda measure=measure: measure(rows, reference, naming))
    return {"measures": found}


def seconds_of_networks(count: int, device: torch.device) -> dict:
    inception, decoder = random_inception().to(device), kl_f8().to(device)
    batch = 50 if device.type == "cuda" else 8
    images = torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8, device=device)
    latents = torch.randn(batch, 4, 32, 32, device=device)
    clock = gpu_seconds if device.type == "cuda" else wall_seconds
    looks = {
        "Inception": lambda: inception(images, Batch(keys=[""] * batch), ("pool", "logits", "spatial")),
        "decoder": lambda: decoder.decode(latents),
    }
    found = {}
    for name, look in looks.items():
        look()
        found[name] = min(clock(look) for _ in range(3)) / batch * count
    return {"networks": found}


def memory_of(name: str, count: int) -> float:
    """MiB above what the process held before it had an evaluation's folder."""
    with evaluation(count) as (rows, reference):
        naming = Naming("random", published=True, count=count)
        return peak_mib(lambda: lambda: MEASURES[name](rows, reference, naming), steps=1)


@contextmanager
def evaluation(count: int) -> Iterator[tuple]:
    """Rows of generated images in their files, and the reference of as many real ones."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [ChunkFolder(Path(folder) / name, index_chunks(count, CHUNK)) for name in ("generated", "real")]
        for number, chunks in enumerate(folders):
            generator = torch.Generator().manual_seed(number)
            for chunk in chunks.chunks:
                logits = 3 * torch.randn(len(chunk), 1008, generator=generator)
                pool, spatial = (features(len(chunk), width, generator) for width in (WIDTH, SPATIAL_WIDTH))
                chunks.write(chunk, {POOL: pool, SPATIAL: spatial, LOGITS: logits})
        yield folders[0].rows(), MeasuredReference(folders[1].rows())


def features(count: int, width: int, generator: torch.Generator) -> Tensor:
    spectrum = torch.arange(1, width + 1).float() ** -0.6
    return 0.4 + spectrum * torch.randn(count, width, generator=generator)


def random_inception() -> torch.nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from latentdiff.metrics.features.inception import InceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state: dict) -> None:
            """Keeps the random weights."""

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pth")
        torch.save({}, path)
        torch.save(Blank("blank", ["2048"], feature_extractor_weights_path=path).state_dict(), path)
        return InceptionV3(weights=path)


def kl_f8() -> Autoencoder:
    model = Autoencoder(
        bottleneck=KL(), channels=128, channel_multipliers=[1, 2, 4, 4], num_res_blocks=2, latent_channels=4
    )
    return model.eval().requires_grad_(False)


def show(found: dict, args: argparse.Namespace) -> None:
    networks, measures = found["networks"], found["measures"]
    print(f"torch {torch.__version__}, {args.threads} threads, {args.count:,} images, width {WIDTH:,}\n")
    print("| | seconds |\n|---|---|")
    for name, seconds in (measures | networks).items():
        print(f"| {name} | {seconds:.1f} |")
    spent = sum(seconds for name, seconds in measures.items() if name != CMMD)
    share = spent / (spent + sum(networks.values()))
    print(f"\nshare of the measures in measures, Inception and decoder: {share:.4f} ({verdict(share, at_most=GOAL)})")
    ratio = networks["decoder"] / networks["Inception"]
    print(f"the decoder takes {ratio:.2f} x the Inception's time ({verdict(ratio, at_least=1)})\n")
    print("| | peak MiB |\n|---|---|")
    for name, mib in found["peak MiB"].items():
        print(f"| {name} | {mib:.0f} |")


if __name__ == "__main__":
    main()
