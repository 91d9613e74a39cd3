import functools
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import AdamW

from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import Draws
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.timesteps import Uniform
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.classifier import EncoderClassifier, NoisyClassifier
from latentdiff.training.classifier_module import ClassifierModule
from latentdiff.training.loss_by_time import quarters
from latentdiff.training.optim import WarmupConstant

CLASSES = 3


@pytest.fixture
def classifier_module(tiny):
    def make(**changes):
        torch.manual_seed(0)
        network = EncoderClassifier(
            in_channels=2,
            classes=CLASSES,
            channels=8,
            channel_multipliers=(1,),
            num_res_blocks=1,
            attention_factors=(),
            head_width=4,
            norm_groups=2,
        )
        options = {
            "codec": LatentCodec(autoencoder=tiny(), mean=[0.1, -0.1], std=[0.5, 2.0]),
            "classifier": NoisyClassifier(network=network, path=RectifiedFlow()),
            "timesteps": Uniform(),
            "optimizer": functools.partial(AdamW, lr=1e-3),
            "schedule": WarmupConstant(),
            "ema_decay": 0.9,
            "gradient_clip": float("inf"),
        }
        return randomised(ClassifierModule(**(options | changes)))

    return make


def randomised(module):
    with torch.no_grad():
        for part in (module.model, module.ema.model):
            generator = torch.Generator().manual_seed(1)
            for p in part.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


@pytest.fixture
def labelled(batch):
    def make(number=0, **options):
        made = batch(number, **options)
        return replace(made, label=(torch.arange(len(made)) + made.start + number) % CLASSES)

    return make


def written_out(module, batch, classifier, seed=0, number=0):
    """Cross-entropy and hits at x_t = (1 - t) x0 + t noise, and t, without the module's own code."""
    draws = Draws(seed=seed, number=number, start=batch.start, count=len(batch), total=batch.total)
    mean, std = module.codec.moments(batch.image.float() / 127.5 - 1)
    raw = mean + std * draws.normal("posterior", mean.shape[1:])
    x0 = (raw - torch.tensor([0.1, -0.1]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    t, noise = draws.stratified("t"), draws.normal("noise", x0.shape[1:])
    s = t.view(-1, 1, 1, 1)
    x_t = (1 - s) * x0 + s * noise
    logits = classifier.network(x_t / ((1 - s) ** 2 + s**2).sqrt(), 1000 * t)
    log_p = torch.log_softmax(logits, 1)[range(len(batch)), batch.label]
    return -log_p, (logits.argmax(1) == batch.label).float(), t


def test_gradients_are_those_of_the_cross_entropy_at_noised_latents(classifier_module, labelled, gradients):
    module, expected = classifier_module(), classifier_module()
    loss, _, _ = written_out(expected, labelled(), expected.model)
    loss.mean().backward()
    found = gradients(module, labelled())
    assert {name.split(".")[0] for name in found} == {"model"}
    for name, p in expected.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-4)


def test_gradients_depend_neither_on_ranks_nor_on_micro_batches(classifier_module, labelled, gradients):
    whole = gradients(classifier_module(), labelled())
    halves = [gradients(classifier_module(), labelled(rows=slice(s, s + 2))) for s in (0, 2)]
    cut = gradients(classifier_module(micro_batch=3), labelled())
    for name in whole:
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(cut[name], whole[name], atol=1e-6, rtol=1e-4)


def test_validation_is_of_the_averaged_weights_and_tells_the_quarters_of_t_apart(classifier_module, labelled, validate):
    module = classifier_module()
    val = [labelled(0, size=8), labelled(1, size=4)]
    with torch.no_grad():
        parts = [written_out(module, part, module.ema.model, number=part.number) for part in val]
        module.model.network.out[2].to_out.weight.mul_(-3)
    loss, right, t = (torch.cat(column) for column in zip(*parts))
    logged = validate(module, val)
    assert logged["val/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert logged["val/accuracy"] == pytest.approx(right.mean().item())
    for i in range(4):
        inside = (t >= i / 4) & (t < (i + 1) / 4)
        assert logged[f"val/accuracy_t{i}"] == pytest.approx(right[inside].mean().item())


def test_training_logs_accuracy_by_quarters(classifier_module, labelled, fit):
    module, logged = classifier_module(micro_batch=3), {}

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            logged.update({k: float(v) for k, v in trainer.callback_metrics.items()})

    with torch.no_grad():
        loss, right, t = written_out(module, labelled(size=8), module.model)
    fit(module, [labelled(size=8)], Keep())
    assert logged["train/loss"] == pytest.approx(loss.mean().item(), rel=1e-5)
    assert logged["train/accuracy"] == pytest.approx(right.mean().item())
    for i in range(4):
        assert logged[f"train/accuracy_t{i}"] == pytest.approx(right[quarters(t) == i].mean().item())
    assert module.counters.as_dict() == {"batches_seen": 1, "images_seen": 8}
    assert int(module.ema.updates) == 1


def test_it_learns_what_can_be_seen(classifier_module, labelled, fit, validate, monkeypatch):
    """Class k is a latent of brightness k, without the noise that an untrained first stage would add."""

    def moments(codec, image):
        mean = torch.nn.functional.avg_pool2d(image, 2)[:, :2]
        return mean, torch.zeros_like(mean)

    monkeypatch.setattr(LatentCodec, "moments", moments)

    def bright(number):
        made = labelled(number, size=16)
        level = (40 + 80 * made.label).view(-1, 1, 1, 1).to(torch.uint8)
        return replace(made, image=level.expand(-1, 3, 8, 8).contiguous())

    module = classifier_module(optimizer=functools.partial(AdamW, lr=1e-2))
    before = validate(module, [bright(0)])["val/accuracy"]
    fit(module, [bright(i) for i in range(60)])
    logged = validate(module, [bright(i) for i in range(4)])
    assert logged["val/accuracy"] > max(before, 0.6)
    assert logged["val/accuracy_t0"] > 0.9
    assert logged["val/accuracy_t0"] > logged["val/accuracy_t3"]


@pytest.mark.parametrize(("label", "message"), [([0, -1, 1, 2], "first 0-1 "), (None, "a label per sample")])
def test_samples_without_a_label_stop_training_and_validation(
    classifier_module, labelled, fit, validate, label, message
):
    faulty = replace(labelled(), label=None if label is None else torch.tensor(label))
    with pytest.raises(InputError, match=message):
        fit(classifier_module(), [faulty])
    with pytest.raises(InputError, match=message):
        validate(classifier_module(), [faulty])


def test_codec_is_in_no_checkpoint(classifier_module):
    module = classifier_module()
    assert {name.split(".")[0] for name in module.state_dict()} == {"model", "ema", "nonfinite"}
    assert (module.kind, module.latent) == ("classifier", {"channels": 2, "factor": 2})
