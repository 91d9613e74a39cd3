import copy
import functools

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import AdamW

from latentdiff.checkpoint import store
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO

FIRST_STAGE = {"path": "somewhere", "hash": "ab"}
DATA = {"fingerprint": "cd"}


@pytest.fixture
def train(fit, batch, tmp_path):
    """Trains batches ``start`` to ``stop``, saving at the end, and returns the trainer."""

    def run(module, stop, *callbacks, start=0, run="run", monitor=None, **options):
        io = DirectoryCheckpointIO(config="seed: 0\n", first_stage=FIRST_STAGE, data=DATA)
        saving = Checkpoints(run_dir=str(tmp_path / run), every=10**6, monitor=monitor)
        batches = [batch(i) for i in range(start, stop)]
        return fit(module, batches, *callbacks, saving, val=[batch(9)], plugins=[io], **options)

    return run


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_resumed_training_ends_where_unbroken_training_does(any_module, train, tmp_path):
    """Weights, averages, optimiser states and counters, bit for bit."""
    whole, part, rest = any_module(), any_module(), any_module()
    straight = train(whole, 5, run="whole")
    train(part, 3, run="part")
    resumed = train(rest, 5, start=3, run="rest", resume=str(tmp_path / "part/checkpoints/last"))
    assert same(rest.state_dict(), whole.state_dict())
    for a, b in zip(resumed.optimizers, straight.optimizers, strict=True):
        assert same(a.state_dict(), b.state_dict())
        assert a.state_dict()["state"][0]["step"] == 5
    assert rest.counters == whole.counters
    digests = [store.digest(tmp_path / run / "checkpoints/last") for run in ("whole", "rest")]
    assert digests[0] == digests[1]


def test_a_checkpoint_made_in_validation_is_one_of_training(any_module, train, tmp_path):
    """What validation uses, the averages, is not what is trained on."""
    whole, part, rest = any_module(), any_module(), any_module()
    train(whole, 5, run="whole")
    monitor = {"autoencoder": "val/psnr", "diffusion": "val/loss"}[part.kind]
    train(part, 3, run="part", monitor=monitor, val_check_interval=3)
    train(rest, 5, start=3, run="rest", resume=str(tmp_path / "part/checkpoints/best"))
    assert same(rest.state_dict(), whole.state_dict())


def test_state_on_disk_is_the_optimisers_and_executes_nothing(any_module, train, tmp_path):
    module = any_module()
    lightning = train(module, 2)
    folder = tmp_path / "run/checkpoints/last"
    state = torch.load(folder / store.TRAIN_STATE, weights_only=True)
    assert same(state["optimizer_states"], [o.state_dict() for o in lightning.optimizers])
    assert any(moment["exp_avg"].abs().sum() > 0 for moment in state["optimizer_states"][0]["state"].values())


def test_directory_describes_itself(any_module, train, tmp_path):
    module = any_module()
    train(module, 3)
    folder = tmp_path / "run/checkpoints/last"
    manifest = store.verify(folder)
    assert (manifest.kind, manifest.world_size, manifest.first_stage) == (module.kind, 1, FIRST_STAGE)
    assert manifest.counters == {"batches_seen": 3, "images_seen": 12}
    assert manifest.latent == {"channels": 2, "factor": 2}
    assert manifest.data == DATA
    assert manifest.extra["seconds"] >= 0
    assert store.load_config(folder) == "seed: 0\n"
    weights, averages = store.load_weights(folder, "model"), store.load_weights(folder, "ema")
    assert same({**weights, **averages}, dict(module.state_dict()))
    assert all(name.startswith("ema.") for name in averages)
    assert not any(name.startswith(("ema.", "codec.")) for name in weights)


def test_a_resumed_run_can_change_its_optimisers_settings(diffusion_module, train, tmp_path):
    train(diffusion_module(), 2)
    slow = diffusion_module(optimizer=functools.partial(AdamW, lr=1e-5, weight_decay=0.25))
    before = copy.deepcopy(store.load_weights(tmp_path / "run/checkpoints/last"))
    resumed = train(slow, 3, start=2, run="slow", resume=str(tmp_path / "run/checkpoints/last"))
    (group,) = resumed.optimizers[0].param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-5, 0.25)
    steps = [(slow.state_dict()[name] - before[name]).abs().max().item() for name in before if "model." in name]
    assert 0 < max(steps) < 3e-5


def test_validation_keeps_its_rhythm_when_resumed(diffusion_module, train, batch, tmp_path):
    """Every two batches since training began, not since the run began."""
    train(diffusion_module(), 3)
    when = []

    class Note(pl.Callback):
        def on_validation_end(self, trainer, module):
            when.append(module.counters.batches_seen)

    resume = str(tmp_path / "run/checkpoints/last")
    train(diffusion_module(), 8, Note(), start=3, run="rest", resume=resume, val_check_interval=2)
    assert when == [4, 6, 8]


def test_lightning_may_not_delete_checkpoints(tmp_path):
    with pytest.raises(NotImplementedError, match="pruned by the checkpoint callback"):
        DirectoryCheckpointIO(config="").remove_checkpoint(str(tmp_path))
