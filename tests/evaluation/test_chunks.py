import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import index_chunks


def columns(chunk):
    return {
        "m/number": torch.tensor([i * 0.1 for i in chunk], dtype=torch.float64),
        "m/flag": torch.tensor([i % 2 == 0 for i in chunk]),
        "m/said": [{"text": f"ü {i}", "none": None} for i in chunk],
        "other/number": torch.zeros(len(chunk)),
    }


@pytest.fixture
def folder(tmp_path):
    """Seven images in chunks of three, written in another order."""
    made = ChunkFolder(tmp_path, index_chunks(7, 3))
    for chunk in reversed(made.chunks):
        made.write(chunk, columns(chunk), torch.full((len(chunk), 3, 2, 2), chunk.start, dtype=torch.uint8))
    return made


def test_rows_come_back_in_the_order_of_the_indices(folder):
    rows = ChunkFolder(folder.folder, folder.chunks).rows("m/")
    expected = columns(range(7))
    assert len(rows) == 7
    assert torch.equal(rows.column("number"), expected["m/number"])
    assert rows.column("number").dtype == torch.float64
    assert torch.equal(rows.column("flag"), expected["m/flag"])
    assert rows.column("said") == expected["m/said"]
    assert [len(block) for block in rows.blocks("number")] == [3, 3, 1]
    with pytest.raises(KeyError):
        rows.column("nothing")


def test_what_is_there_and_what_is_not(folder):
    assert folder.done() == 7
    (folder.folder / "000000003-000003.npz").unlink()
    assert [folder.has(chunk) for chunk in folder.chunks] == [True, False, True]
    assert folder.done() == 4
    with pytest.raises(InputError, match=r"000000003-000003.npz' cannot be read"):
        folder.rows("m/").column("number")


def test_chunks_of_another_size_do_not_count(folder):
    other = ChunkFolder(folder.folder, index_chunks(7, 4))
    assert other.done() == 0
    assert not any(map(other.has, other.chunks))
    longer = ChunkFolder(folder.folder, index_chunks(9, 3))
    assert [longer.has(chunk) for chunk in longer.chunks] == [True, True, False], "the short last one is another"


@pytest.mark.parametrize("kept", [slice(0), slice(10), slice(-40)])
def test_a_damaged_file_is_named_and_not_read(folder, kept):
    path = folder.folder / "000000000-000003.npz"
    path.write_bytes(path.read_bytes()[kept])
    with pytest.raises(InputError, match=r"000000000-000003.npz' cannot be read .*remove it"):
        folder.rows("m/").column("number")


def test_pictures_are_the_first_that_were_kept(folder, tmp_path):
    assert folder.pictures(4)[:, 0, 0, 0].tolist() == [0, 0, 0, 3]
    part = ChunkFolder(tmp_path / "part", index_chunks(4, 2))
    part.write(range(0, 2), {}, torch.ones(1, 3, 2, 2, dtype=torch.uint8))
    part.write(range(2, 4), {})
    assert len(part.pictures(9)) == 1


def test_columns_have_a_row_per_image(folder):
    with pytest.raises(ValueError, match="'x' has 2 rows for 3 images"):
        folder.write(range(0, 3), {"x": [1, 2]})
