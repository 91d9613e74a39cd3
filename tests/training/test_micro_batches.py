"""Cutting a rank's part of the batch changes memory and time, and nothing else."""

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.losses.regularisers import R1, LeCam
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.types import Batch


def assert_equal(a, b, rtol=1e-9):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def weights(module):
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def fit_cut(make, fit, batches, micro_batch, **options):
    module = make(micro_batch=micro_batch, **options)
    trainer = fit(module, batches, precision="64-true")
    return module, trainer.callback_metrics


def test_cut_keeps_positions_and_the_global_batch():
    whole = Batch(keys=list("abcde"), image=torch.arange(5), label=None, number=3, start=10, total=20)
    parts = whole.cut(2)
    assert [part.keys for part in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert [part.image.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert [(part.start, part.global_size, part.number) for part in parts] == [(10, 20, 3), (12, 20, 3), (14, 20, 3)]
    assert whole.cut(None) == whole.cut(5) == [whole]
    assert [part.global_size for part in Batch(keys=list("abc")).cut(1)] == [3, 3, 3]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_stage_one_with_the_adversary(autoencoder_module, batch, fit, micro_batch):
    """3 of 4 leaves parts of unequal size."""
    batches = [batch(i) for i in range(5)]
    options = {"learn_logvar": True, "gradient_clip": 5.0}
    whole, logged = fit_cut(autoencoder_module, fit, batches, None, r1=R1(every=2), lecam=LeCam(weight=0.1), **options)
    cut, same = fit_cut(
        autoencoder_module, fit, batches, micro_batch, r1=R1(every=2), lecam=LeCam(weight=0.1), **options
    )
    assert_equal(weights(cut), weights(whole))
    assert_equal(dict(same), dict(logged))
    assert logged["train/gan"].abs() > 0
    assert logged["train/grad_norm"] > 5.0


def test_before_the_adversary_is_heard(autoencoder_module, batch, fit):
    for schedule in ({"start": 9}, {"warmup": 9}):
        runs = [
            fit_cut(autoencoder_module, fit, [batch(i) for i in range(2)], size, schedule=schedule)[0]
            for size in (None, 2)
        ]
        assert_equal(weights(runs[1]), weights(runs[0]))


def test_a_codebook_counts_every_sample_once(tiny, autoencoder_module, batch, fit):
    def make(**options):
        torch.manual_seed(0)
        bottleneck = VQ(entries=8, channels=2, ema_decay=0.9, restart_after=1)
        return autoencoder_module(autoencoder=tiny(bottleneck), bottleneck_weight=1.0, **options)

    runs = [fit_cut(make, fit, [batch(i) for i in range(4)], size)[0] for size in (None, 1)]
    assert_equal(weights(runs[1]), weights(runs[0]))


def test_dropout_is_the_same_in_rehearsal_and_performance(tiny, autoencoder_module, batch, fit):
    seen = []

    class Spy(nn.Module):
        def forward(self, a, b):
            seen.append(a.detach())
            return 0.0 * a.flatten(1).mean(1)

    module = autoencoder_module(autoencoder=tiny(dropout=0.5), micro_batch=1)
    module.reconstruction.perceptual = Spy()
    reconstruct, performed = module.game._reconstruct, []

    def follow(*args):
        performed.append(result := reconstruct(*args))
        return result

    module.game._reconstruct = follow
    fit(module, [batch(0, size=3)])
    fakes = [fake.detach() for fake, _ in performed]
    assert len(fakes) == 5  # two rehearsed, then all three
    assert torch.equal(fakes[0], fakes[3])
    assert torch.equal(fakes[1], fakes[4])
    assert len(seen) == 3  # the perceptual network sees every sample once


def test_stage_two(diffusion_module, batch, fit):
    batches = [batch(i) for i in range(3)]
    runs = [fit_cut(diffusion_module, fit, batches, size, gradient_clip=0.1) for size in (None, 1, 3)]
    for module, logged in runs[1:]:
        assert_equal(weights(module), weights(runs[0][0]))
        assert_equal(dict(logged), dict(runs[0][1]))


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused(any_module, size):
    with pytest.raises(InputError, match="at least 1, or null"):
        any_module(micro_batch=size)
