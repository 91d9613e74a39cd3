from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data import index as index_module
from latentdiff.data.decode import decode_rgb
from latentdiff.data.image_header import upright_size
from latentdiff.data.index import index_shards, read_index, write_index
from latentdiff.data.shards import open_shards, write_shard, write_shards


def turned(pixels, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=format, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_decoded_image(image, format, orientation):
    data = turned(image(9, height=6, width=10), orientation, format)
    assert upright_size(data) == decode_rgb(data).shape[:2]
    assert upright_size(data) == ((10, 6) if orientation > 4 else (6, 10))


def test_the_size_is_read_without_decoding(png, image):
    data = bytearray(png(image(1)))
    struct.pack_into(">II", data, 16, 13_000, 13_000)  # a bomb: 169 million pixels claimed
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    assert upright_size(bytes(data)) == (13_000, 13_000)
    assert upright_size(b"<html>") == upright_size(b"") == (0, 0)


def test_the_index_says_what_the_shards_hold(tmp_path, samples, png, image):
    written = samples(5)
    written[3] = {"jpg": png(image(3, height=5, width=7), "JPEG"), "txt": "é", "json": {}}
    written[4] = {"png": b"no image"}
    write_shards(written, tmp_path / "set", 3)
    shards = open_shards(tmp_path / "set")
    assert shards.sizes().dtype == np.int32
    assert shards.sizes().tolist() == [[8, 8]] * 3 + [[5, 7], [0, 0]]
    assert shards.shard_of().tolist() == [0, 0, 0, 1, 1]
    assert shards.broken().tolist() == [False] * 5
    assert shards.select([3, 0]).sizes().tolist() == [[5, 7], [8, 8]]
    assert shards.select([3, 0]).shard_of().tolist() == [1, 0]
    for number, info in enumerate(read_index(tmp_path / "set").shards):
        content = (tmp_path / "set" / info.name).read_bytes()
        assert (info.bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert info.samples == (shards.shard_of() == number).sum()
        with tarfile.open(tmp_path / "set" / info.name) as tar:
            members = {member.offset_data: tar.extractfile(member).read() for member in tar}
        rows = np.flatnonzero(shards.shard_of() == number).tolist()
        found = [file for row in rows for file in shards.table.files_of(row).values()]
        assert found == [(offset, len(data), zlib.crc32(data)) for offset, data in members.items()]


def test_opening_with_an_index_reads_no_shard(tmp_path, samples, monkeypatch):
    write_shards(samples(4), tmp_path / "set", 2)
    monkeypatch.setattr("latentdiff.data.shards.scan_tar", None)
    assert len(open_shards(tmp_path / "set")) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_from_elsewhere_are_indexed_as_they_are(tmp_path, samples, processes, monkeypatch):
    monkeypatch.setattr(index_module, "_ONE_PROCESS", 0)
    for name in ("ours", "theirs"):
        write_shards([*samples(5), {"txt": "no image"}, {"png": b"broken"}], tmp_path / name, 3)
    folder = tmp_path / "theirs"
    ours = {name: (folder / name).read_bytes() for name in ("index.json", "index.npz")}
    for name in ours:
        (folder / name).unlink()
    for name in ("00000.parquet", "00000_stats.json"):
        (folder / name).write_bytes(b"of img2dataset")
    unindexed = open_shards(folder)
    assert unindexed.sizes() is None
    seen = []
    summary = index_shards(folder, processes=processes, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (sum(info.samples for info in summary.shards), summary.without_image, summary.unreadable) == (6, 1, 1)
    assert {name: (folder / name).read_bytes() for name in ours} == ours
    indexed = open_shards(folder)
    assert indexed.all_keys() == unindexed.all_keys()
    assert [indexed.read_image(i) for i in range(6)] == [unindexed.read_image(i) for i in range(6)]
    assert indexed.fingerprint() == open_shards(tmp_path / "ours").fingerprint() != unindexed.fingerprint()
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".npz", ".parquet", *[".tar"] * 3]


def test_subsets_and_mixtures_keep_each_sample_with_its_files(tmp_path, samples, png, image):
    write_shards(samples(6), tmp_path / "a", 2)
    other = [{"webp": png(image(i), "WEBP"), "json": {"i": i}, "txt": f"other {i}"} for i in range(3)]
    write_shards(other, tmp_path / "b", 2)
    write_shards(samples(2), tmp_path / "c")
    for name in ("index.json", "index.npz"):
        (tmp_path / "c" / name).unlink()
    paths = [tmp_path / name for name in ("b/00001.tar", "a/00002.tar", "c/00000.tar", "a/00000.tar")]
    shards = open_shards(paths)
    texts = [shards.read(i, "txt").decode() for i in range(len(shards))]
    expected = ["other 2", "picture 4", "picture 5", "picture 0", "picture 1", "picture 0", "picture 1"]
    assert texts == expected
    assert [shards.key(i) for i in (0, 2, 4)] == ["b/00001/000010000", "a/00002/000020001", "c/00000/000000001"]
    assert shards.all_keys() == [shards.key(i) for i in range(len(shards))]
    assert shards.has("webp").tolist() == [True] + [False] * 6
    assert shards.has("cls").tolist() == [False] + [True] * 6
    assert shards.sizes() is None
    assert open_shards(paths[:2]).sizes().tolist() == [[8, 8]] * 3


def test_an_older_index_is_named(tmp_path, samples):
    write_shards(samples(2), tmp_path / "set")
    path = tmp_path / "set" / "index.json"
    entry = json.loads(path.read_text())["shards"][0]
    path.write_text(json.dumps({"version": 1, "shards": [entry]}))
    with pytest.raises(InputError, match=r"made by an older version .*; run 'latentdiff shards index .*set'"):
        open_shards(tmp_path / "set")
    index_shards(tmp_path / "set")
    assert len(open_shards(tmp_path / "set")) == 2


def changed_json(change):
    def apply(folder):
        path = folder / "index.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def changed_table(**arrays):
    """A table with other arrays, and the sha256 in index.json to go with it."""

    def apply(folder):
        with np.load(folder / "index.npz") as stored:
            content = {**stored, **arrays}
        np.savez(folder / "index.npz", **content)
        digest = hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest()
        changed_json(lambda index: index["table"].update(sha256=digest))(folder)

    return apply


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "index.json").write_text("{}"), "is not an index of shards"),
        (lambda folder: (folder / "index.json").write_bytes(b"\xff"), "is not an index of shards"),
        (lambda folder: (folder / "index.json").write_text("[1]"), "is not an index of shards"),
        (changed_json(lambda index: index["shards"][0].update(name="../x.tar")), "is not an index of shards"),
        (changed_json(lambda index: index["shards"][0].update(sha256="../x")), "is not an index of shards"),
        (changed_json(lambda index: index["shards"][0].update(samples=-1)), "is not an index of shards"),
        (changed_json(lambda index: index["shards"][0].update(samples=3)), "holds other samples"),
        (changed_json(lambda index: index.update(version=3)), "made by another version"),
        (lambda folder: (folder / "index.npz").unlink(), "missing or does not belong"),
        (lambda folder: (folder / "index.npz").write_bytes(b""), "missing or does not belong"),
        (changed_table(keys=np.array([object()], dtype=object)), "not a table of samples"),
        (changed_table(keys=np.zeros(3, np.float32)), "not a table of samples"),
        (changed_table(first=np.array([0, 5])), "first does not divide sizes"),
        (changed_table(extensions=np.array(["png"])), "do not fit each other"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, samples, harm, message):
    write_shards(samples(2), tmp_path / "set")
    harm(tmp_path / "set")
    with pytest.raises(InputError, match=message) as raised:
        open_shards(tmp_path / "set")
    assert "latentdiff shards index" in str(raised.value)


def test_a_part_of_a_folder_does_not_take_the_place_of_its_index(tmp_path, samples):
    write_shards(samples(6), tmp_path / "set", 2)
    before = (tmp_path / "set" / "index.json").read_bytes()
    for part, missing in (("00001.tar", r"00000\.tar \(and 1 more\)"), ("0000[01].tar", r"00002\.tar")):
        with pytest.raises(InputError, match=rf"{missing} would not be in it; run 'latentdiff shards index .*set'"):
            index_shards(tmp_path / "set" / part)
    assert (tmp_path / "set" / "index.json").read_bytes() == before
    index_shards([tmp_path / "set" / "0000[01].tar", tmp_path / "set" / "00002.tar"])
    with pytest.raises(InputError, match="expected at least 1 process, got 0"):
        index_shards(tmp_path / "set", processes=0)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, samples, monkeypatch):
    write_shards(samples(2), tmp_path / "set")

    def refuse(path, content):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(index_module.durable, "put_file", refuse)
    with pytest.raises(InputError, match=r"cannot be written there \(Read-only file system\); link or copy"):
        index_shards(tmp_path / "set")


def test_a_shard_that_changed_since_it_was_written_is_found(tmp_path, samples):
    info = write_shard(tmp_path, 0, samples(2))
    write_shard(tmp_path, 0, samples(3))
    with pytest.raises(InputError, match=r"00000\.tar has changed since it was written"):
        write_index(tmp_path, [info])
