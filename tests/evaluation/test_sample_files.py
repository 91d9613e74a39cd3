import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.evaluation.engine import index_chunks
from latentdiff.evaluation.sample_files import NpzSamples, PngSamples
from latentdiff.types import Batch


def batch(chunk):
    return Batch(keys=[str(i) for i in chunk], label=torch.tensor(list(chunk)), start=chunk.start)


def images(chunk, side=4):
    return torch.stack([torch.full((3, side, side), i % 256, dtype=torch.uint8) for i in chunk])


def test_png_files_are_named_by_the_index(tmp_path):
    files = PngSamples(tmp_path)
    for chunk in (range(3, 5), range(0, 3)):
        files.keep(images(chunk), batch(chunk))
    assert files.finish([range(0, 3), range(3, 5)]) == tmp_path / "samples"
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert np.asarray(Image.open(tmp_path / "samples" / "000003.png")).max() == 3


@pytest.mark.parametrize("labels", [True, False])
def test_npz_is_adm_s(tmp_path, labels):
    chunks = index_chunks(7, 3)
    for chunk in reversed(chunks):
        NpzSamples(tmp_path, tmp_path / "scratch", labels=labels).keep(images(chunk), batch(chunk))
    path = NpzSamples(tmp_path, tmp_path / "scratch", labels=labels).finish(chunks)
    assert path == tmp_path / "samples.npz"
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == (["arr_0", "arr_1"] if labels else ["arr_0"])
        assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (7, 4, 4, 3))
        assert arrays["arr_0"][:, 0, 0, 0].tolist() == list(range(7))
        if labels:
            assert arrays["arr_1"].dtype == np.int64
            assert arrays["arr_1"].tolist() == list(range(7))


def test_joining_holds_one_chunk_in_memory(tmp_path):
    chunks = index_chunks(64, 4)
    files = NpzSamples(tmp_path, tmp_path / "scratch", labels=False)
    for chunk in chunks:
        files.keep(images(chunk, side=128), batch(chunk))
    tracemalloc.start()
    files.finish(chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 4 * 128 * 128 * 3


def test_a_chunk_that_is_gone_is_named(tmp_path):
    files = NpzSamples(tmp_path, tmp_path / "scratch", labels=False)
    files.keep(images(range(2)), batch(range(2)))
    with pytest.raises(InputError, match=r"000000002\.npz' is gone"):
        files.finish([range(0, 2), range(2, 4)])


def test_png_files_of_a_larger_evaluation_before_do_not_stay(tmp_path):
    before, files = PngSamples(tmp_path), PngSamples(tmp_path)
    before.keep(images(range(6)), batch(range(6)))
    (tmp_path / "samples" / "mine.png").write_bytes(b"")
    files.keep(images(range(4)), batch(range(4)))
    files.finish(index_chunks(4, 3))
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [*(f"{i:06d}.png" for i in range(4)), "mine.png"]
