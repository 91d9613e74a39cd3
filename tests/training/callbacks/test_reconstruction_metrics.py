from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from latentdiff.config.errors import InputError
from latentdiff.metrics.features import RandomConvFeatures
from latentdiff.metrics.frechet import frechet_distance_of
from latentdiff.metrics.reconstruction import ssim
from latentdiff.models.perceptual import LPIPS
from latentdiff.training.callbacks.reconstruction_metrics import ReconstructionMetrics
from latentdiff.types import Batch

FEATURES = RandomConvFeatures(dim=16, scales=2)


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


def validated(trainer, module, callback, data):
    lightning = trainer(callback)
    lightning.validate(module, datamodule=Data(data), verbose=False)
    return {name: value.item() for name, value in lightning.callback_metrics.items()}


def test_the_first_images_are_measured_however_they_come(trainer):
    x = images(12)[:10]
    expected = {
        "val/ssim": ssim(x // 2, x).mean().item(),
        "val/fd_randconv-v1-seed0-dim16-scales2_n10": frechet_distance_of(FEATURES(x // 2), FEATURES(x)),
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


def test_ranks_parts_of_global_batches_are_placed(trainer):
    """The second rank's halves: indices 2, 3 and 6, 7, of which 7 is one too many."""
    whole = images(8)
    data = [Batch(keys=["a", "b"], image=whole[s : s + 2], number=n, start=2, total=4) for n, s in ((0, 2), (1, 6))]
    found = validated(trainer, Halves(), ReconstructionMetrics(features=FEATURES, images=7), data)
    x = whole[[2, 3, 6]]
    assert found["val/ssim"] == pytest.approx(ssim(x // 2, x).mean().item(), rel=1e-5)


def test_one_image_is_too_few():
    with pytest.raises(InputError, match="at least 2, got 1"):
        ReconstructionMetrics(features=FEATURES, images=1)


def test_a_set_of_one_image_is_refused_before_training():
    one = SimpleNamespace(datamodule=SimpleNamespace(val_set=[0]))
    with pytest.raises(InputError, match=r"data\.val: .* at least 2 images, there are 1"):
        ReconstructionMetrics(features=FEATURES).on_fit_start(one, None)
