"""Shards damaged at random places, and processes killed while they fetch one."""

from __future__ import annotations

import functools
import http.server
import io
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.remote import ShardCache
from latentdiff.data.shards import DamagedShardsError, open_shards, verify_shards, write_shards

pytestmark = pytest.mark.faults
SAMPLES = 12


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def photos():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, 32, 32, 3), dtype=np.uint8)
    return [{"png": encoded(image), "txt": f"picture {i}", "json": {"i": i}} for i, image in enumerate(images)]


def damage(path, rng):
    """Cuts off, flips or wipes some bytes, or puts others in; True where that left the bytes changed."""
    before = path.read_bytes()
    start = int(rng.integers(0, len(before)))
    length = int(rng.integers(1, 2000))
    kind = rng.integers(0, 4)
    after = [
        before[:start],
        before[:start] + bytes([before[start] ^ (1 << int(rng.integers(0, 8)))]) + before[start + 1 :],
        before[:start] + bytes(min(length, len(before) - start)) + before[start + length :],
        before[:start] + rng.bytes(length) + before[start:],
    ][kind]
    path.write_bytes(after)
    return after != before


def test_no_random_damage_is_missed_and_no_wrong_byte_is_read(tmp_path):
    written = photos()
    write_shards(written, tmp_path / "set", 4)
    whole = {path: path.read_bytes() for path in (tmp_path / "set").glob("*.tar")}
    lost = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        path = tmp_path / "set" / f"{rng.integers(0, 3):05d}.tar"
        if damage(path, rng):
            with pytest.raises(DamagedShardsError) as raised:
                verify_shards(tmp_path / "set")
            shards, skipped = open_shards(tmp_path / "set", damaged="skip"), 0
            for index, sample in enumerate(written):
                try:
                    assert shards.read_image(index) == sample["png"]
                    assert shards.read(index, "txt").decode() == sample["txt"]
                    shards.read(index, "json")
                except BrokenSampleError:
                    skipped += 1
            (found,) = raised.value.damaged
            assert (found.path, skipped) == (str(path), 4 - found.samples)
            lost += skipped
        path.write_bytes(whole[path])
    assert lost > 100
    verify_shards(tmp_path / "set")


class _SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Sends a tar in two halves, the second after a while."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])
        if self.path.endswith(".tar") and self.server.slow:
            time.sleep(0.5)
        outputfile.write(content[len(content) // 2 :])

    def log_message(self, *args):
        pass


def _read_all(shards):
    for index in range(len(shards)):
        shards.read(index, "txt")


def test_a_process_killed_while_it_fetches_leaves_nothing_that_is_taken_for_a_shard(tmp_path):
    write_shards(photos(), tmp_path / "served", 4)
    handler = functools.partial(_SlowHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.slow = True, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/served"
    shards = open_shards(url, cache=ShardCache(folder=str(tmp_path / "cache"), max_bytes=40_000))
    context = multiprocessing.get_context("fork")
    for wait in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0):
        process = context.Process(target=_read_all, args=(shards,))
        process.start()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in (tmp_path / "cache").iterdir():
            if path.is_file() and path.suffix != ".part":
                assert path.name in shards.table.digests
                assert path.read_bytes() in [tar.read_bytes() for tar in (tmp_path / "served").glob("*.tar")]
    server.slow = False
    assert [shards.read(i, "txt").decode() for i in range(SAMPLES)] == [f"picture {i}" for i in range(SAMPLES)]
    server.shutdown()
