"""The loader: images per CPU-second out of shards, ours against webdataset's own pipeline and the decoder's limit.

    OMP_NUM_THREADS=1 taskset -c 2,3 python benchmarks/dataloader.py [--rounds 5] [--images 2000]

The images are photo-like JPEGs of 256 to 512 px a side, quality 80 to 95, in four shards with an index and captions;
they become batches of 50 squares of 256 px. Contestants, which take turns in one process and run twice a round:

- webdataset: its tar reader, Pillow, torchvision's Resize (bicubic), CenterCrop and ToTensor: float32 from the worker.
- ours: ``DataModule`` from opening the shards on, as ``configs/data/webdataset.yaml`` builds it: uint8 from the worker.
- limit: simplejpeg, crop and antialiased resize of the same bytes, already in memory, one after the other.

Time is CPU time of this process and of its workers, whose start it includes. A ratio is theirs over ours in the same
round; beside it stand the null controls, a contestant against itself. ``--memory`` is the peak of a loading process.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from interleave import HEAD, cpu_seconds, output_of_process, peak_mib, race, verdict
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from latentdiff.data.datamodule import DataModule
from latentdiff.data.plan import BatchPlan, draw_int, draw_uniform
from latentdiff.data.shards import open_shards, write_shards
from latentdiff.data.sources import ShardSource
from latentdiff.data.transforms import CoverCrop

SIZE, BATCH, SHARDS = 256, 50, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--memory", metavar="FOLDER", help="print the peak memory of a process that loads its shards")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(peak_mib(lambda: partial(ours, args.memory, 0), steps=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(photos(args.images), os.path.join(folder, "train"), args.images // SHARDS)
        write_shards(photos(10), os.path.join(folder, "val"))
        compare(folder, args.rounds)
        peak = float(output_of_process(__file__, "--memory", folder))
    print(f"\npeak memory of a loading process over its imports: {peak:.0f} MiB")


def compare(folder: str, rounds: int) -> None:
    shards = open_shards(os.path.join(folder, "train"))
    files = [shards.read_image(index) for index in range(len(shards))]
    print(f"{len(files)} JPEGs of {np.mean([len(file) for file in files]) / 1024:.0f} KiB on average, {rounds} rounds")
    contestants = {
        "webdataset, 1 worker": partial(theirs, folder, 1),
        "webdataset, 2 workers": partial(theirs, folder, 2),
        "ours, 1 worker": partial(ours, folder, 1),
        "ours, 2 workers": partial(ours, folder, 2),
        "limit": partial(limit, files),
    }
    times = race(contestants, rounds, cpu_seconds_with_workers, warm_up=1)
    print("\n| | images per CPU-second: median | of the fastest run |\n|---|---|---|")
    for name in contestants:
        fastest = min(second for round_ in times.rounds for second in round_[name])
        print(f"| {name} | {len(files) / times.seconds(name):.0f} | {len(files) / fastest:.0f} |")
    print(f"\n{HEAD}")
    for workers in ("1 worker", "2 workers"):
        print(times.line(f"webdataset, {workers}", f"ours, {workers}", f"webdataset, {workers}", goal=2.7))
    print(times.line("limit", "ours, 1 worker", "limit", goal=0.6))
    print(times.line("second worker", "ours, 2 workers", "ours, 1 worker", goal=0.95))
    share = min(cpu_seconds(partial(plan_epoch, len(files))) for _ in range(rounds)) / times.seconds("ours, 1 worker")
    print(f"\nthe order and the draws alone: {100 * share:.2f} % of our time, goal {verdict(share, at_most=0.02)}")


# --- contestants -----------------------------------------------------------------------------------------------------


def ours(folder: str, workers: int) -> None:
    module = DataModule(
        source=ShardSource(train=os.path.join(folder, "train"), val=os.path.join(folder, "val")),
        image_size=SIZE,
        global_batch=BATCH,
        seed=0,
        num_workers=workers,
        random_crop=True,
        require_captions=True,
    )
    consume(batch.image for batch in module.train_dataloader())


def theirs(folder: str, workers: int) -> None:
    prepare = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
        ]
    )
    dataset = (
        webdataset.WebDataset(sorted(str(path) for path in Path(folder, "train").glob("*.tar")), shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(prepare, str)
        .batched(BATCH)
    )
    consume(images for images, _ in DataLoader(dataset, batch_size=None, num_workers=workers))


def limit(files: list[bytes]) -> None:
    cut = CoverCrop(size=SIZE)
    for file in files:
        cut(simplejpeg.decode_jpeg(file), 0.5, 1.0)


def consume(batches: Iterator[torch.Tensor]) -> None:
    """Looks at a pixel of every image, so that all of them have arrived."""
    for images in batches:
        assert images[:, 0, 0, 0].sum() >= 0
        assert images.shape[1:] == (3, SIZE, SIZE)


def plan_epoch(samples: int) -> None:
    """All that decides on order, crop, mirroring and caption of an epoch."""
    plan = BatchPlan(samples, BATCH, seed=0)
    for number in range(plan.batches_per_epoch):
        for slot in plan.slots(number):
            index = plan.index(slot)
            draw_uniform(0, slot.epoch, index, 1)
            draw_uniform(0, slot.epoch, index, 2)
            draw_int(0, slot.epoch, index, 3)


def cpu_seconds_with_workers(step: Callable[[], object]) -> float:
    """CPU time of this process and of the children that end during the step."""
    began = time.process_time() + children_seconds()
    step()
    return time.process_time() + children_seconds() - began


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- images ----------------------------------------------------------------------------------------------------------


def photos(count: int) -> Iterator[dict]:
    for number in range(count):
        rng = np.random.default_rng((0, number))
        height, width = rng.integers(256, 513, size=2)
        file = io.BytesIO()
        Image.fromarray(photo(rng, height, width)).save(file, "JPEG", quality=int(rng.integers(80, 96)))
        yield {"jpg": file.getvalue(), "txt": f"picture {number} of soft ground, discs with sharp edges and grain"}


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): clouds whose spectrum falls like a photograph's, sharp-edged ellipses, grain."""

    def cloud(power: float) -> np.ndarray:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
        fall = np.maximum(frequency, 1 / max(height, width)) ** -power
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * fall, s=(height, width))
        return noise / noise.std()

    y, x = np.mgrid[:height, :width]
    luma = 128 + 45 * cloud(1.4)
    for _ in range(12):
        top, left, radius = rng.integers(height), rng.integers(width), rng.integers(8, 120)
        tall, wide = rng.uniform(0.3, 1.5, size=2)
        luma[((y - top) / tall) ** 2 + ((x - left) / wide) ** 2 < radius**2] += rng.normal(0, 30)
    luma += rng.uniform(1, 11) * rng.standard_normal(luma.shape)
    blue, red = 15 * cloud(1.8), 15 * cloud(1.8)
    rgb = np.stack([luma + 1.4 * red, luma - 0.34 * blue - 0.71 * red, luma + 1.77 * blue], axis=2)
    return rgb.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
