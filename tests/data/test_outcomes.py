"""Each bad or odd sample of docs/bad_samples.yaml, read through the loader between good neighbours."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps

from latentdiff.data.image_reader import ImageReader
from latentdiff.data.plan import SequentialPlan
from latentdiff.data.shards import open_shards, write_shards
from latentdiff.data.stream import BatchLoader, ReadCounts, ShardDataset
from latentdiff.data.transforms import CoverCrop

DOCS = Path(__file__).parents[2] / "docs"
SIZE = 8
MOST_GROWTH_MIB = 200


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def flat(*rgb: int) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), rgb)


def png(width: int, height: int, bits: int, colour_type: int, row: bytes, *between: bytes) -> bytes:
    """A PNG of equal rows, each ``row``; ``between`` are chunks before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE)
HALF = JPEG[: len(JPEG) // 2]
RED, BLUE = (250, 10, 20), (10, 20, 250)
FRAMES = {"save_all": True, "append_images": [flat(*BLUE)], "duration": 100}


def palette() -> bytes:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, transparency=bytes([255, 0]))


def turned(orientation: int) -> tuple[bytes, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.stack([x * 30, y * 30, 0 * x], axis=2).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95, exif=exif)
    return data, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


IMAGES: dict[str, tuple[str, bytes, object]] = {
    **{f"jpeg_cut.{share}": ("jpg", JPEG[: len(JPEG) * share // 100], None) for share in (10, 50, 90)},
    "jpeg_cut_ended": ("jpg", HALF + b"\xff\xd9", None),
    "jpeg_damaged": ("jpg", HALF + bytes(200) + JPEG[len(HALF) + 200 :], None),
    **{f"png_cut.{share}": ("png", PNG[: len(PNG) * share // 100], None) for share in (10, 50, 90)},
    "empty": ("jpg", b"", None),
    "bomb.gray": ("png", png(16384, 16384, 1, 0, bytes(2048)), None),
    "bomb.colour": ("png", png(12288, 12288, 8, 2, bytes(3 * 12288)), None),
    "html": ("jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", None),
    "svg": ("jpg", b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>", None),
    **{f"other_format.{name}": ("png", encoded(flat(*RED), name), None) for name in ("GIF", "BMP", "TIFF")},
    "png_named_jpg": ("jpg", encoded(flat(*RED)), RED),
    "cmyk": ("jpg", encoded(Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "gray": ("jpg", encoded(Image.new("L", (SIZE, SIZE), 77), "JPEG"), (77, 77, 77)),
    "gray_16": ("png", png(SIZE, SIZE, 16, 0, struct.pack(">H", 200 * 257 + 128) * SIZE), (200, 200, 200)),
    "rgb_16": ("png", png(SIZE, SIZE, 16, 2, struct.pack(">3H", 0xC8FF, 0x1000, 0x20FF) * SIZE), (0xC8, 0x10, 0x20)),
    "palette": ("png", palette(), (0, 128, 255)),
    "alpha": ("png", encoded(Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 51))), (51, 102, 204)),
    **{f"exif.{orientation}": ("jpg", *turned(orientation)) for orientation in range(1, 9)},
    "animated.webp": ("webp", encoded(flat(*RED), "WEBP", lossless=True, **FRAMES), RED),
    "animated.png": ("png", encoded(flat(*RED), **FRAMES), RED),
    "one_pixel": ("png", encoded(Image.new("RGB", (1, 1), RED)), RED),
    "thin": ("png", encoded(Image.new("RGB", (1, 20_000), RED)), RED),
}
"""Row of the table and variant -> extension, file, and the colour or pixels it becomes where it is used."""

LONG = "long word " * 100_000
CAPTIONS: dict[str, tuple[dict, str | None]] = {
    "caption_missing.none": ({}, ""),
    "caption_missing.empty": ({"txt": b""}, ""),
    "caption_missing.blank": ({"txt": " \n\t\u3000"}, ""),
    "caption_missing_required": ({"txt": " \n"}, None),
    "caption_not_utf8": ({"txt": "ein Stra\xdfenschild".encode("latin-1")}, "ein Stra\ufffdenschild"),
    "caption_control.nul": ({"txt": b"a\0b\r\nc\x7f"}, "a b c"),
    "caption_control.terminal": ({"txt": "\x1b[31mred\x1b[0m \x9b2J"}, "[31mred [0m 2J"),
    "caption_surrogate": ({"json": b'{"caption": "a \\ud83d b"}'}, "a \ufffd b"),
    "caption_long": ({"txt": LONG}, LONG[:8192].rstrip()),
    "caption_json": ({"txt": '{"caption": "a cat"}'}, '{"caption": "a cat"}'),
    "caption_list": ({"json": {"captions": ["", 3, "first", "second"]}}, "first"),
    "caption_not_text.list": ({"json": {"caption": ["a", "b"]}}, ""),
    "caption_not_text.number": ({"json": {"caption": 3}}, ""),
    "caption_script.emoji": ({"txt": "\U0001f469\u200d\U0001f4bb"}, "\U0001f469\u200d\U0001f4bb"),
    "caption_script.rtl": ({"txt": "\u05d7\u05ea\u05d5\u05dc"}, "\u05d7\u05ea\u05d5\u05dc"),
    "caption_hostile.path": ({"txt": "../../x"}, "../../x"),
    "caption_hostile.format": ({"txt": "%s%n{0.__class__}"}, "%s%n{0.__class__}"),
    "caption_hostile.page": ({"txt": "<script>alert(1)</script>"}, "<script>alert(1)</script>"),
    "json_broken.cut": ({"json": b'{"caption": "a'}, None),
    "json_broken.deep": ({"json": b"[" * 100_000}, None),
    "json_list": ({"json": b'["a"]'}, None),
}
"""Row of the table and variant -> the sample's files beside its image, and its caption where it is used."""


def table() -> dict[str, dict[str, str]]:
    return yaml.safe_load((DOCS / "bad_samples.yaml").read_text(encoding="utf-8"))


def neighbours(folder: Path, odd: dict) -> Path:
    """Shards of the odd sample between two good ones."""
    good = [{"png": encoded(flat(value, value, value)), "txt": f"good {value}"} for value in (1, 2)]
    write_shards([good[0], odd, good[1]], folder)
    return folder


def load(folder: Path, **reading) -> tuple[object, ReadCounts]:
    """The three samples in their order as validation sees them, over a background of (0, 128, 255)."""
    shards = open_shards(folder)
    reader = ImageReader(
        shards, transform=CoverCrop(size=SIZE), seed=0, draw=False, background=(0, 128, 255), **reading
    )
    dataset = ShardDataset(shards, plan=SequentialPlan(3, 3), reader=reader)
    (batch,) = BatchLoader(dataset, range(1))
    return batch, dataset.counts


def check(name: str, batch, counts: ReadCounts, warnings: str) -> None:
    row = table()[name.split(".")[0]]
    if row["outcome"] == "skipped":
        assert counts == ReadCounts(2, 1, 3)
        assert batch.keys == ["00000/000000000", "00000/000000002", "00000/000000002"]
        assert "skipped sample '00000/000000001' in " in warnings
        assert row["detail"] in warnings
        assert len(warnings) < 1000
    else:
        assert counts == ReadCounts(3, 0, 3)
        assert batch.keys == [f"00000/{number:09d}" for number in range(3)]
        assert warnings == ""
    assert batch.image[0].unique().tolist() == [1], "the neighbours are untouched"
    assert batch.image[2].unique().tolist() == [2]


@pytest.mark.parametrize("name", IMAGES)
def test_images(name, tmp_path, caplog):
    if table()[name.split(".")[0]]["detail"] == "Corrupt JPEG data":
        pytest.importorskip("simplejpeg")
    extension, data, becomes = IMAGES[name]
    with caplog.at_level(logging.WARNING):
        batch, counts = load(neighbours(tmp_path / "set", {extension: data, "txt": "odd"}))
    check(name, batch, counts, caplog.text)
    if becomes is not None:
        pixels = batch.image[1].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - np.asarray(becomes)).max() <= (3 if extension == "jpg" else 0)


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions(name, tmp_path, caplog):
    files, becomes = CAPTIONS[name]
    folder = neighbours(tmp_path / "set", {"png": encoded(flat(*RED)), **files})
    with caplog.at_level(logging.WARNING):
        batch, counts = load(folder, require_captions=name == "caption_missing_required")
    check(name, batch, counts, caplog.text)
    if becomes is not None:
        assert batch.caption == ["good 1", becomes, "good 2"]
        becomes.encode()
    assert sorted(tmp_path.iterdir()) == [folder]


def test_every_row_of_the_table_is_made_and_shown():
    assert {name.split(".")[0] for name in [*IMAGES, *CAPTIONS]} == set(table())
    rows = [f"| {row['sample']} | {row['outcome']} | {row['detail']} |" for row in table().values()]
    assert "\n".join(["| sample | outcome | detail |", "|---|---|---|", *rows]) in (DOCS / "data.md").read_text("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_of_them_together_take_little_memory(tmp_path):
    for name, (extension, data, _) in IMAGES.items():
        neighbours(tmp_path / name, {extension: data})
    for name, (files, _) in CAPTIONS.items():
        neighbours(tmp_path / name, {"png": encoded(flat(*RED)), **files})
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 0 <= float(done.stdout) < MOST_GROWTH_MIB


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def print_growth(folders: list[Path]) -> None:
    """MiB by which reading all sets raises this process's peak over that of reading a plain one."""
    torch.set_num_threads(1)
    load(next(folder for folder in folders if folder.name == "png_named_jpg"))
    before = peak_mib()
    for folder in folders:
        load(folder)
    print(peak_mib() - before)


if __name__ == "__main__":
    print_growth(sorted(Path(sys.argv[1]).iterdir()))
