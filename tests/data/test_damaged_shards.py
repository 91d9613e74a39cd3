"""What becomes of damaged shards, with and without an index, when a run stops for them and when it skips."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.index import index_shards
from latentdiff.data.shards import DamagedShardsError, open_shards, verify_shards, write_shards

SHARDS, PER_SHARD = 3, 4
BLOCK = 512
FILES = 4
"""Of each sample: png, txt, json and cls, each with a header and one block of content."""
SAMPLE = FILES * 2 * BLOCK
BYTES = 20480
"""Of a shard: tars are filled up to records of 10240 bytes."""


def cut(bytes_kept):
    return lambda content: content[:bytes_kept]


def flip(place):
    return lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def wipe(header):
    return lambda content: content[:header] + bytes(BLOCK) + content[header + BLOCK :]


DAMAGES = {  # name: what happens to the second shard, how many of its four samples are lost
    "cut inside a member": (cut(2 * SAMPLE + BLOCK + 40), 2),
    "cut on a member boundary": (cut(3 * SAMPLE), 1),
    "cut inside a header": (cut(SAMPLE + 200), 3),
    "the end mark alone is gone": (cut(4 * SAMPLE), 0),
    "zeroed header": (wipe(2 * SAMPLE), 0),
    "bad header checksum": (flip(SAMPLE + 150), 0),
    "flipped payload byte": (flip(2 * SAMPLE + BLOCK + 30), 1),
    "flipped caption": (flip(3 * BLOCK), 1),
    "empty": (cut(0), 4),
    "missing": (None, 4),
    "not a tar": (lambda content: b"<html>404</html>" * (len(content) // 16), 4),
    "a page of another length": (lambda content: b"<html>404</html>", 4),
    "gz": (gzip.compress, 4),
    "gz, cut off": (lambda content: gzip.compress(content)[:100], 4),
    "longer": (lambda content: content + bytes(BLOCK), 0),
}
SEEN_BY_HEADERS = set(DAMAGES) - {"flipped payload byte", "flipped caption", "longer"}
"""What a scan of the headers finds where there is no index."""


@pytest.fixture
def damaged_set(tmp_path, samples):
    """Makes three shards, damages the second, and gives (folder, samples as written)."""

    def make(damage):
        written, folder = samples(SHARDS * PER_SHARD), tmp_path / "set"
        write_shards(written, folder, PER_SHARD)
        path = folder / "00001.tar"
        assert path.stat().st_size == BYTES
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes()))
        return folder, written

    return make


def read_all(shards, written):
    """(samples read right, skipped), as a run counts them; a sample that reads as something else is an error."""
    seen, skipped = 0, []
    for index, sample in enumerate(written):
        try:
            assert shards.read_image(index) == sample["png"]
            assert shards.read(index, "txt").decode() == sample["txt"]
            assert shards.read(index, "cls").decode() == str(sample["cls"])
            shards.read(index, "json")
        except BrokenSampleError:
            skipped.append(index)
        else:
            seen += 1
    return seen, skipped


@pytest.mark.parametrize("name", DAMAGES)
def test_strict_reading_stops_and_names_the_shard_with_expected_and_got(damaged_set, name):
    damage, lost = DAMAGES[name]
    folder, _ = damaged_set(damage)
    with pytest.raises(DamagedShardsError, match=r"00001\.tar (has|is missing)") as raised:
        verify_shards(folder)
    (found,) = raised.value.damaged
    assert (found.expected.samples, found.samples) == (PER_SHARD, PER_SHARD - lost)
    assert f"{PER_SHARD - lost} of {PER_SHARD} samples are whole" in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    path = folder / "00001.tar"
    assert found.bytes == (path.stat().st_size if damage else None)
    assert (found.bytes == found.expected.bytes) == (found.sha256 is not None)
    if found.sha256 is None:
        with pytest.raises(DamagedShardsError, match=str(found.expected.bytes)):
            open_shards(folder)


@pytest.mark.parametrize("name", ["flipped payload byte", "flipped caption"])
def test_strict_reading_checks_every_byte_it_returns(damaged_set, name):
    damage, _ = DAMAGES[name]
    folder, written = damaged_set(damage)
    with pytest.raises(InputError, match=r"00001\.tar differs from its index: expected crc32 .* got"):
        read_all(open_shards(folder), written)


@pytest.mark.parametrize("name", DAMAGES)
def test_tolerant_reading_loses_exactly_what_is_damaged(damaged_set, name, caplog):
    damage, lost = DAMAGES[name]
    folder, written = damaged_set(damage)
    shards = open_shards(folder, damaged="skip")
    seen, skipped = read_all(pickle.loads(pickle.dumps(shards)), written)
    assert seen + len(skipped) == len(shards) == len(written)
    assert len(skipped) == lost
    assert all(PER_SHARD <= index < 2 * PER_SHARD for index in skipped)
    known = shards.broken().nonzero()[0].tolist()
    same_bytes = damage is not None and len((folder / "00001.tar").read_bytes()) == BYTES
    assert known == ([] if same_bytes else skipped)
    warnings = [record for record in caplog.records if "00001.tar" in record.getMessage()]
    assert len(warnings) == (0 if same_bytes else 1)


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_without_an_index_the_headers_must_be_whole(damaged_set, name):
    folder, written = damaged_set(DAMAGES[name][0])
    for file in ("index.json", "index.npz"):
        (folder / file).unlink()
    paths = [folder / f"{number:05d}.tar" for number in range(SHARDS)]
    with pytest.raises(InputError, match=r"has no index|00001\.tar"):
        open_shards(paths, damaged="skip")
    if name in SEEN_BY_HEADERS:
        for attempt in (open_shards, index_shards):
            with pytest.raises(InputError, match=r"00001\.tar"):
                attempt(paths)
    else:
        assert len(open_shards(paths)) == len(written)


def test_all_damaged_shards_are_reported_at_once(damaged_set):
    folder, _ = damaged_set(DAMAGES["missing"][0])
    (folder / "00000.tar").write_bytes(b"")
    last = folder / "00002.tar"
    last.write_bytes(flip(BLOCK + 30)(last.read_bytes()))
    with pytest.raises(DamagedShardsError, match="these 3 shards") as raised:
        verify_shards(folder)
    assert [(os.path.basename(d.path), d.samples) for d in raised.value.damaged] == [
        ("00000.tar", 0),
        ("00001.tar", 0),
        ("00002.tar", 3),
    ]
    with pytest.raises(DamagedShardsError, match="these 2 shards"):
        open_shards(folder)


def test_a_shard_that_is_damaged_while_it_is_open(damaged_set):
    folder, written = damaged_set(lambda content: content)
    strict, tolerant = open_shards(folder), open_shards(folder, damaged="skip")
    os.truncate(folder / "00001.tar", 3 * SAMPLE)
    with pytest.raises(InputError, match=r"00001\.tar is cut off: expected \d+ bytes at byte \d+, got 0"):
        read_all(strict, written)
    assert read_all(tolerant, written) == (11, [7])


def test_another_word_for_damaged_is_refused(make_set, samples, tmp_path):
    make_set(samples(1))
    with pytest.raises(InputError, match=r"data\.damaged: expected stop or skip, got 'warn'"):
        open_shards(tmp_path / "set", damaged="warn")


def write_tar(path, *members):
    """Members are (name, content) or whole headers."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_no_member_of_a_hostile_tar_is_written_followed_or_run(tmp_path, samples):
    canary = tmp_path / "canary"
    payload = pickle.dumps(Payload(str(canary)))
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    png = samples(1)[0]["png"]
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(
        folder / "00000.tar",
        ("a.png", png),
        *((f"a.{extension}", payload) for extension in ("pyd", "pkl", "pickle", "pth", "pt")),
        ("../outside.png", png),
        (f"{tmp_path}/absolute.png", png),
        special("a.txt", tarfile.SYMTYPE, str(secret)),
        special("link.png", tarfile.LNKTYPE, "a.png"),
        special("device.png", tarfile.CHRTYPE),
        special("fifo.png", tarfile.FIFOTYPE),
    )
    before = sorted(tmp_path.rglob("*"))
    for indexed in (False, True):
        if indexed:
            index_shards(folder)
        shards = open_shards(folder)
        assert len(shards) == 3
        assert [shards.read_image(index) for index in range(3)] == [png] * 3
        assert shards.read(0, "txt") is None
        assert shards.read(0, "pkl") == payload
    assert sorted(tmp_path.rglob("*")) == sorted([*before, folder / "index.json", folder / "index.npz"])
    with pytest.raises(FileExistsError):
        pickle.loads(payload)  # the payload works, had anyone run it


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return _strike, (self.path,)


def _strike(path):
    raise FileExistsError(path)


def test_the_files_of_a_sample_may_lie_apart(tmp_path, samples):
    png = [sample["png"] for sample in samples(2)]
    path = tmp_path / "00000.tar"
    write_tar(path, ("a.png", png[0]), ("b.png", png[1]), ("b.txt", b"of b"), ("a.txt", b"of a"))
    for indexed in (False, True):
        if indexed:
            index_shards(path)
        shards = open_shards(path)
        assert [shards.read_image(index) for index in range(2)] == png
        assert [shards.read(index, "txt") for index in range(2)] == [b"of a", b"of b"]


def test_a_member_that_claims_more_than_it_can_hold_is_refused(tmp_path, samples):
    huge = tarfile.TarInfo("a.png")
    huge.size = 10 * 10**9
    path = tmp_path / "00000.tar"
    path.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK))
    for attempt in (open_shards, index_shards):
        with pytest.raises(InputError, match=r"00000\.tar: .* claims 10000000000 bytes"):
            attempt(path)


def test_repeated_keys_are_refused_with_their_name(tmp_path, samples):
    png = samples(1)[0]["png"]
    path = tmp_path / "00000.tar"
    write_tar(path, ("a.png", png), ("b.png", png), ("a.png", png))
    for attempt in (open_shards, index_shards):
        with pytest.raises(InputError, match=r"00000\.tar holds 'a\.png' twice"):
            attempt(path)
