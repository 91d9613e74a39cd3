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
