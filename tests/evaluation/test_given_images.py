import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.evaluation.card import protocol
from latentdiff.evaluation.engine import Work
from latentdiff.evaluation.given_images import GivenImages, ImageArray, ImageFolder, image_set, subset
from latentdiff.evaluation.prompts import PromptFile
from latentdiff.types import Batch


def pictures(n=7, height=8, width=6):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def saved(folder, arrays, suffix="png", **options):
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}.{suffix}", **options)
    return folder


def as_tensor(arrays):
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)


def all_of(images):
    return images.read(range(len(images)))


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True, "exact": True})])
def test_a_folder_gives_its_lossless_images_sorted_by_name(tmp_path, suffix, options):
    arrays = pictures()
    images = image_set(saved(tmp_path / "f", arrays[::-1], suffix, **options))
    assert (len(images), images.size, images.container) == (7, (8, 6), suffix)
    assert torch.equal(all_of(images), as_tensor(arrays[::-1].copy()))
    assert images.identity()["lossy"] == 0


def test_names_below_folders_are_sorted_and_other_files_passed_over(tmp_path):
    arrays = pictures(3)
    saved(tmp_path / "f", arrays[:1])
    saved(tmp_path / "f" / "a", arrays[1:])
    (tmp_path / "f" / "notes.txt").write_text("x")
    (tmp_path / "f" / ".hidden.png").write_text("x")
    assert ImageFolder(tmp_path / "f").names == ["000.png", "a/000.png", "a/001.png"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_is_read_in_any_order_without_all_of_it(tmp_path, save):
    arrays = pictures()
    save(tmp_path / "x.npz", arr_0=arrays, arr_1=np.arange(7))
    images = image_set(tmp_path / "x.npz")
    assert (len(images), images.size, images.container) == (7, (8, 6), "npz")
    for wanted in ([0, 1, 2], [3, 6], [1, 4]):
        assert torch.equal(images.read(wanted), as_tensor(arrays[wanted]))


def jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "options"), [("jpg", {}), ("webp", {"quality": 90}), ("webp", {"exif": b"Exif\0\0"})]
)
def test_lossy_images_need_the_flag_and_the_card_counts_them(tmp_path, suffix, options):
    folder = saved(tmp_path / "f", pictures(2), suffix, **options)
    saved(folder, pictures(1))
    with pytest.raises(InputError, match=r"2 of 3 files .* JPEG or lossy WebP, '000\..*lossy=true"):
        ImageFolder(folder)
    assert ImageFolder(folder, lossy=True).identity()["lossy"] == 2


def test_a_jpeg_that_is_called_png_is_lossy(tmp_path):
    (tmp_path / "a.png").write_bytes(jpeg(pictures(1)[0]))
    with pytest.raises(InputError, match="JPEG or lossy WebP"):
        ImageFolder(tmp_path)


def test_folders_at_fault_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        image_set(tmp_path / "empty")
    saved(tmp_path / "f", [pictures(1)[0], pictures(1, 9, 6)[0]])
    with pytest.raises(InputError, match=r"'001.png' has 9x6 pixels, '000.png' has 8x6"):
        image_set(tmp_path / "f")
    (tmp_path / "f" / "001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable"):
        image_set(tmp_path / "f")
    with pytest.raises(InputError, match="neither a folder"):
        image_set(tmp_path / "none")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "expected 'arr_0' as uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "expected 'arr_0' as uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "expected 'arr_0' as uint8"),
        (np.asfortranarray(pictures()), "in C order"),
        (np.array([object()]), "plain numbers|pickled"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array, said):
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(InputError, match=said):
        ImageArray(tmp_path / "x.npz")


def test_a_file_without_images_and_one_cut_short_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3))
    with pytest.raises(InputError, match="has no array 'arr_0'; it has mu"):
        image_set(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", arr_0=pictures())
    content = (tmp_path / "y.npz").read_bytes()
    (tmp_path / "y.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        image_set(tmp_path / "y.npz")


def given(tmp_path, count, seed=0, prompts=None):
    np.savez(tmp_path / "x.npz", arr_0=pictures(20))
    images = ImageArray(tmp_path / "x.npz")
    return GivenImages(images, count=count, seed=seed, device="cpu", prompts=prompts)


def test_images_and_captions_of_a_chunk_belong_together(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"{i}\n" for i in range(20)))
    source = given(tmp_path, 9, prompts=PromptFile(tmp_path / "p.txt"))
    assert len(source.samples) == 9
    numbers = []
    for chunk in (range(0, 4), range(4, 8), range(8, 9)):
        batch = source.samples(chunk)
        images = source(Batch(keys=batch.keys, start=chunk.start, total=9), [0] * len(chunk))
        chosen = [int(caption) for caption in batch.caption]
        assert batch.keys == [str(i) for i in chosen]
        assert torch.equal(images, as_tensor(pictures(20)[chosen]))
        numbers += chosen
    assert numbers == sorted(set(numbers)) == subset(20, 9, 0)


def test_the_subset_depends_on_the_seed_alone():
    assert subset(20, 20, 5) == list(range(20))
    assert subset(1000, 30, 1) == subset(1000, 30, 1) != subset(1000, 30, 2)


def test_other_counts_are_refused(tmp_path):
    with pytest.raises(InputError, match="21 are wanted, there are 20 images; lower num_images to 20"):
        given(tmp_path, 21)
    (tmp_path / "p.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 captions for 20 images"):
        given(tmp_path, 9, prompts=PromptFile(tmp_path / "p.txt"))


@pytest.mark.parametrize(("names", "said"), [(["0.png", "1.png", "10.png", "2.png"], "'10.png' comes before '2.png'")])
def test_captions_of_unpadded_names_are_refused(tmp_path, names, said):
    (tmp_path / "p.txt").write_text("a\n" * len(names))
    for name, array in zip(names, pictures(len(names))):
        Image.fromarray(array).save(tmp_path / name)
    source = {"count": len(names), "seed": 0, "device": "cpu"}
    GivenImages(ImageFolder(tmp_path), **source)
    with pytest.raises(InputError, match=f"{said}.*pad the numbers"):
        GivenImages(ImageFolder(tmp_path), **source, prompts=PromptFile(tmp_path / "p.txt"))


@pytest.mark.parametrize("names", [["a/09.png", "a/10.png", "b/1.png"], ["1.png", "01.png"], ["x.png", "a-b.png"]])
def test_captions_of_names_in_one_order_are_taken(tmp_path, names):
    (tmp_path / "p.txt").write_text("a\n" * len(names))
    for name, array in zip(names, pictures(len(names))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / name)
    prompts = PromptFile(tmp_path / "p.txt")
    given = GivenImages(ImageFolder(tmp_path), count=len(names), seed=0, device="cpu", prompts=prompts)
    assert given.samples(range(len(names))).keys == sorted(names)


def test_the_card_names_the_seed_where_it_chooses_and_no_rule_of_drawing(tmp_path):
    def told(count, seed):
        source, work = given(tmp_path, count, seed), Work(count, 5, seed=seed)
        return protocol(generate=source, metrics={}, conditions={}, work=work, resolution=(8, 6), container="npz")

    assert told(20, 0) == told(20, 1)
    assert told(9, 0) != told(9, 1)
    assert told(9, 1)["generation"]["seed"] == 1
    assert "seeds" not in told(20, 0)
    assert "uint8" not in json.dumps(told(20, 0))


def test_marks_tell_other_sizes_from_other_times_wherever_the_files_lie(tmp_path):
    images = ImageFolder(saved(tmp_path / "f", pictures(2)))
    before = images.identity()
    (tmp_path / "f").rename(tmp_path / "g")
    moved = ImageFolder(tmp_path / "g").identity()
    assert (moved["listing"], moved["stamp"]) == (before["listing"], before["stamp"])
    os.utime(tmp_path / "g" / "001.png", ns=(1, 1))
    touched = ImageFolder(tmp_path / "g").identity()
    assert touched["listing"] == before["listing"]
    assert touched["stamp"] != before["stamp"]
    Image.new("RGB", (6, 8)).save(tmp_path / "g" / "001.png")
    assert ImageFolder(tmp_path / "g").identity()["listing"] != before["listing"]
