import json
import subprocess
import sys

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.evaluation.engine import LoadedSamples, evaluate, image_seed, index_chunks
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.reconstruction import Psnr
from latentdiff.types import Batch


class MeanColour:
    name, dim = "colour", 3

    def to(self, device):
        return self

    def __call__(self, images):
        return images.float().mean(dim=(2, 3))


class Record:
    def __init__(self):
        self.indices, self.captions = [], []

    def update(self, images, batch):
        self.indices += range(batch.start, batch.start + len(batch))
        self.captions += batch.caption
        assert (batch.number, batch.global_size) == (0, 10)

    def compute(self):
        return {"count": len(self.indices)}


def picture(seed):
    return torch.randint(0, 256, (3, 4, 4), generator=keyed_generator(seed), dtype=torch.uint8)


def samples(indices):
    return Batch(
        keys=[f"k{i}" for i in indices],
        image=torch.stack([picture(1000 + i) for i in indices]),
        caption=[f"caption {i}" for i in indices],
        label=torch.tensor(list(indices)),
    )


def generate(batch, seeds):
    return torch.stack([picture(seed) for seed in seeds])


def run(**changes):
    metrics = {"frechet": FrechetDistance(features=MeanColour()), "psnr": Psnr()}
    settings = {"num_images": 10, "batch_size": 3} | changes
    return evaluate(generate, samples, metrics, **settings)


@pytest.mark.parametrize(("total", "size", "world"), [(10, 3, 1), (10, 3, 2), (10, 3, 8), (1, 4, 3), (12, 4, 2)])
def test_chunks_cover_every_index_once(total, size, world):
    by_rank = [index_chunks(total, size, rank, world) for rank in range(world)]
    assert sorted(i for chunks in by_rank for chunk in chunks for i in chunk) == list(range(total))
    starts = {chunk.start for chunks in by_rank for chunk in chunks}
    assert starts == set(range(0, total, size))


def test_seeds_are_distinct_over_seeds_and_indices():
    assert [image_seed(0, i) for i in range(3)] == [0, 1, 2]
    assert len({image_seed(s, i) for s in range(5) for i in range(100)}) == 500
    torch.Generator().manual_seed(image_seed(2**20, 10**6))


def test_conditions_seeds_and_indices_belong_together():
    record, seen = Record(), []

    def spy(batch, seeds):
        seen.extend(zip(batch.caption, seeds))
        return generate(batch, seeds)

    done = []
    result = evaluate(spy, samples, {"r": record}, num_images=10, batch_size=4, seed=3, progress=done.append)
    assert seen == [(f"caption {i}", (3 << 32) + i) for i in range(10)]
    assert record.indices == list(range(10))
    assert (result, done) == ({"r": {"count": 10}}, [4, 4, 2])


def test_batch_size_changes_nothing_and_the_seed_does():
    assert run() == run(batch_size=1) == run(batch_size=64)
    assert run() != run(seed=1)
    assert set(run()["frechet"]) == {"fd_colour_n10"}


def test_reference_is_the_samples_own_images_or_what_is_given():
    identical = evaluate(
        lambda batch, seeds: batch.image,
        samples,
        {"f": FrechetDistance(features=MeanColour())},
        num_images=10,
        batch_size=4,
    )
    assert identical["f"]["fd_colour_n10"] == pytest.approx(0, abs=1e-6)
    shifted = evaluate(
        lambda batch, seeds: batch.image // 2,
        samples,
        {"f": FrechetDistance(features=MeanColour())},
        num_images=10,
        batch_size=4,
        reference=lambda indices: Batch(keys=samples(indices).keys, image=samples(indices).image // 2),
    )
    assert shifted["f"]["fd_colour_n10"] == pytest.approx(0, abs=1e-6)
    metric = FrechetDistance(features=MeanColour())
    evaluate(generate, samples, {"f": metric}, num_images=10, batch_size=4, num_reference=30)
    assert metric.describe()["reference_images"] == 30


WORKER = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_engine import run
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/store", rank=rank, world_size=2)
result = run(rank=rank, world_size=2, batch_size=3)
Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(result))
dist.destroy_process_group()
"""


def test_two_processes_equal_one_bit_for_bit(tmp_path, request):
    folder = str(request.path.parent)
    command = [sys.executable, "-c", WORKER, folder, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == run()


def test_loaded_samples_are_the_loader_in_order():
    class Loader:
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            for start, stop in ((0, 4), (4, 8), (8, 11)):
                yield samples(range(start, stop))

    loaded = LoadedSamples(Loader())
    for chunk in (range(0, 3), range(3, 6), range(7, 10), range(10, 11)):
        batch, expected = loaded(chunk), samples(chunk)
        assert (batch.keys, batch.caption) == (expected.keys, expected.caption)
        assert torch.equal(batch.image, expected.image)
        assert torch.equal(batch.label, expected.label)
        assert batch.attributes is None
    assert Loader.passes == 1
    assert loaded(range(2)).keys == ["k0", "k1"]
    assert Loader.passes == 2
    with pytest.raises(InputError, match=r"has 11 samples, but 12 or more are wanted; lower num_images"):
        loaded(range(9, 12))


def test_too_few_samples_and_missing_images_are_refused():
    with pytest.raises(InputError, match="samples 8 to 10 were asked for, 1 came"):
        evaluate(generate, lambda i: samples(range(i.start, min(i.stop, 9))), {}, num_images=10, batch_size=4)
    with pytest.raises(InputError, match="at least 1"):
        run(num_images=0)
    metric = FrechetDistance(features=MeanColour())
    with pytest.raises(InputError, match="reference samples have none"):
        evaluate(generate, lambda i: Batch(keys=[str(k) for k in i]), {"f": metric}, num_images=4, batch_size=2)


class Beside:
    """Counts what stage one alone made of the samples, and their indices."""

    def __init__(self):
        self.pairs = []

    def update(self, images, batch):
        self.images = images

    def update_reconstructions(self, images, batch):
        self.pairs += [(batch.start, bool((images == batch.image).all()), bool((images == self.images).all()))]

    def compute(self):
        return {"pairs": self.pairs}


def test_reconstructions_are_made_once_a_chunk_and_only_where_a_metric_compares():
    calls = []

    def reconstruct(batch, seeds):
        calls.append(batch.start)
        return batch.image

    settings = {"num_images": 5, "batch_size": 2}
    found = evaluate(generate, samples, {"a": Beside(), "b": Beside()}, **settings, reconstruct=reconstruct)
    assert found["a"] == found["b"] == {"pairs": [(0, True, False), (2, True, False), (4, True, False)]}
    assert calls == [0, 2, 4]
    assert evaluate(generate, samples, {"a": Beside()}, **settings) == {"a": {"pairs": []}}
    evaluate(generate, samples, {"psnr": Psnr()}, **settings, reconstruct=reconstruct)
    assert calls == [0, 2, 4]


def test_real_images_that_were_measured_before_are_not_measured_again():
    metric = FrechetDistance(features=MeanColour())
    first = evaluate(generate, samples, {"f": metric}, num_images=10, batch_size=3)
    again = evaluate(generate, samples, {"f": metric.anew()}, num_images=10, batch_size=4, measure_real=False)
    assert again == first
