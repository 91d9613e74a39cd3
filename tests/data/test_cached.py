from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.data.cached import CachedReaders, CacheManifest, dump_array, dump_text, load_text, read_manifest
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.index import INDEX_NAME
from latentdiff.data.labels import Labels
from latentdiff.data.shard_files import sha256_of
from latentdiff.data.shards import open_shards, write_shards
from latentdiff.data.transforms import CoverCrop

SAMPLES = 12


def encoded(number: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.full((3, 2), float(number)), "mask": torch.tensor([True, True, False])}


def captions(i: int) -> list[str]:
    """None, one, two or three."""
    return [f"{i} {word}" for word in "abc"[: i % 4]]


def cached_sample(i: int) -> dict:
    """The caption c of sample i is encoded as 10 i + c, its latent is i, mirrored -i."""
    latent = torch.full((2, 4, 4, 4), float(i))
    made = {"latent.npy": dump_array(latent), "flipped.npy": dump_array(-latent), "cls": i}
    texts = {f"text.{number}.npz": dump_text(encoded(10 * i + number)) for number in range(i % 4)}
    return {**made, **texts, "json": {"captions": captions(i), "i": i}}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    samples = [cached_sample(i) for i in range(SAMPLES)]
    write_shards(samples, folder / "train", 5)
    write_shards(samples[:4], folder / "val")
    (folder / "empty_text.npz").write_bytes(dump_text(encoded(-1)))
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **changed) -> None:
    values = {
        "image_size": 8,
        "latent": {"channels": 4, "factor": 2},
        "first_stage": {"path": "somewhere", "hash": "0" * 64},
        "dtype": "float32",
        "mirrored": True,
        "text": {"model": "tiny"},
        "captions": None,
        "source": {"train": "a", "val": "b"},
        "index": {name: sha256_of(folder / name / INDEX_NAME) for name in ("train", "val")},
        "left_out": 0,
        "made_with": {},
    }
    CacheManifest(**values | changed).save(folder)


def reader(folder: Path, *, draw: bool = True, flip: bool = True, required: bool = False, labels: Labels | None = None):
    shards = open_shards(folder / "train")
    options = {"flip": flip, "labels": labels or Labels(), "require_captions": required}
    return CachedReaders(train=str(folder))(shards, draw=draw, seed=3, **options)


def test_captions_and_mirroring_are_drawn_as_for_the_images(cache: Path, make_set, png) -> None:
    """Image i has the value i in its left half."""
    pixels = [np.zeros((8, 8, 3), np.uint8) for _ in range(SAMPLES)]
    for i, image in enumerate(pixels):
        image[:, :4] = i + 1
    images = make_set([{"png": png(p), "json": {"captions": captions(i)}} for i, p in enumerate(pixels)], 5)
    online = ImageReader(images, transform=CoverCrop(size=8, flip=True), seed=3)
    ours, mirrored = reader(cache), []
    for epoch in range(6):
        for i in range(SAMPLES):
            row, expected = ours.read(epoch, i), online.read(epoch, i)
            assert row.caption == expected.caption
            flipped = bool(expected.image[0, 0, 0] == 0)
            assert (row.latent == (-i if flipped else i)).all()
            drawn = captions(i).index(row.caption) if row.caption else None
            assert (row.text["tokens"] == (-1 if drawn is None else 10 * i + drawn)).all()
            mirrored.append(flipped)
    assert 0.3 < np.mean(mirrored) < 0.7
    assert {ours.read(epoch, 3).caption for epoch in range(20)} == {"3 a", "3 b", "3 c"}


def test_a_batch_holds_what_training_reads(cache: Path) -> None:
    ours = reader(cache, draw=False)
    batch = ours.collate([ours.read(0, i) for i in (1, 2, 4)])
    assert batch["latent_mean"].shape == batch["latent_std"].shape == (3, 4, 4, 4)
    assert batch["latent_mean"][:, 0, 0, 0].tolist() == [1, 2, 4]
    assert batch["caption"] == ["1 a", "2 a", ""]
    assert batch["label"].tolist() == [1, 2, 4]
    assert [attributes["i"] for attributes in batch["attributes"]] == [1, 2, 4]
    assert batch["text_tokens"][:, 0, 0].tolist() == [10, 20, -1]
    assert batch["text_mask"].tolist() == [[True, True, False]] * 3
    assert reader(cache, flip=False).collate([ours.read(0, 1)])["attributes"] is None


def test_no_more_captions_are_drawn_than_are_encoded(cache: Path) -> None:
    write_manifest(cache, captions=2)
    assert {reader(cache).read(epoch, 3).caption for epoch in range(20)} == {"3 a", "3 b"}


def test_samples_without_a_required_caption_are_broken(cache: Path) -> None:
    with pytest.raises(BrokenSampleError, match="no caption"):
        reader(cache, required=True).read(0, 4)


def test_labels_are_held_against_the_classes(cache: Path) -> None:
    with pytest.raises(InputError, match="unknown class 3"):
        reader(cache, labels=Labels(classes=3)).read(0, 3)


def test_pickles_and_other_shapes_are_refused(tmp_path: Path, cache: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    small = dump_array(torch.zeros(2, 4, 2, 2))
    bad = [{"latent.npy": file.getvalue()}, {"latent.npy": small}, {"latent.npy": b"no array"}]
    bad.append({"latent.npy": dump_array(torch.zeros(2, 4, 4, 4)), "txt": "a caption that was not encoded"})
    write_shards(bad, tmp_path / "bad")
    shards = open_shards(tmp_path / "bad")
    ours = CachedReaders(train=str(cache))(
        shards, draw=False, seed=0, flip=False, labels=Labels(), require_captions=False
    )
    for index, message in enumerate(["no numpy array", "has the shape", "no numpy array", "no .text.0.npz"]):
        with pytest.raises(BrokenSampleError, match=message):
            ours.read(0, index)


def test_text_round_trips() -> None:
    text = {"tokens": torch.randn(3, 2, dtype=torch.float16), "mask": torch.tensor([True, False, False])}
    found = load_text(dump_text(text))
    assert found.keys() == text.keys()
    assert all(torch.equal(found[name], text[name]) for name in text)


@pytest.mark.parametrize("kind", ["pickle", "npy", "nothing"])
def test_text_that_is_none_is_broken(kind: str) -> None:
    file = io.BytesIO()
    np.savez(file, tokens=np.array([{}], dtype=object))
    data = {"pickle": file.getvalue(), "npy": dump_array(torch.zeros(2)), "nothing": b""}[kind]
    with pytest.raises(BrokenSampleError, match="no numpy arrays"):
        load_text(data)


def test_flipping_without_mirrored_copies_is_refused(cache: Path) -> None:
    write_manifest(cache, mirrored=False)
    with pytest.raises(InputError, match=r"data.flip: .* no mirrored copies"):
        reader(cache)


def test_a_manifest_knows_its_shards(cache: Path) -> None:
    manifest = read_manifest(cache)
    assert (manifest.image_size, manifest.latent) == (8, {"channels": 4, "factor": 2})
    (cache / "val" / INDEX_NAME).unlink()
    with pytest.raises(InputError, match="is stale: the shards of 'val'"):
        read_manifest(cache)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": 99}', '{"version": 1, "surprise": 2}'])
def test_other_manifests_are_refused(cache: Path, content: str) -> None:
    (cache / "cache.json").write_text(content)
    with pytest.raises(InputError, match="make the cache again"):
        read_manifest(cache)


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no cache"):
        read_manifest(tmp_path)


def test_a_cache_has_no_images(cache: Path) -> None:
    with pytest.raises(BrokenSampleError, match="no image, only cached latents"):
        open_shards(cache / "train").read_image(0)
