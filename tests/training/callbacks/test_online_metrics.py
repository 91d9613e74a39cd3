"""Metrics of generated images while training."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.evaluation.engine import image_seed
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.paired import Fidelity
from latentdiff.metrics.reconstruction import Psnr
from latentdiff.metrics.rows import JoinedRows
from latentdiff.training.callbacks import averaged_images, online_metrics
from latentdiff.training.callbacks.metrics_log import MetricsLog
from latentdiff.training.callbacks.online_metrics import OnlineMetrics
from latentdiff.training.callbacks.watchdog import Watchdog

FEATURES = RandomConvFeatures(dim=16, scales=2)
PARTS = {"sampler": Euler(), "grid": Uniform(), "steps": 2, "guidance": ClassifierFree(scale=2.0)}
NAME = f"online/fd_{FEATURES.name}_0.006k"


class Brightness:
    """A metric of each image alone."""

    def measure(self, images, batch):
        return {"mean": images.double().mean(dim=(1, 2, 3)).cpu()}

    def result(self, rows):
        return {"mean": float(rows.column("mean").mean()), "count": len(rows)}


class Data(pl.LightningDataModule):
    start_batch, image_size = 0, 8

    def __init__(self, train, val):
        super().__init__()
        self.train, self.val, self.val_set = train, val, val.keys
        self.asked = []

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=None, collate_fn=lambda batch: batch)

    def val_dataloader(self):
        return DataLoader([self.val], batch_size=None, collate_fn=lambda batch: batch)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def preview(self, count):
        return self.val.rows(0, count)

    def ranges_of(self, shards, *, with_conditions):
        assert shards is self.val_set
        assert with_conditions

        def samples(indices):
            self.asked.append(indices)
            return self.val.rows(indices.start, indices.stop)

        return samples


def online(**options):
    metrics = {"frechet": OnFeatures(features=FEATURES, measures={"frechet": FrechetDistance()}), "light": Brightness()}
    return OnlineMetrics(**{"metrics": metrics, "every": 2, "images": 6, "batch_size": 4, **PARTS, **options})


@pytest.fixture
def run(trainer, batch, tmp_path):
    """Trains on ``count`` batches and returns the lines that begin with online/, and the trainer."""

    def train(module, count, callback, *others, folder="run", data=None, resume=None):
        (tmp_path / folder).mkdir(exist_ok=True)
        log = [MetricsLog(run_dir=str(tmp_path / folder), every=1)]
        data = data or Data([batch(i) for i in range(count)], batch(9, size=8))
        lightning = trainer(*log, *([callback] if callback else []), *others)
        lightning.fit(module, datamodule=data, ckpt_path=resume)
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if any(name.startswith("online/") for name in line)], lightning

    return train


def test_the_numbers_are_those_of_the_averaged_weights_pictures(diffusion_module, batch, run):
    module = diffusion_module()
    (found,), _ = run(module, 3, online())
    assert set(found) == {"batches_seen", "images_seen", NAME, "online/light.mean_0.006k", "online/light.count_0.006k"}
    assert (found["batches_seen"], found["images_seen"]) == (2, 8)
    again = diffusion_module()
    run(again, 2, None, folder="again")
    pipeline = LatentPipeline(
        denoiser=again.ema.model["denoiser"],
        conditioner=again.ema.model["conditioner"],
        codec=again.codec,
        image_size=8,
        **PARTS,
    )
    val = batch(9, size=8)
    images = torch.cat(
        [
            pipeline(val.rows(0, 4), [image_seed(0, i) for i in range(4)]),
            pipeline(val.rows(4, 6), [image_seed(0, i) for i in range(4, 6)]),
        ]
    )
    assert found["online/light.mean_0.006k"] == pytest.approx(float(images.double().mean()), rel=1e-12)
    assert found["online/light.count_0.006k"] == 6
    metric = OnFeatures(features=FEATURES, measures={"frechet": FrechetDistance()})
    made, real = (JoinedRows([(0, metric.measure(x, val))]) for x in (images, val.image[:6]))
    expected = metric.result(made, metric.reference(real))[f"fd_{FEATURES.name}_n6"]
    assert found[NAME] == pytest.approx(expected, rel=1e-6)


def test_training_is_the_same_with_it(diffusion_module, run):
    with_it, without = diffusion_module(), diffusion_module()
    found, _ = run(with_it, 4, online(), folder="with")
    run(without, 4, None, folder="without")
    assert [line["batches_seen"] for line in found] == [2, 4]
    others = without.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in with_it.state_dict().items())


def test_real_images_are_looked_at_once(diffusion_module, batch, run):
    data = Data([batch(i) for i in range(4)], batch(9, size=8))
    run(diffusion_module(), 4, online(), data=data)
    assert data.asked == [range(0, 4), range(4, 6)] * 3  # the real ones, and two measurements


def test_a_shared_measurement_is_the_one_of_a_single_process(diffusion_module, batch, run, monkeypatch):
    """Each of two ranks in turn; what the other has is brought by hand."""
    module = diffusion_module()
    (whole,), lightning = run(module, 2, online())
    gathered_parts: dict[int, list] = {0: [], 1: []}
    for rank in (0, 1):
        callback, made = online(), gathered_parts[rank]
        monkeypatch.setattr(online_metrics, "gathered", lambda parts, made=made: made.append(parts) or "rows")
        stub = Ranked(lightning, rank, 2)
        rows = callback._rows(stub, module, lambda part: part.image, {"light": Brightness().measure})
        assert rows == {"light": "rows"}
    (first,), (second,) = gathered_parts.values()
    assert [start for start, _ in first] == [0]
    assert [start for start, _ in second] == [4]
    assert whole["online/light.count_0.006k"] == 6


class Ranked:
    """A trainer as one of several ranks sees it."""

    def __init__(self, trainer, rank, ranks):
        self.global_rank, self.world_size = rank, ranks
        self.datamodule, self.callbacks, self.strategy = trainer.datamodule, [], trainer.strategy


def test_every_rank_runs_the_network_as_often_as_the_others(diffusion_module, batch, run):
    module = diffusion_module()
    _, lightning = run(module, 1, None)
    looks = []
    for rank in range(3):
        online()._rows(Ranked(lightning, rank, 3), module, lambda part: looks.append(part.start) or part.image, {})
    assert looks == [0, 4, 4]  # ranks 0, 1 and 2


class Stops(pl.Callback):
    """Lets a measurement find that the run is to stop, after so many of its questions."""

    def __init__(self, monkeypatch, after):
        self.left = after
        for module in (online_metrics, averaged_images):
            monkeypatch.setattr(module, "stop_pending", self)

    def __call__(self, trainer):
        self.left -= 1
        return self.left < 0


# In the real images, before and in the first chunk, in the second, and when all is made.
@pytest.mark.parametrize("after", [0, 3, 4, 8, 9])
def test_a_run_that_stops_gives_the_measurement_up_and_makes_up_for_it(
    diffusion_module, batch, run, tmp_path, monkeypatch, after
):
    whole, _ = run(diffusion_module(), 3, online(), folder="whole")
    with monkeypatch.context() as patch:
        given_up, lightning = run(diffusion_module(), 2, online(), Stops(patch, after), folder="stopped")
        assert given_up == []
    data = Data([batch(2)], batch(9, size=8))
    data.start_batch = 2
    module = lightning.lightning_module
    made_up, _ = run(module, 1, online(), folder="stopped", data=data)
    assert made_up == whole
    again, _ = run(module, 1, online(), folder="stopped", data=data)
    assert [line["batches_seen"] for line in again] == [2, 4]


def test_it_tells_the_watchdog_that_it_moves(diffusion_module, run, monkeypatch):
    told = []
    monkeypatch.setattr(Watchdog, "step", lambda self, where: told.append(where))
    run(diffusion_module(), 2, online(), Watchdog(timeout=0))
    assert told.count("in a measurement") == 4


@pytest.mark.parametrize(
    ("published", "count", "number", "name"),
    [
        (True, 1000, "fd_net_n1000", "fid_1k"),
        (True, 2500, "kid_n2500", "kid_2.5k"),
        (True, 1000, "fd-spatial_net_n1000", "fd-spatial_net_1k"),
        (True, 10000, "fid_n10000", "fid_10k"),
        (False, 1000, "fd_net_n1000", "fd_net_1k"),
    ],
)
def test_names_say_how_few_images_there_were(published, count, number, name):
    features = copy.copy(FEATURES)
    features.name, features.published = "net", published
    metric = OnFeatures(features=features, measures={"frechet": FrechetDistance()})
    assert online(images=count)._name("any", metric, number) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 9}, "callbacks.online.images: 9 are wanted, there are 8 validation samples"),
        ({"images": 1}, "at least 2 images"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(diffusion_module, run, options, message):
    module = diffusion_module()
    with pytest.raises(InputError, match=message):
        run(module, 2, online(**options))
    assert module.counters.batches_seen == 0


class Odd(Brightness):
    """Says nothing of these images."""

    def result(self, rows):
        return {"nan": float("nan"), "inf": float("inf"), "one": 1.0}


def test_a_number_that_is_not_finite_does_not_end_the_training(diffusion_module, run, caplog):
    module = diffusion_module()
    (found,), _ = run(module, 3, online(metrics={"odd": Odd()}))
    assert [found[f"online/odd.{name}_0.006k"] for name in ("nan", "inf", "one")] == [None, None, 1.0]
    assert "online/odd.nan_0.006k, online/odd.inf_0.006k not finite at batch 2" in caplog.text
    assert module.counters.batches_seen == 3


def test_metrics_of_reconstructions_are_refused(diffusion_module, run):
    for metric in (Psnr(), Fidelity(metrics=[Psnr()])):
        with pytest.raises(InputError, match="'own' compares an image with its own original"):
            run(diffusion_module(), 2, online(metrics={"own": metric}))


def test_metrics_that_give_the_same_number_are_refused(diffusion_module, run):
    one, other = (OnFeatures(features=FEATURES, measures=[FrechetDistance()]) for _ in range(2))
    with pytest.raises(InputError, match="metrics: 'a' and 'b' would both give"):
        run(diffusion_module(), 2, online(metrics={"a": one, "b": other}))


@pytest.mark.parametrize("options", [{"every": -1}, {"images": 0}, {"batch_size": 0}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=r"callbacks\.online"):
        online(**options)


def test_cached_latents_have_nothing_to_compare_with(diffusion_module, batch, run):
    val = replace(batch(9, size=8), image=None)
    with pytest.raises(InputError, match="cached latents have no images"):
        run(diffusion_module(), 2, online(), data=Data([batch(0)], val))


def test_without_a_log_it_is_refused(diffusion_module, batch, trainer):
    with pytest.raises(InputError, match=r"callbacks\.log"):
        trainer(online()).fit(diffusion_module(), datamodule=Data([batch(0)], batch(9, size=8)))


def test_by_default_it_does_nothing(diffusion_module, run):
    assert run(diffusion_module(), 2, online(every=0, images=100))[0] == []
