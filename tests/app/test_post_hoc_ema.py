"""An average of another length from a run's snapshots, against the one tracked from the start."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from latentdiff.app.post_hoc_ema import reconstruct
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.ema_snapshots import EmaSnapshots
from latentdiff.training.counters import Counters
from latentdiff.training.ema import Ema
from latentdiff.training.power_ema import PowerEma

BATCHES, EVERY = 400, 10


class Trained(nn.Module):
    """What snapshots and checkpoints see of a module."""

    def __init__(self, *, power: bool = True):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        self.ema = Ema(self.model, decay=0.9)
        self.power_ema = PowerEma(self.model) if power else None
        self.counters = Counters()

    def learn(self, generator: torch.Generator) -> None:
        """One batch: drift that slows down, and noise."""
        now = self.counters.batches_seen
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(1 / (50 + now) + 0.02 * torch.randn(p.shape, generator=generator))
            self.model[1].running_mean.fill_(now)
        self.ema.update(self.model)
        if self.power_ema is not None:
            self.power_ema.update(self.model)
        self.counters.batches_seen += 1
        self.counters.images_seen += 2


def save(module: Trained, place: Path) -> None:
    weights = module.state_dict()
    store.save(
        place,
        kind="diffusion",
        model={name: value for name, value in weights.items() if not name.startswith("ema.")},
        ema={name: value for name, value in weights.items() if name.startswith("ema.")},
        train_state={},
        config="sampler: {}\n",
        counters=module.counters.as_dict(),
        first_stage={"path": "there", "hash": "abc"},
        latent={"channels": 4, "factor": 8},
    )


@functools.cache
def trained(folder: Path, dtype: str = "float32") -> tuple[Trained, dict[float, nn.Module], Path]:
    """A run of BATCHES, the averages of three other lengths tracked along, and its directory."""
    torch.manual_seed(0)
    module, run_dir = Trained(), folder / f"run-{dtype}"
    tracked = PowerEma(module.model.double(), lengths=(0.075, 0.13, 0.2))
    module.model.float()
    snapshots = EmaSnapshots(run_dir=str(run_dir), total=EVERY, count=1, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    trainer = type("Trainer", (), {"is_global_zero": True})
    for number in range(BATCHES):
        module.learn(generator)
        double = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        double.load_state_dict(module.model.state_dict())
        tracked.update(double.double())
        snapshots.on_train_batch_end(trainer, module, None, None, number)
        if number + 1 == BATCHES // 2:
            save(module, run_dir / "checkpoints" / "best")
    save(module, run_dir / "checkpoints" / "last")
    return module, dict(zip(tracked.lengths, tracked.averages)), run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("post_hoc")


@pytest.mark.parametrize("length", [0.075, 0.13, 0.2])
def test_it_is_the_tracked_average_within_one_percent(folder, tmp_path, length):
    module, tracked, run_dir = trained(folder)
    made = reconstruct(run_dir, tmp_path / "made", length=length)
    assert (made.length, made.batches_seen, made.snapshots) == (length, BATCHES, 2 * BATCHES // EVERY)
    assert made.profile_error < 0.01
    weights = store.load_weights(tmp_path / "made", "ema")
    for name, wanted in tracked[length].named_parameters():
        final = module.model.get_parameter(name).double()
        found = weights[f"ema.model.{name}"]
        assert found.dtype is torch.float32
        assert (found - wanted).norm() <= 0.01 * (wanted - final).norm()


def test_all_else_is_the_checkpoints_but_training_state(folder, tmp_path):
    module, _, run_dir = trained(folder)
    reconstruct(run_dir, tmp_path / "made", length=0.1)
    manifest, own = store.verify(tmp_path / "made"), store.verify(run_dir / "checkpoints" / "last")
    for name in ("kind", "counters", "world_size", "first_stage", "latent"):
        assert getattr(manifest, name) == getattr(own, name)
    assert set(manifest.files) == {"model.safetensors", "ema.safetensors", "config.yaml"}
    assert manifest.extra == pytest.approx({"ema_length": 0.1, "profile_error": 0.0, "snapshots": 80}, abs=1e-6)
    ema, model = (store.load_weights(tmp_path / "made", part) for part in ("ema", "model"))
    assert ema.keys() == store.load_weights(run_dir / "checkpoints" / "last", "ema").keys()
    assert torch.equal(ema["ema.model.1.running_mean"], module.model[1].running_mean)
    torch.testing.assert_close(ema["ema.model.0.weight"], module.power_ema.averages[1][0].weight.detach())
    assert torch.equal(model["model.0.weight"], module.model[0].weight)
    assert not any(name.startswith("power_ema.") for name in model)
    with pytest.raises(InputError, match="without training state and cannot be resumed"):
        store.load_train_state(tmp_path / "made")


def test_an_earlier_checkpoint_uses_what_was_before_it(folder, tmp_path):
    _, _, run_dir = trained(folder)
    made = reconstruct(run_dir / "checkpoints" / "best", tmp_path / "made", length=0.13)
    assert (made.batches_seen, made.snapshots) == (BATCHES // 2, BATCHES // EVERY)


def test_snapshots_in_half_precision(folder, tmp_path):
    _, tracked, run_dir = trained(folder, "float16")
    reconstruct(run_dir, tmp_path / "made", length=0.13)
    found = store.load_weights(tmp_path / "made", "ema")["ema.model.0.weight"]
    torch.testing.assert_close(found.double(), tracked[0.13][0].weight.detach(), rtol=1e-3, atol=1e-3)


def test_bad_requests_are_refused_and_nothing_is_written(folder, tmp_path):
    _, _, run_dir = trained(folder)
    dest = tmp_path / "made"
    with pytest.raises(InputError, match=r"expected one in \(0, 0\.2887\), of the time of training; got 0\.3"):
        reconstruct(run_dir, dest, length=0.3)
    with pytest.raises(InputError, match=r"length 0\.01: the 80 snapshots .* error of [0-9]+%, 10% are allowed"):
        reconstruct(run_dir, dest, length=0.01)
    with pytest.raises(InputError, match="no checkpoint found"):
        reconstruct(tmp_path / "nowhere", dest, length=0.1)
    save(Trained(power=False), tmp_path / "plain" / "checkpoints" / "last")
    with pytest.raises(InputError, match=r"trained without power-function averages; train with task\.power_ema="):
        reconstruct(tmp_path / "plain", dest, length=0.1)
    save(Trained(), tmp_path / "bare" / "checkpoints" / "last")
    with pytest.raises(InputError, match="holds no snapshot from before"):
        reconstruct(tmp_path / "bare", dest, length=0.1)
    assert not dest.exists()
    dest.mkdir()
    with pytest.raises(InputError, match="stands already"):
        reconstruct(run_dir, dest, length=0.1)


def test_a_damaged_snapshot_is_named(tmp_path):
    _, _, run_dir = trained(tmp_path)
    file = max((run_dir / "ema_snapshots").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match=rf"{file.name}' cannot be read"):
        reconstruct(run_dir, tmp_path / "made", length=0.1)
