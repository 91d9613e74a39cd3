"""Remote shards from a server of our own that can fail, and from fsspec's memory."""

from __future__ import annotations

import errno
import fcntl
import http.server
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections import Counter
from functools import partial

import fsspec
import pytest

from latentdiff.config.errors import InputError
from latentdiff.data import fetching, shard_names
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.labels import Labels
from latentdiff.data.remote import ShardCache
from latentdiff.data.sample import check_labels, within_reach
from latentdiff.data.shards import DamagedShardsError, open_shards, verify_shards, write_shards

SHARDS, PER_SHARD = 3, 2


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and lets ``faults`` answer in its place: name -> list of faults, one
    for each of the first requests."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked = Counter()
        self.faults = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        name = os.path.basename(self.path)
        self.server.asked[name] += 1
        pending = self.server.faults.get(name, [])
        if pending:
            pending.pop(0)(self)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


def answer(status):
    return lambda handler: handler.send_error(status)


def sent(handler, change, length=None):
    with open(handler.translate_path(handler.path), "rb") as file:
        content = file.read()
    handler.send_response(200)
    handler.send_header("Content-Length", str(length or len(content)))
    handler.end_headers()
    handler.wfile.write(change(content))
    handler.close_connection = True


def cut_off(handler):
    sent(handler, lambda content: content[: len(content) // 2])


def corrupted(handler):
    sent(handler, lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:])


def slow(handler):
    time.sleep(0.1)
    sent(handler, lambda content: content)


@pytest.fixture
def served(tmp_path, samples):
    """A server with a set of three shards."""
    write_shards(samples(SHARDS * PER_SHARD), tmp_path / "served" / "set", PER_SHARD)
    server = Server(tmp_path / "served")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    return partial(ShardCache, folder=str(tmp_path / "cache"), first_wait=0.01)


def texts(shards):
    return [shards.read(index, "txt").decode() for index in range(len(shards))]


ALL = [f"picture {number}" for number in range(SHARDS * PER_SHARD)]


def stored(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_file())


@pytest.mark.parametrize("urls", ["{}/set", "{}/set/*.tar", "{}/set/{{00000..00002}}.tar"])
def test_shards_are_fetched_when_they_are_read_and_once(served, cache, urls, tmp_path):
    shards = open_shards(urls.format(served.url), cache=cache())
    assert served.asked == {"index.json": 1, "index.npz": 1}
    assert shards.read(2, "txt") == b"picture 2"
    assert served.asked["00001.tar"] == 1
    assert texts(shards) == ALL
    again = open_shards(urls.format(served.url), cache=cache())
    assert texts(again) == ALL
    assert served.asked == {"index.json": 2, "index.npz": 1, **{f"{i:05d}.tar": 1 for i in range(SHARDS)}}
    local = open_shards(tmp_path / "served" / "set")
    assert again.all_keys() == local.all_keys()
    assert again.sizes().tolist() == local.sizes().tolist()
    assert again.fingerprint() == local.fingerprint()
    assert stored(tmp_path) == sorted(local.table.digests)


@pytest.mark.parametrize("fault", [answer(503), answer(429), cut_off, corrupted])
def test_a_failure_that_passes_is_survived(served, cache, fault):
    served.faults = {"index.json": [answer(500)], "index.npz": [fault], "00001.tar": [fault, answer(502)]}
    shards = open_shards(f"{served.url}/set", cache=cache(retries=3))
    assert texts(shards) == ALL
    assert served.asked["00001.tar"] == 3


def test_a_failure_that_lasts_is_told_after_the_last_try(served, cache, tmp_path):
    served.faults = {"00001.tar": [answer(503)] * 9}
    shards = open_shards(f"{served.url}/set", cache=cache(retries=2), damaged="skip")
    with pytest.raises(InputError, match=r"00001\.tar could not be fetched in 3 tries, .*503"):
        shards.read(2, "txt")
    assert served.asked["00001.tar"] == 3
    assert stored(tmp_path) == []


@pytest.mark.parametrize(
    ("faults", "told", "tries"),
    [
        ([answer(404)] * 9, "cannot be fetched: FileNotFoundError", 1),
        ([answer(403)] * 9, "cannot be fetched: .*403", 1),
        ([corrupted] * 9, "expected sha256 [0-9a-f]{64}, got [0-9a-f]{64} in 10240 bytes", 2),
    ],
)
def test_a_shard_that_cannot_be_had_stops_or_is_skipped(served, cache, faults, told, tries, tmp_path):
    served.faults = {"00001.tar": list(faults)}
    strict = open_shards(f"{served.url}/set", cache=cache())
    with pytest.raises(InputError, match=rf"00001\.tar cannot be read \(.*{told}"):
        strict.read(2, "txt")
    assert served.asked["00001.tar"] == tries
    tolerant = open_shards(f"{served.url}/set", cache=cache(), damaged="skip")
    seen, skipped = [], []
    for index in range(len(tolerant)):
        try:
            seen.append(tolerant.read(index, "txt").decode())
        except BrokenSampleError:
            skipped.append(index)
    assert (seen, skipped) == (ALL[:2] + ALL[4:], [2, 3])
    assert served.asked["00001.tar"] == 2 * tries  # refused once, not asked for again
    assert len(stored(tmp_path)) == 2


def test_remote_shards_need_an_index(served, cache, tmp_path):
    (tmp_path / "served" / "set" / "index.json").unlink()
    for urls in (f"{served.url}/set", f"{served.url}/set/00000.tar"):
        with pytest.raises(InputError, match="latentdiff shards index FOLDER"):
            open_shards(urls, cache=cache())


def test_a_shard_that_the_index_does_not_list_is_refused(served, cache):
    with pytest.raises(InputError, match=r"00009\.tar is not listed"):
        open_shards(f"{served.url}/set/00009.tar", cache=cache())


def test_a_changed_remote_set_is_noticed(served, cache, samples, tmp_path):
    url = f"{served.url}/set"
    before = open_shards(url, cache=cache())
    shutil.rmtree(tmp_path / "served" / "set")
    write_shards(samples(8)[6:], tmp_path / "served" / "set", PER_SHARD)
    assert texts(open_shards(url, cache=cache())) == ["picture 6", "picture 7"]
    with pytest.raises(InputError, match=r"00000\.tar cannot be read \(differs from its index"):
        before.read(0, "txt")


def test_the_least_recently_used_shards_make_room(served, cache, tmp_path):
    shards = open_shards(f"{served.url}/set", cache=cache(max_bytes=2 * 10240))
    digests = shards.table.digests
    for index, kept in ((0, [0]), (2, [0, 1])):
        shards.read(index, "txt")
        assert stored(tmp_path) == sorted(digests[number] for number in kept)
    for number, age in ((0, 1000), (1, 2000)):
        os.utime(tmp_path / "cache" / digests[number], (age, age))
    shards.read(4, "txt")
    assert stored(tmp_path) == sorted([digests[1], digests[2]])
    assert list(shards.files._opened) == [1, 2]  # the deleted one is closed, or it would keep its space
    assert texts(shards) == ALL
    assert served.asked["00000.tar"] == 2
    with pytest.raises(InputError, match=r"10240 bytes exceeds max_bytes=10000"):
        texts(open_shards(f"{served.url}/set", cache=cache(max_bytes=10000, folder=str(tmp_path / "small"))))


def test_a_copy_that_lost_bytes_is_fetched_again(served, cache, tmp_path):
    shards = open_shards(f"{served.url}/set", cache=cache())
    assert texts(shards) == ALL
    os.truncate(tmp_path / "cache" / shards.table.digests[1], 100)
    assert texts(open_shards(f"{served.url}/set", cache=cache())) == ALL
    assert served.asked["00001.tar"] == 2


def test_what_a_killed_process_left_does_not_take_room_for_ever(served, cache, tmp_path):
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / f"{'0' * 64}.15000.part"
    left.write_bytes(b"half")
    shards = open_shards(f"{served.url}/set", cache=cache(max_bytes=20000))
    assert shards.read(0, "txt") == b"picture 0"
    assert not left.exists()


FOREIGN = ["thesis.pdf", "weights.part", "0" * 63, "A" * 64, f"{'0' * 64}.tar", f"{'0' * 64}.x.part", "a.5.part"]


def test_other_files_in_the_folder_neither_count_nor_vanish(served, cache, tmp_path):
    (tmp_path / "cache").mkdir()
    for name in FOREIGN:
        (tmp_path / "cache" / name).write_bytes(bytes(30_000))
        os.utime(tmp_path / "cache" / name, (1, 1))
    shards = open_shards(f"{served.url}/set", cache=cache(max_bytes=2 * 10240))
    assert texts(shards) == ALL
    assert stored(tmp_path) == sorted([*FOREIGN, *shards.table.digests[1:]])


def test_waiting_for_room_is_told_once(served, cache, tmp_path, monkeypatch, caplog):
    shards = open_shards(f"{served.url}/set", cache=cache(max_bytes=20000))
    claimed = tmp_path / "cache" / f"{'0' * 64}.15000.part"
    (tmp_path / "cache" / "locks").mkdir()
    claimed.touch()
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            holder.close()

    monkeypatch.setattr("latentdiff.data.remote.time.sleep", wait)
    holder = (tmp_path / "cache" / "locks" / ("0" * 64)).open("w")
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert shards.read(0, "txt") == b"picture 0"
    assert len(waits) == 3
    assert caplog.text.count("waits for room") == 1


def test_verifying_fetches_every_shard_and_reads_its_copy(served, cache, tmp_path):
    assert len(verify_shards(f"{served.url}/set", cache=cache())) == len(ALL)
    assert served.asked == {"index.json": 1, "index.npz": 1}
    seen = []
    verify_shards(f"{served.url}/set", cache=cache(), fetch=True, progress=lambda *counts: seen.append(counts))
    assert seen == [(10240 * n, 30720) for n in (1, 2, 3)]
    assert served.asked["00002.tar"] == 1
    first, second = sorted((tmp_path / "cache").glob("?" * 64))[:2]
    first.write_bytes(bytes(10240))
    second.unlink()
    served.faults = {f"{number:05d}.tar": [answer(404)] for number in range(SHARDS)}
    with pytest.raises(DamagedShardsError) as error:
        verify_shards(f"{served.url}/set", cache=cache(), fetch=True)
    found = {damage.expected.sha256: (damage.bytes, damage.samples) for damage in error.value.damaged}
    assert found == {first.name: (10240, 0), second.name: (None, 0)}


def test_labels_are_checked_without_fetching_the_set(served, cache, tmp_path, samples):
    shards = open_shards(f"{served.url}/set", cache=cache())
    check_labels(shards, Labels(classes=2))
    with pytest.raises(InputError, match="unknown class 1"):
        check_labels(shards, Labels(classes=1))
    assert [name for name in served.asked if name.endswith(".tar")] == ["00000.tar"]
    assert within_reach(shards, remote=2).tolist() == [0, 1, 2, 3]
    assert within_reach(shards.select([5, 2, 4]), remote=1).tolist() == [1]
    write_shards(samples(3), tmp_path / "near")
    both = open_shards([f"{served.url}/set", tmp_path / "near"], cache=cache())
    assert within_reach(both, remote=1).tolist() == [0, 1, 6, 7, 8]


@pytest.mark.parametrize("query", ["?X-Amz-Signature=5f0e", "?5f0e", "?a=5f0e.tar"])
def test_signed_urls_are_refused_without_showing_the_signature(cache, query):
    with pytest.raises(InputError, match=r"^https://host/set/00000\.tar is followed by a query") as error:
        open_shards(f"https://host/set/00000.tar{query}", cache=cache())
    assert "5f0e" not in str(error.value)


def read_in_process(shards, found):
    found.put(texts(shards))


def test_processes_that_want_the_same_shards_fetch_them_once(served, cache):
    served.faults = {f"{number:05d}.tar": [slow] for number in range(SHARDS)}
    shards = open_shards(f"{served.url}/set", cache=cache())
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [context.Process(target=read_in_process, args=(shards, found)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [ALL] * 3
    for process in processes:
        process.join()
    assert served.asked == {"index.json": 1, "index.npz": 1, **{f"{i:05d}.tar": 1 for i in range(SHARDS)}}


def test_other_protocols_of_fsspec_and_mixtures_with_local_shards(tmp_path, samples, cache, monkeypatch):
    monkeypatch.setattr(shard_names, "PROTOCOLS", ("memory", "file"))
    write_shards(samples(4), tmp_path / "set", 2)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/bucket/set", recursive=True)
    remote = pickle.loads(pickle.dumps(open_shards("memory://bucket/set", cache=cache())))
    assert texts(remote) == ALL[:4]
    both = open_shards(["memory://bucket/set/00001.tar", tmp_path / "set" / "00000.tar"], cache=cache())
    assert texts(both) == ALL[2:4] + ALL[:2]
    assert len(set(both.all_keys())) == 4
    assert texts(open_shards(f"file://{tmp_path}/set", cache=cache())) == ALL[:4]
    memory.rm("/bucket", recursive=True)


def test_a_missing_library_is_named_with_its_extra(monkeypatch, cache):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[remote\]'"):
        open_shards("s3://bucket/set", cache=cache())


def test_a_full_disk_is_told_with_both_places_it_may_be(tmp_path, monkeypatch):
    def full(url):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_filesystem", full)
    with pytest.raises(InputError, match=r"no space left for .*x\.tar; free some, .* move data\.cache .*TMPDIR"):
        fetching.Fetcher().fetch("s3://bucket/x.tar", tmp_path / "x.tar")


def test_a_cache_that_cannot_be_made_is_told(served, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.cache: .*file.* cannot be made"):
        open_shards(f"{served.url}/set", cache=ShardCache(folder=str(tmp_path / "file")))
