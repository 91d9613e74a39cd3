from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.data.segmentation import SegmentationMaps
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource


@pytest.fixture
def source(tmp_path, samples):
    write_shards(samples(80), tmp_path / "set", 30)
    return ShardSource(train=str(tmp_path / "set"))


def build(source, **options):
    given = {"image_size": 8, "global_batch": 8, "seed": 0, "max_batches": 20, "num_workers": 0}
    return DataModule(source=source, **{**given, **options})


class Recorder(pl.LightningModule):
    """Notes the keys it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.shown, self.validated = [], []

    def training_step(self, batch, _):
        self.shown.append((batch.number, batch.keys, batch.image.float().mean().item()))
        return self.weight * 1.0

    def validation_step(self, batch, _):
        self.validated += batch.keys

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(data, start=0):
    data.start_batch = start
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=min(5, 20 - start),
    )
    trainer.fit(recorder, data)
    return recorder


def test_lightning_sees_each_batch_once_and_goes_on_where_told(source):
    whole = fit(build(source))
    assert [number for number, _, _ in whole.shown] == list(range(20))
    rest = fit(build(source), start=13)
    assert rest.shown == whole.shown[13:]


def test_lightning_validates_on_all_samples_in_order(source):
    data = build(source)
    recorder = fit(data)
    assert recorder.validated == data.val_set.all_keys() * 4


def test_lengths(source):
    data = build(source, val_batch=5)
    data.start_batch = 13
    assert (len(data.train_dataloader()), len(data.val_dataloader())) == (7, 4)
    assert len(build(source, max_batches=None).train_dataloader()) == 64 // 8
    data.start_batch = 20
    assert list(data.train_dataloader()) == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_is_shared_without_loss(source, monkeypatch, ranks):
    parts = []
    for rank in range(ranks):
        data = build(source, val_batch=6)
        monkeypatch.setattr(data, "_rank_and_ranks", lambda rank=rank: (rank, ranks))
        parts.append(list(data.val_dataloader()))
    keys = [key for batches in zip(*parts, strict=True) for batch in batches for key in batch.keys]
    assert keys == build(source).val_set.all_keys()
    assert all(batch.attributes for batches in parts for batch in batches)


def test_a_batch_that_cannot_be_shared_is_refused(source, monkeypatch):
    data = build(source)
    monkeypatch.setattr(data, "_rank_and_ranks", lambda: (0, 3))
    with pytest.raises(InputError, match="global_batch=8 cannot be shared equally by 3"):
        data.train_dataloader()


def test_missing_captions_and_labels_are_found_at_setup(tmp_path, samples):
    content = samples(80)
    for i in (5, 6):
        del content[i]["json"]
        content[i]["txt"] = ""
        del content[i + 1]["cls"]
    write_shards(content, tmp_path / "set")
    write_shards(samples(80), tmp_path / "good")
    faulty, good = str(tmp_path / "set"), str(tmp_path / "good")
    maps = {"segmentation": SegmentationMaps(classes=3)}
    for source in (ShardSource(train=faulty, val=good), ShardSource(train=good, val=faulty)):
        with pytest.raises(InputError, match=r"2 of 80 samples have no caption .* 00000/000000005, 00000/000000006;"):
            build(source, require_captions=True).setup()
        with pytest.raises(InputError, match=r"2 of 80 samples have no label .* 00000/000000006, 00000/000000007;"):
            build(source, require_labels=True).setup()
        with pytest.raises(InputError, match=r"seg\.png"):
            build(source, conditions=maps).setup()
        build(source).setup()


def test_a_condition_that_does_not_fit_the_training_images_is_found_at_setup(tmp_path, samples, png):
    """Its first sample is tried, of either set: here training maps of half the size."""
    for name, size in (("small", 4), ("good", 8)):
        map_of_zeros = {"seg.png": png(np.zeros((size, size), np.uint8))}
        write_shards([sample | map_of_zeros for sample in samples(4)], tmp_path / name)
    maps = {"segmentation": SegmentationMaps(classes=3)}
    build(ShardSource(train=str(tmp_path / "good"), val=str(tmp_path / "good")), conditions=maps).setup()
    with pytest.raises(InputError, match="4x4 pixels"):
        build(ShardSource(train=str(tmp_path / "small"), val=str(tmp_path / "good")), conditions=maps).setup()


def test_unknown_classes_are_found_at_setup_and_when_read(source, tmp_path, samples, monkeypatch):
    with pytest.raises(InputError, match=r"sample '0000\d/\d+' in .* has the unknown class 7\d? .* expected 0 to 69"):
        build(source, classes=70).setup()
    data = build(source, classes=80, require_labels=True)
    assert data.preview(3).label.min() >= 0
    monkeypatch.setattr(data, "classes", 1)  # as though the check at setup had not seen the sample
    with pytest.raises(InputError, match="has the unknown class"):
        list(data.val_dataloader())


def test_labels_may_be_names_in_the_json(tmp_path, samples):
    content = [{"png": sample["png"], "json": {"kind": "ab"[i % 2]}} for i, sample in enumerate(samples(8))]
    write_shards(content, tmp_path / "named")
    source = ShardSource(train=str(tmp_path / "named"), val=str(tmp_path / "named"))
    named = {"label_field": "kind", "require_labels": True, "classes": 2}
    assert build(source, class_names=["b", "a"], **named).preview(8).label.tolist() == [1, 0] * 4
    with pytest.raises(InputError, match="unknown class 'b'"):
        build(source, class_names=["a", "c"], **named).setup()


def test_the_fingerprint_depends_on_the_training_samples_and_the_size(source, tmp_path, samples):
    write_shards(samples(79), tmp_path / "other", 30)
    other = ShardSource(train=str(tmp_path / "other"))
    prints = [build(s, image_size=n).fingerprint() for s, n in ((source, 8), (source, 16), (other, 8), (source, 8))]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


class Numbers:
    """Readers of another kind: what they make of a sample is its number."""

    def __init__(self):
        self.checked, self.drawn = [], []

    def check(self, shards):
        self.checked.append(len(shards))

    def __call__(self, shards, *, draw, seed, **options):
        self.drawn.append(draw)
        return self

    def read(self, epoch, index):
        return epoch, index

    def collate(self, rows):
        return {"latent_mean": torch.tensor(rows, dtype=torch.float32)}


def test_samples_may_be_made_by_other_readers(source):
    readers = Numbers()
    data = build(source, readers=readers, max_batches=16)
    found = [batch.latent_mean for batch in data.train_dataloader()]
    assert sorted(torch.cat(found).tolist()) == [[epoch, i] for epoch in (0, 1) for i in range(64)]
    assert data.preview(3).latent_mean.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert readers.checked == [64, 16]
    assert readers.drawn == [False, False, True, False]
    with pytest.raises(InputError, match="cached latents"):
        build(source, readers=readers, buckets=[[8, 8]]).setup()


def test_what_was_skipped_is_said_at_the_end(tmp_path, samples, caplog):
    content = samples(160)
    content[5]["png"] = b"no picture"
    write_shards(content, tmp_path / "train", 30)
    write_shards(samples(16), tmp_path / "val")
    data = build(ShardSource(train=str(tmp_path / "train"), val=str(tmp_path / "val")))
    assert data.counts().skipped == 0
    fit(data)
    assert "1 of 160 training samples were skipped, 159 read" in caplog.text


def test_statistics_leave_out_what_is_known_to_be_broken(source, monkeypatch):
    data = build(source)
    usable = {key for key in data.train_set.all_keys() if int(key.split("/")[1]) % 3}
    broken = np.array([key not in usable for key in data.train_set.all_keys()])
    monkeypatch.setattr(data.train_set, "broken", lambda: broken)
    keys = [key for batch in data.statistics_batches(64) for key in batch.keys]
    assert set(keys) == usable
    assert len(keys) == len(usable)


def test_the_window_of_the_shuffle_is_a_setting(source):
    def order(**options):
        return [batch.keys for batch in build(source, max_batches=8, **options).train_dataloader()]

    assert order() == order(shuffle=64) != order(shuffle=10)
    with pytest.raises(InputError, match=r"data\.shuffle: expected a window of at least 1"):
        build(source, shuffle=0)


@pytest.mark.parametrize("share", [-0.1, 5])
def test_the_bearable_share_is_a_share(source, share):
    with pytest.raises(InputError, match=r"max_broken: expected a share from 0 to 1"):
        DataModule(source=source, image_size=8, global_batch=2, seed=0, max_broken=share)
