import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import DIGEST, Work, fill, image_seed, index_chunks, measures_of, results
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.types import Batch


class MeanColour:
    name, layers, published = "colour", {"pool": 3}, False

    def to(self, device):
        return self

    def __call__(self, images, batch, layers):
        return {"pool": images.float().mean(dim=(2, 3))}

    def describe(self):
        return {}


class Captions:
    """Rows of what an image was made for."""

    def measure(self, images, batch):
        assert (batch.number, batch.global_size) == (0, 10)
        return {"caption": batch.caption, "index": torch.arange(batch.start, batch.start + len(batch))}

    def result(self, rows):
        return {"captions": rows.column("caption"), "indices": rows.column("index").tolist()}


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


def colours():
    return OnFeatures(features=MeanColour(), measures=[FrechetDistance()])


def evaluated(folder, *, count=10, size=3, seed=0, ranks=1, made=generate):
    """Every rank's share, one after the other, against the samples' own images."""
    metrics = {"captions": Captions(), "frechet": colours()}
    for rank in range(ranks):
        work = Work(count, size, seed, rank, ranks)
        chunks, real = ChunkFolder(folder / "images", work.chunks), ChunkFolder(folder / "real", work.chunks)
        fill(chunks, work, made, samples, measures_of(metrics))
        fill(real, work, lambda batch, seeds: batch.image, samples, {"frechet": metrics["frechet"].measure_real})
    return results(chunks, metrics, {"frechet": metrics["frechet"].reference(real.rows("frechet/"))})


@pytest.mark.parametrize(("total", "size", "ranks"), [(10, 3, 1), (10, 3, 2), (10, 3, 8), (1, 4, 3), (12, 4, 2)])
def test_chunks_cover_every_index_once(tmp_path, total, size, ranks):
    made = []

    def spy(batch, seeds):
        made.extend(seeds)
        return generate(batch, seeds)

    for rank in range(ranks):
        work = Work(total, size, rank=rank, ranks=ranks)
        fill(ChunkFolder(tmp_path, work.chunks), work, spy, samples, {})
    assert sorted(made) == list(range(total))
    assert {chunk.start for chunk in index_chunks(total, size)} == set(range(0, total, size))
    assert ChunkFolder(tmp_path, index_chunks(total, size)).done() == total


def test_seeds_are_distinct_over_seeds_and_indices():
    assert [image_seed(0, i) for i in range(3)] == [0, 1, 2]
    assert len({image_seed(s, i) for s in range(5) for i in range(100)}) == 500
    torch.Generator().manual_seed(image_seed(2**20, 10**6))


def test_conditions_seeds_and_indices_belong_together(tmp_path):
    seen = []

    def spy(batch, seeds):
        seen.extend(zip(batch.caption, seeds))
        return generate(batch, seeds)

    found = evaluated(tmp_path, size=4, seed=3, made=spy)["captions"]
    assert seen == [(f"caption {i}", (3 << 32) + i) for i in range(10)]
    assert found == {"captions": [f"caption {i}" for i in range(10)], "indices": list(range(10))}


def test_ranks_and_chunk_size_change_nothing_and_the_seed_does(tmp_path):
    one = evaluated(tmp_path / "one")
    assert one == evaluated(tmp_path / "three", ranks=3)
    assert one["frechet"] == pytest.approx(evaluated(tmp_path / "size", size=64)["frechet"], rel=1e-9)
    assert one["frechet"] != evaluated(tmp_path / "seed", seed=1)["frechet"]
    assert set(one["frechet"]) == {"fd_colour_n10"}
    own = evaluated(tmp_path / "own", made=lambda batch, seeds: batch.image)
    assert own["frechet"]["fd_colour_n10"] == pytest.approx(0, abs=1e-6)


def test_the_images_digests_are_kept(tmp_path):
    for size in (3, 4):
        work = Work(10, size)
        fill(ChunkFolder(tmp_path / str(size), work.chunks), work, generate, samples, {})
    first, second = (ChunkFolder(tmp_path / str(size), index_chunks(10, size)).rows().column(DIGEST) for size in (3, 4))
    assert first == second
    assert len(set(first)) == 10
    assert all(len(digest) == 64 for digest in first)


def test_what_is_done_is_not_done_again(tmp_path):
    calls = []

    def breaks(batch, seeds):
        if batch.start == 6:
            raise RuntimeError("the power is gone")
        return generate(batch, seeds)

    def spy(batch, seeds):
        calls.append(batch.start)
        return generate(batch, seeds)

    with pytest.raises(RuntimeError, match="the power"):
        evaluated(tmp_path / "broken", made=breaks)
    found = evaluated(tmp_path / "broken", made=spy)
    assert calls == [6, 9]
    assert found == evaluated(tmp_path / "whole")


def test_samples_that_read_ahead_are_told_what_is_wanted(tmp_path):
    class Ahead:
        asked = None

        def __call__(self, indices):
            raise AssertionError("it reads ahead")

        def in_order(self, ranges):
            Ahead.asked = list(ranges)
            return map(samples, ranges)

    work = Work(10, 3, rank=1, ranks=2)
    folder = ChunkFolder(tmp_path, work.chunks)
    fill(folder, work, generate, Ahead(), {})
    assert Ahead.asked == [range(3, 6), range(9, 10)]
    fill(folder, work, generate, Ahead(), {})
    assert Ahead.asked == []


def test_hooks_see_each_chunk_before_it_counts_as_done(tmp_path):
    work, told = Work(5, 2), []
    folder = ChunkFolder(tmp_path, work.chunks)
    fill(
        folder,
        work,
        generate,
        samples,
        {},
        pictures=3,
        on_images=lambda images, batch: told.append((batch.start, len(images), folder.done())),
        progress=told.append,
    )
    assert told == [(0, 2, 0), 2, (2, 2, 2), 2, (4, 1, 4), 1]
    assert torch.equal(folder.pictures(9), generate(None, [0, 1, 2]))
    assert torch.equal(folder.pictures(1), generate(None, [0]))


def test_too_few_samples_and_no_images_are_refused(tmp_path):
    work = Work(10, 4)
    with pytest.raises(InputError, match="samples 8 to 10 were asked for, 1 came"):
        fill(ChunkFolder(tmp_path, work.chunks), work, generate, lambda i: samples(range(i.start, min(i.stop, 9))), {})
    with pytest.raises(InputError, match="at least 1"):
        Work(0, 4)
    with pytest.raises(InputError, match="at least 1"):
        Work(4, 0)


class Beside:
    """Whether an image is the sample's own, and that of stage one."""

    def measure(self, images, batch):
        return {"own": (images == batch.image).flatten(1).all(1)}

    def measure_reconstructions(self, images, batch):
        return self.measure(images, batch)

    def result(self, rows):
        return {"samples": rows.column("own").tolist(), "stage one": rows.column("rebuilt.own").tolist()}


def test_reconstructions_are_made_once_a_chunk_and_only_where_a_metric_compares(tmp_path):
    calls = []

    def reconstruct(batch, seeds):
        calls.append(batch.start)
        return batch.image

    work, metrics = Work(5, 2), {"a": Beside(), "b": Beside(), "frechet": colours()}
    folder = ChunkFolder(tmp_path, work.chunks)
    fill(folder, work, generate, samples, measures_of(metrics, reconstruct))
    found = results(folder, {"a": metrics["a"], "b": metrics["b"]})
    assert found["a"] == found["b"] == {"samples": [False] * 5, "stage one": [True] * 5}
    assert calls == [0, 2, 4]
    assert measures_of({"frechet": metrics["frechet"]}, reconstruct) == {"frechet": metrics["frechet"].measure}
