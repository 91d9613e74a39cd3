"""Shards that a stranger made: commands for URLs, pickles and paths in tars, an index that lies."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource

TOUCH = "touch canary"


def data_of(urls: object, **options: object) -> DataModule:
    source = ShardSource(train=urls, held_back=0.5)
    return DataModule(source=source, image_size=8, global_batch=2, seed=0, num_workers=0, **options)


def read_all(data: DataModule) -> int:
    data.setup()
    return sum(len(batch.keys) for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader)


@pytest.mark.parametrize(
    "url",
    [
        f"pipe:{TOUCH}",
        f"pipe:{TOUCH} #.tar",
        f"pipe:{TOUCH}|00000.tar",
        f"  pipe:{TOUCH}.tar",
        f"PIPE:{TOUCH}.tar",
        f"| {TOUCH}",
        f"|{TOUCH}; echo .tar",
        f"00000.tar | {TOUCH}",
        f"00000.tar; {TOUCH}",
        f"$({TOUCH}).tar",
        f"`{TOUCH}`.tar",
        f"{{00000..00001}}.tar; {TOUCH}",
        f"simplecache::pipe:{TOUCH}",
        f"shell://{TOUCH}",
        f"ssh://host/$({TOUCH}).tar",
        f"github://a:b@/x.tar::{TOUCH}",
        f"gopen://{TOUCH}",
        "../../../../etc/passwd",
        "/dev/zero",
    ],
)
def test_urls_of_shards(place, url: str) -> None:
    for urls in (url, [url], [url, url]):
        with place.attempt(f"the shards {urls}"):
            read_all(data_of(urls))


def image() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def member(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content))


PICKLED = (
    ".pkl",
    ".pickle",
    ".pyd",
    ".pth",
    ".pt",
    ".npy",
    ".npz",
    ".ckpt",
    ".cls",
    ".json",
    ".txt",
    ".seg.png",
    ".ten",
)
LINKS = {
    "symlink": {"type": tarfile.SYMTYPE},
    "hard link": {"type": tarfile.LNKTYPE},
    "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "fifo": {"type": tarfile.FIFOTYPE},
}


def tar_of(place, extra: Callable[[tarfile.TarFile], None]) -> Path:
    folder = place.folder / "shards"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(4):
            member(tar, f"{number:04d}.png", image())
        extra(tar)
    return folder


@pytest.mark.parametrize("suffix", PICKLED)
@pytest.mark.parametrize("key", ["0003", "0004"])
def test_pickled_members(place, payload, suffix: str, key: str) -> None:
    """Beside an image, and as a sample of their own."""
    payload = pickle.dumps(payload(place.canary))
    folder = tar_of(place, lambda tar: member(tar, f"{key}{suffix}", payload))
    with place.attempt(f"{suffix} of {key}", harmless=True), contextlib.suppress(InputError):
        assert read_all(data_of(str(folder), max_broken=1.0)) >= 3


@pytest.mark.parametrize(
    "name", ["../escaped", "../../escaped", "/{folder}/escaped", "a/../../escaped", "./../escaped"]
)
@pytest.mark.parametrize("kind", ["file", *LINKS])
def test_names_and_kinds_of_members(place, name: str, kind: str) -> None:
    """Nothing is written outside, or anywhere; what a link or a device leads to is not read."""
    outside = place.folder / "outside.png"
    outside.write_bytes(image())
    name = name.format(folder=str(place.folder).strip("/"))
    fields = {"linkname": str(outside), **LINKS[kind]} if kind in LINKS else {}
    content = image() if kind == "file" else b""
    folder = tar_of(place, lambda tar: member(tar, f"{name}.png", content, **fields))
    before = sorted(place.folder.parents[1].rglob("*"))
    with place.attempt(f"{kind} {name}", harmless=True), contextlib.suppress(InputError):
        assert read_all(data_of(str(folder))) in ((4,) if kind in LINKS else (4, 5))
    assert sorted(place.folder.parents[1].rglob("*")) == before


def reindexed(folder: Path, arrays: dict[str, np.ndarray], **shard: object) -> None:
    """Changes the index, hashes and all."""
    table = folder / "index.npz"
    with np.load(table) as stored:
        np.savez(table, **{**stored, **arrays})
    index = json.loads((folder / "index.json").read_text())
    index["table"]["sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    index["shards"][0].update(shard)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "array", ["keys", "files", "first", "first_file", "first_letter", "sizes", "extensions", "new"]
)
def test_objects_in_an_index(place, payload, array: str) -> None:
    folder = place.folder / "set"
    write_shards([{"png": image(), "txt": "a"} for _ in range(4)], folder)
    assert read_all(data_of(str(folder))) == 4
    reindexed(folder, {array: np.array([payload(place.canary)] * 4, dtype=object)})
    with place.attempt(f"an index with objects as {array}", harmless=array == "new"):
        read_all(data_of(str(folder)))


@pytest.mark.parametrize("field", ["block", "size"])
@pytest.mark.parametrize("value", [1 << 20, (1 << 32) - 1])
def test_an_index_that_lies_about_places(place, field: str, value: int) -> None:
    folder = place.folder / "set"
    write_shards([{"png": image()} for _ in range(4)], folder)
    with np.load(folder / "index.npz") as stored:
        files = stored["files"].copy()
    files[field] = value
    reindexed(folder, {"files": files})
    with place.attempt(f"an index with {field} {value}"):
        read_all(data_of(str(folder)))


@pytest.mark.parametrize(
    "name", ["../outside.tar", "/{outside}", "a/../../outside.tar", f"pipe:{TOUCH}", "s3://host/0.tar"]
)
def test_an_index_that_leads_elsewhere(place, name: str) -> None:
    folder = place.folder / "set"
    write_shards([{"png": image()} for _ in range(4)], folder)
    shutil.copy(folder / "00000.tar", place.folder / "outside.tar")
    outside = str(place.folder / "outside.tar").strip("/")
    reindexed(folder, {}, name=name.format(outside=outside))
    with place.attempt(f"an index with the shard {name}"):
        read_all(data_of(str(folder)))


def test_a_key_is_never_a_place(place) -> None:
    """Captions and keys with the syntax of shells, templates, terminals and paths are texts."""
    texts = [f"$({TOUCH})", f"`{TOUCH}`", "{0.__class__}", "%n%s", "\x1b]0;x\x07", "<script>", "${oc.env:HOME}", "../x"]
    samples = [{"__key__": f"../{i}", "png": image(), "txt": text} for i, text in enumerate(texts)]
    write_shards(samples, place.folder / "set")
    before = sorted(place.folder.rglob("*"))
    with place.attempt("captions", harmless=True):
        data = data_of(str(place.folder / "set"))
        data.setup()
        assert {text for batch in data.train_dataloader() for text in batch.caption} < set(texts)
    assert sorted(place.folder.rglob("*")) == before
