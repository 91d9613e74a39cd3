"""Parquet files with images inside, and of image paths."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns
from latentdiff.data.making.parquet import parquet_source


def test_images_inside_are_stored_as_they_are(tmp_path, png, noise, made, entries):
    images = [png(noise(i), "JPEG") for i in range(10)]
    images[4] = None
    columns = {
        "image": [image and {"bytes": image, "path": f"{i}.jpg"} for i, image in enumerate(images)],
        "text": [f"number {i}" for i in range(10)],
        "stars": list(range(10)),
        "thumbnail": [b"xx"] * 10,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=3)
    source = parquet_source(tmp_path / "t.parquet", Columns(), tmp_path)
    assert [row.name for row in source.rows(5)] == [f"t.parquet row {i}" for i in range(5, 10)]
    shards, summary = made(source)
    kept = [i for i in range(10) if i != 4]
    assert [shards.read(i, "jpg") for i in range(9)] == [images[i] for i in kept]
    assert [(v["caption"], v["stars"]) for v in entries(shards)] == [(f"number {i}", i) for i in kept]
    assert "thumbnail" not in entries(shards)[0]
    assert [(note["name"], note["what"]) for note in summary.notes] == [("t.parquet row 4", "bad row")]


def test_a_binary_column_is_the_images_and_a_text_column_their_paths(pictures, made, tmp_path):
    binary = pa.table({"image": [(pictures / "0.png").read_bytes()], "caption": [["a", "b"]]})
    pq.write_table(binary, tmp_path / "binary.parquet")
    shards, _ = made(parquet_source(tmp_path / "binary.parquet", Columns(), tmp_path))
    assert (shards.read(0, "png"), shards.read(0, "txt")) == ((pictures / "0.png").read_bytes(), b"a")
    pq.write_table(pa.table({"image": ["1.png", "1.png"], "caption": ["a", "b"]}), tmp_path / "paths.parquet")
    rows = list(parquet_source(tmp_path / "paths.parquet", Columns(), pictures).rows(0))
    assert [(row.name, row.captions) for row in rows] == [("1.png", ("a", "b"))]


def test_what_is_no_table_of_images_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        parquet_source(tmp_path / "t.parquet", Columns(), tmp_path)
    pq.write_table(pa.table({"picture": ["a"], "caption": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="its columns are 'picture', 'caption'"):
        parquet_source(tmp_path / "t.parquet", Columns(), tmp_path)
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), tmp_path / "t.parquet"
    )
    with pytest.raises(InputError, match="has no rows"):
        parquet_source(tmp_path / "t.parquet", Columns(), tmp_path)
