from __future__ import annotations

import io
import tarfile

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.tar_scan import scan_tar

FILES = {"a.txt": b"", "b.bin": b"x" * 512, "dir/c.bin": b"y" * 700, "d/" * 60 + "long.bin": b"z" * 3}


def write(path, format, mtime=0.0):
    with tarfile.open(path, "w", format=format) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_finds_the_bytes_that_tarfile_finds(tmp_path, format):
    path = tmp_path / "x.tar"
    write(path, format, mtime=1.5 if format == tarfile.PAX_FORMAT else 1)  # a fraction makes an extended header
    content = path.read_bytes()
    assert {m.name: content[m.offset : m.offset + m.size] for m in scan_tar(str(path))} == FILES


@pytest.mark.parametrize("cut", [300, 512, 1024, 2000, 4000])
def test_a_tar_cut_anywhere_is_refused(tmp_path, cut):
    path = tmp_path / "x.tar"
    write(path, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"x\.tar is cut off"):
        list(scan_tar(str(path)))


def test_a_wiped_header_is_refused_although_it_looks_like_the_end(tmp_path):
    path = tmp_path / "x.tar"
    write(path, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    offset = [m.offset for m in scan_tar(str(path))][2]
    content[offset - 512 : offset] = bytes(512)
    path.write_bytes(content)
    with pytest.raises(InputError, match="data after that"):
        list(scan_tar(str(path)))


def test_a_flipped_bit_in_a_header_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    write(path, tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[[m.offset for m in scan_tar(str(path))][1] - 512] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged: the header at byte"):
        list(scan_tar(str(path)))


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"\x1f\x8b" + b"g" * 2000, "not an uncompressed tar")]
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(scan_tar(str(path)))


def extended(path, records, size=None):
    """A tar whose only file has these pax records, and ``size`` in its plain header's field of 12 bytes."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        header[124:136] = size
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    block = records + bytes(-len(records) % 512)
    path.write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + block + bytes(header) + bytes(1024))
    return str(path)


@pytest.mark.parametrize(
    "records",
    [
        b"14 size=-1536\n",
        b"13 size=abcd\n",
        b"12 size=1_0\n",
        b"8 size=\n",
        b"0 path=\n",
        b"1x path=\n",
        b"3 path=y\n",
        b"99 path=y\n",
        b"11 path=y\n",
        b"path=y\n",
        b"4 =\n",
        b"9 pathyy\n",
        b"9 path=y\n9 path=yx",
        b"9 path=y\n\0\0rest",
        b"99999999999999999999 path=y\n",
    ],
)
def test_extended_headers_that_are_not_well_formed_are_refused(tmp_path, records):
    with pytest.raises(InputError, match=r"x\.tar is damaged: an extended header at byte 512 (has no|gives the size)"):
        list(scan_tar(extended(tmp_path / "x.tar", records)))


@pytest.mark.parametrize("records", [b"", b"8 a=b=c\n", b"\0\0", b"10 size=0\n"])
def test_well_formed_extended_headers_are_read(tmp_path, records):
    assert list(scan_tar(extended(tmp_path / "x.tar", b"9 path=y\n" + records))) == [("y", 1536, 0)]


@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\x00", b"\x80" + b"\xff" * 11, b"-0000001000\0", b"-1536".ljust(12)])
def test_sizes_that_are_negative_or_huge_are_refused(tmp_path, size):
    with pytest.raises(InputError, match=r"x\.tar( is damaged: the header at byte 1024|: the member at .* claims)"):
        list(scan_tar(extended(tmp_path / "x.tar", b"9 path=y\n", size)))
