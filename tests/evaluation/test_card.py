import hashlib
import json
import subprocess

import pytest
import torch

from latentdiff.checkpoint import store
from latentdiff.evaluation.card import (
    checkpoint_identity,
    cut_captions,
    environment,
    observed,
    protocol,
    protocol_card,
    source_revision,
)
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import Work, fill
from latentdiff.types import Batch


class Says:
    """A part that describes itself."""

    def __init__(self, **said):
        self.said = said

    def describe(self):
        return self.said


@pytest.fixture
def said():
    return protocol(
        generate=Says(sampler={"name": "Euler"}, steps=4, device="cpu", guidance={"checkpoint": "a", "digest": "cd"}),
        metrics={"f": Says(features="flat"), "plain": object()},
        conditions={"data": "shapes", "fingerprint": "ef"},
        work=Work(100, 8, seed=2),
        resolution=(64, 48),
    )


def test_the_protocol_says_what_numbers_depend_on_and_no_place(said):
    assert said["generation"] == {"sampler": {"name": "Euler"}, "steps": 4, "guidance": {"digest": "cd"}}
    assert said["metrics"] == {"f": {"class": "Says", "features": "flat"}, "plain": {"class": "object"}}
    assert said["conditions"] == {"data": "shapes", "fingerprint": "ef"}
    assert (said["seeds"]["base"], said["seeds"]["first"], said["seeds"]["count"]) == (2, 2 << 32, 100)
    samples = said["samples"]
    assert (samples["count"], samples["resolution"], samples["chunk"]) == (100, [64, 48], 8)
    assert samples["container"] == "memory"


def test_a_card_is_json_and_the_reference_is_part_of_its_protocol(said):
    card = protocol_card(
        model={"digest": "ab"},
        protocol=said,
        references={"f": Says(count=7)},
        observed={"duplicates": 0},
        config={"values": {}},
        world_size=2,
        device="cpu",
        wall_seconds=1.23456,
        controls={"gaussian": Says(law="normal", device="cpu")},
    )
    assert json.loads(json.dumps(card)) == card
    assert (card["schema"], card["model"], card["observed"]) == (2, {"digest": "ab"}, {"duplicates": 0})
    assert card["protocol"] == {**said, "reference": {"f": {"count": 7}}}
    assert card["controls"] == {"gaussian": {"law": "normal"}}
    assert (card["environment"]["world_size"], card["environment"]["device"], card["wall_seconds"]) == (2, "cpu", 1.235)


def test_a_checkpoint_is_known_by_its_digest(tmp_path):
    manifest = store.save(
        tmp_path / "last",
        kind="diffusion",
        model={"w": torch.zeros(2)},
        config="",
        counters={"batches_seen": 3, "images_seen": 24},
        first_stage={"path": "ae", "hash": "cd"},
    )
    known = {
        "checkpoint": str(tmp_path / "last"),
        "digest": manifest.digest,
        "kind": "diffusion",
        "batches_seen": 3,
        "images_seen": 24,
        "first_stage": {"path": "ae", "hash": "cd"},
    }
    average = {"decay": 0.99}
    assert checkpoint_identity(tmp_path / "last", weights="model", ema=average) == {**known, "weights": "model"}
    encoders = [{"model": "ViT", "weights": "sha256:12"}]
    told = checkpoint_identity(tmp_path / "last", weights="ema", ema=average, text_encoders=encoders)
    assert told == {**known, "weights": "ema", "ema": average, "text_encoders": encoders}


class Short:
    """Reads five letters."""

    def cut_captions(self, captions):
        return [(caption, len(caption)) for caption in captions if len(caption) > 5]


def test_what_was_observed_is_counted_over_all_chunks(tmp_path):
    images = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).reshape(5, 3, 4, 4)
    images[4] = images[1]
    captions = ["a", "a long one", "b", "c", "another long one"]

    def samples(indices):
        rows = slice(indices.start, indices.stop)
        return Batch(keys=captions[rows], caption=captions[rows], image=images[rows])

    def observed_in(name, size):
        work = Work(5, size)
        folder = ChunkFolder(tmp_path / name, work.chunks)
        measures = {"card": cut_captions(Short())}
        fill(folder, work, lambda batch, seeds: batch.image, samples, measures)
        return observed(folder, cut="card/cut")

    digests = "".join(hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images)
    expected = hashlib.sha256(digests.encode()).hexdigest()
    found = observed_in("two", 2)
    assert found == {"images_sha256": expected, "duplicates": 1, "captions_cut": 2}
    assert observed_in("three", 3) == found


def test_environment_names_the_versions():
    assert environment(1, "cpu")["packages"]["torch"].startswith(torch.__version__.split("+")[0])


def test_revision_is_that_of_our_own_repository_only(tmp_path):
    package = tmp_path / "src" / "latentdiff"
    package.mkdir(parents=True)
    assert source_revision(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (package / "a.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert source_revision(package) == head
    (package / "a.py").write_text("2")
    assert source_revision(package) == f"{head}+changes"
    elsewhere = tmp_path / "lib" / "latentdiff"
    elsewhere.mkdir(parents=True)
    assert source_revision(elsewhere) is None
