from __future__ import annotations

import json
import pickle
import tarfile

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.shard_table import split_name
from latentdiff.data.shards import open_shards, verify_shards, write_shards


def test_round_trip_of_every_file(make_set, samples):
    written = samples(7)
    shards = make_set(written, per_shard=3)
    assert len(shards) == 7
    assert shards.shard_of().tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert shards.all_keys()[3:5] == ["00001/000010000", "00001/000010001"]
    for i, sample in enumerate(written):
        assert shards.read_image(i) == sample["png"]
        assert shards.read(i, "txt").decode() == sample["txt"]
        assert json.loads(shards.read(i, "json")) == {"i": i}
        assert shards.read(i, "cls") == str(i).encode()
        assert shards.read(i, "seg.png") is None


def test_webdataset_reads_the_same_samples(make_set, samples):
    webdataset = pytest.importorskip("webdataset")
    shards = make_set(samples(5), per_shard=3)
    stream = webdataset.WebDataset(shards.table.paths, shardshuffle=False)
    assert [(s["txt"], s["png"]) for s in stream] == [(shards.read(i, "txt"), shards.read_image(i)) for i in range(5)]


def test_equal_samples_give_equal_bytes(tmp_path, samples):
    for name in "ab":
        write_shards(samples(4), tmp_path / name, 3)
    for file in ("00000.tar", "00001.tar", "index.json", "index.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert verify_shards(tmp_path / "a").fingerprint() == open_shards(tmp_path / "b").fingerprint()


def test_an_interrupted_write_leaves_nothing(tmp_path, samples):
    def interrupted():
        yield from samples(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted(), tmp_path / "set", 2)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_destination_is_refused(tmp_path, samples):
    write_shards(samples(1), tmp_path / "set")
    with pytest.raises(InputError, match="not empty"):
        write_shards(samples(1), tmp_path / "set")


def test_patterns_lists_and_folders_name_the_same_shards(make_set, samples, tmp_path):
    paths = make_set(samples(6), per_shard=2).table.paths
    folder = tmp_path / "set"
    for urls in (f"{folder}/{{00000..00002}}.tar", f"{folder}/*.tar", paths, folder):
        assert open_shards(urls).table.paths == paths


def test_keys_of_several_folders_are_distinct(make_set, samples):
    paths = [make_set(samples(2), name=name).table.paths[0] for name in "ab"]
    assert open_shards(paths).all_keys() == [f"{f}/00000/00000000{i}" for f in "ab" for i in range(2)]


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("missing.tar", "missing.tar does not exist"),
        ("set/{00000..00009}.tar", r"00001.tar does not exist \(and 8 more\)"),
        ("set/{00000..00009.tar", "braces"),
        ("set/x*.tar", "does not exist"),
        ("empty", "no .tar"),
        ([], "no shards were named"),
        (["set/00000.tar", "set/00000.tar"], "named twice"),
        ("pipe:cat set/00000.tar", "pipe is not supported"),
        ("| cat set/00000.tar", "a command .* is not supported"),
        ("simplecache::s3://bucket/00000.tar", "a chain .* is not supported"),
        ("ftp://host/00000.tar", "ftp is not supported; expected a local path or one of s3://"),
    ],
)
def test_wrong_names_are_explained(make_set, samples, tmp_path, monkeypatch, urls, message):
    make_set(samples(2))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_shards(urls)


def test_shards_and_index_must_name_each_other(make_set, samples, tmp_path):
    folder = tmp_path / "set"
    make_set(samples(4), per_shard=2)
    (folder / "00001.tar").rename(tmp_path / "00001.tar")
    for urls in (folder, folder / "*.tar", folder / "{00000..00001}.tar"):
        with pytest.raises(InputError, match=r"00001.tar is missing, expected 10240 bytes; 0 of 2 samples are whole"):
            open_shards(urls)
    assert len(open_shards(folder / "00000.tar")) == 2
    (tmp_path / "00001.tar").rename(folder / "00009.tar")
    for urls in (folder, folder / "*.tar", folder / "00009.tar"):
        with pytest.raises(InputError, match=r"00009.tar is not listed"):
            open_shards(urls)


def test_a_changed_payload_is_found_by_its_digest(make_set, samples, tmp_path):
    make_set(samples(2))
    path = tmp_path / "set" / "00000.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    open_shards(path)
    with pytest.raises(InputError, match="sha256"):
        verify_shards(path)


def test_repeated_keys_and_shards_without_images_are_refused(tmp_path, samples):
    with pytest.raises(InputError, match="no images"):
        write_shards([{"txt": "a"}], tmp_path / "none")
    with pytest.raises(InputError, match=r"'same.png' twice"):
        write_shards([{**s, "__key__": "same"} for s in samples(2)], tmp_path / "twice")


def test_keys_without_an_image_are_counted_apart(tmp_path, samples):
    write_shards([*samples(2), {"txt": "no image"}, {"latent.npy": b"cached"}], tmp_path / "set")
    indexed = open_shards(tmp_path / "set")
    assert indexed.all_keys() == [f"00000/00000000{i}" for i in (0, 1, 3)]
    (tmp_path / "set" / "index.json").unlink()
    shards = open_shards(tmp_path / "set")
    assert (shards.all_keys(), shards.table.without_image) == (indexed.all_keys(), 1)


def test_selection_and_pickle_keep_the_samples(make_set, samples):
    part = make_set(samples(6), per_shard=4).select([5, 1])
    part.read(0, "txt")
    copy = pickle.loads(pickle.dumps(part))
    assert [copy.read(i, "txt") for i in range(2)] == [b"picture 5", b"picture 1"]
    assert copy.has("txt").tolist() == [True, True]
    assert copy.select([1]).all_keys() == part.all_keys()[1:]
    assert copy.fingerprint() == part.fingerprint() != part.select([1]).fingerprint()


def test_nothing_is_extracted_from_hostile_names(tmp_path, samples):
    folder = tmp_path / "set"
    write_shards([{**samples(1)[0], "__key__": "../../outside"}], folder)
    assert len(open_shards(folder)) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["00000.tar", "index.json", "index.npz", "set"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001.seg.png", ("0001", "seg.png")),
        ("./a.b/0001.JPG", ("a.b/0001", "jpg")),
        (".hidden.png", ("", "")),
        ("plain", ("", "")),
    ],
)
def test_names_split_as_in_webdataset(name, split):
    assert split_name(name) == split


def test_the_tars_are_plain(make_set, samples):
    with tarfile.open(make_set(samples(1)).table.paths[0], "r:") as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.type) for m in tar} == {(0, 0, 0, 0o644, tarfile.REGTYPE)}


def test_control_characters_of_foreign_keys_are_shown_as_escapes(make_set, png, image):
    shards = make_set([{"__key__": "a\x1b[2J\n\u00e9", "png": png(image(1))}])
    assert shards.where(0).startswith("'00000/a\\x1b[2J\\n\u00e9' in ")
    assert shards.key(0) == "00000/a\x1b[2J\n\u00e9"
