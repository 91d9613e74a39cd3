import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.gaussian import FrechetStatistics, frechet_distance_of
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reconstruction import ssim
from latentdiff.models.perceptual import LPIPS
from latentdiff.training.callbacks.reconstruction_metrics import ReconstructionMetrics
from latentdiff.types import Batch

FEATURES = RandomConvFeatures(dim=16, scales=2)
NAMED = Naming(FEATURES.name, False, 10, reconstructions=True)


class Halves(pl.LightningModule):
    """Validates as stage one does; what it returns are images of half the brightness."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def validation_step(self, batch, batch_index):
        return batch.image // 2


class Data(pl.LightningDataModule):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batches(*sizes):
    """Consecutive global batches of those sizes from one set."""
    parts = images(sum(sizes)).split(sizes)
    return [Batch(keys=[str(i) for i in range(len(p))], image=p, number=n, total=len(p)) for n, p in enumerate(parts)]


def seen(x):
    return FEATURES(x, Batch(keys=[""] * len(x)))["pool"]


def validated(trainer, module, callback, data):
    lightning = trainer(callback)
    lightning.validate(module, datamodule=Data(data), verbose=False)
    return {name: value.item() for name, value in lightning.callback_metrics.items()}


def test_the_first_images_are_measured_however_they_come(trainer):
    x = images(12)[:10]
    expected = {
        "val/ssim": ssim(x // 2, x).mean().item(),
        f"val/{NAMED('fid', otherwise='fd')}": frechet_distance_of(seen(x // 2), FrechetStatistics.of(seen(x))),
    }
    for sizes in ((12,), (4, 4, 4), (7, 5)):
        found = validated(trainer, Halves(), ReconstructionMetrics(features=FEATURES, images=10), batches(*sizes))
        assert found == pytest.approx(expected, rel=1e-5)


def test_every_validation_stands_for_itself(trainer):
    """The second begins anew, with the originals of the first."""
    callback, data = ReconstructionMetrics(features=FEATURES, images=8), batches(4, 4)
    first = validated(trainer, Halves(), callback, data)
    assert validated(trainer, Halves(), callback, data) == first


def test_a_loss_with_lpips_lends_its_network(trainer, monkeypatch):
    class Small(LPIPS):
        def __init__(self):
            nn.Module.__init__(self)

        def forward(self, a, b):
            return (a - b).abs().mean(dim=(1, 2, 3))

    x = images(4)
    found = validated(trainer, Halves(perceptual=Small()), ReconstructionMetrics(features=FEATURES), batches(4))
    assert found["val/lpips"] == pytest.approx(((x - x // 2) / 127.5).mean().item(), rel=1e-5)


def hooks(batches):
    """What two validations of these batches log, without a trainer."""
    logged, module = [], Halves()
    module.log_dict = lambda values, **_: logged.append(values)
    callback = ReconstructionMetrics(features=FEATURES, images=7)
    for _ in range(2):
        callback.on_validation_epoch_start(None, module)
        for number, batch in enumerate(batches):
            callback.on_validation_batch_end(None, module, batch.image // 2, batch, number)
        callback.on_validation_epoch_end(None, module)
    return logged


def _rank(rank, folder):
    """Forked, so that nothing is imported again; one thread, since a fork has no others to wait for."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parts = [batch.rows(2 * rank, 2 * rank + 2) for batch in batches(4, 4)]
    Path(f"{folder}/{rank}.json").write_text(json.dumps(hooks(parts)))
    dist.destroy_process_group()


def test_two_processes_log_what_one_does(tmp_path):
    """Each has half of every global batch; the last of the 8 images is one too many."""
    start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert len(first[0]) == 2
    for ours, alone in zip(first, hooks(batches(4, 4))):
        assert ours == pytest.approx(alone, rel=1e-6)


def test_one_image_is_too_few():
    with pytest.raises(InputError, match="at least 2, got 1"):
        ReconstructionMetrics(features=FEATURES, images=1)


def test_a_set_of_one_image_is_refused_before_training():
    one = SimpleNamespace(datamodule=SimpleNamespace(val_set=[0]))
    with pytest.raises(InputError, match=r"data\.val: .* at least 2 images, there are 1"):
        ReconstructionMetrics(features=FEATURES).on_fit_start(one, None)
