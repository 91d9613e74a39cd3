import copy

import pytest
import pytorch_lightning as pl
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.loss import DiffusionLoss
from latentdiff.diffusion.noise import Draws
from latentdiff.diffusion.timesteps import LogitNormal
from latentdiff.diffusion.weighting import MinSNR
from latentdiff.training.power_ema import PowerEma
from latentdiff.types import Conditioning


def draws_of(module, batch, number=0):
    return Draws(seed=module.seed, number=number, start=batch.start, count=len(batch), total=batch.total)


def plain_gradients(module, batch):
    """Autograd of mean |u - (noise - x0)|^2 at x_t = (1 - t) x0 + t noise, written out."""
    module = copy.deepcopy(module)
    draws = draws_of(module, batch)
    mean, std = module.codec.moments(batch.image.float() / 127.5 - 1)
    raw = mean + std * draws.normal("posterior", mean.shape[1:])
    x0 = (raw - torch.tensor([0.1, -0.1]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(2, 1, 1)
    noise, t = draws.normal("noise", x0.shape[1:]), draws.stratified("t")
    kept = draws.uniform("drop/text") >= 0.5
    captions = [caption if keep else "" for caption, keep in zip(batch.caption, kept)]
    ids, mask = module.model["conditioner"].tokenizer(captions)
    tokens = module.model["conditioner"].transformer(ids, mask)
    backbone, path = module.model["denoiser"].backbone, module.model["denoiser"].path
    cond = Conditioning(tokens=tokens, mask=mask)
    s = t.view(-1, 1, 1, 1)
    output = backbone((1 - s) * x0 + s * noise, path.network_time(t), cond)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    loss = (output - (noise - x0)).square().mean()
    return dict(zip(trained, torch.autograd.grad(loss, trained.values())))


class Follow(pl.Callback):
    """What was logged after each batch."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def randomised(module):
    """Layers that start at zero hide what is before them."""
    with torch.no_grad():
        for part in (module.model, module.ema.model):
            generator = torch.Generator().manual_seed(1)
            for p in part.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def test_gradients_are_those_of_the_flow_matching_loss(diffusion_module, batch, gradients):
    module = randomised(diffusion_module())
    expected = plain_gradients(module, batch())
    found = gradients(module, batch())
    assert found.keys() == expected.keys()
    assert {name.split(".")[1] for name in found} == {"denoiser", "conditioner"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)


def test_gradients_do_not_depend_on_the_split_over_ranks(diffusion_module, batch, gradients):
    whole = gradients(randomised(diffusion_module()), batch())
    halves = [gradients(randomised(diffusion_module()), batch(rows=slice(s, s + 2))) for s in (0, 2)]
    for name in whole:
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name], atol=1e-6, rtol=1e-4)


def test_frozen_codec_is_in_no_checkpoint_and_does_not_change(diffusion_module, batch, fit):
    module = diffusion_module()
    before = copy.deepcopy(module.codec.state_dict())
    memories = {"loss_by_time", "condition_log", "nonfinite"}
    assert {name.split(".")[0] for name in module.state_dict()} == {"model", "ema", *memories}
    fit(module, [batch(i) for i in range(2)])
    after = module.codec.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(part.training for part in module.codec.modules())
    fresh = diffusion_module()
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(
        fresh.ema.model["denoiser"].backbone.out[2].weight,
        module.ema.state_dict()["model.denoiser.backbone.out.2.weight"],
    )


def test_average_and_counters_advance_once_per_batch(diffusion_module, batch, fit):
    """Two of three ranks' worth of images are elsewhere: images are counted over the global batch."""
    module, weights = diffusion_module(), []
    name = "denoiser.backbone.out.2.weight"
    shadow = module.model.state_dict()[name].clone()

    class Follow(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            weights.append(module.model.state_dict()[name].clone())

    fit(module, [batch(i, size=6, rows=slice(2, 4)) for i in range(5)], Follow())
    for n, now in enumerate(weights):
        decay = min(0.9, (1 + n) / (10 + n))
        shadow = decay * shadow + (1 - decay) * now
    torch.testing.assert_close(module.ema.model.state_dict()[name], shadow)
    assert int(module.ema.updates) == 5
    assert module.counters.as_dict() == {"batches_seen": 5, "images_seen": 30}


def test_training_is_repeated_exactly_by_its_seed(diffusion_module, batch, fit):
    runs = []
    for seed in (0, 0, 1):
        module = diffusion_module(seed=seed)
        fit(module, [batch(i) for i in range(3)])
        runs.append(module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    name = "model.denoiser.backbone.out.2.weight"
    assert not torch.equal(runs[0][name], runs[2][name])


def test_learning_rate_and_gradient_norm_are_those_of_the_batch(diffusion_module, batch, fit):
    module, logged = diffusion_module(gradient_clip=1e-3), []
    module.schedule = lambda number: 1 / (1 + number)

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            clipped = torch.cat([p.grad.flatten() for p in module.model.parameters()]).norm()
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            logged.append((rate, clipped.item(), {k: float(v) for k, v in trainer.callback_metrics.items()}))

    fit(module, [batch(i) for i in range(3)], Keep())
    for number, (rate, clipped, values) in enumerate(logged):
        assert rate == 1e-3 / (1 + number)
        assert values["train/lr"] == pytest.approx(rate)
        assert values["train/grad_norm"] > 1e-2
        assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_validation_is_the_same_whenever_it_is_run(diffusion_module, batch, fit, validate):
    """It depends on the averaged weights alone: neither on the seed of training nor on its progress."""
    module, other = randomised(diffusion_module()), randomised(diffusion_module(seed=9))
    val = [batch(0, size=4), batch(1, size=2)]
    first = validate(module, val)
    module.counters.batches_seen = 77
    assert validate(module, val) == validate(other, val) == first
    with torch.no_grad():
        module.model["denoiser"].backbone.out[2].weight.mul_(2)
    assert validate(module, val) == first
    with torch.no_grad():
        module.ema.model["denoiser"].backbone.out[2].weight.mul_(2)
    assert validate(module, val) != first


def test_validation_loss_is_the_mean_over_images_without_dropped_captions(diffusion_module, batch, validate):
    module = randomised(diffusion_module())
    val, losses = [batch(0, size=4), batch(1, size=2)], []
    for part in val:
        draws = Draws(seed=0, number=part.number, start=0, count=len(part), total=len(part))
        x0 = module.codec.draw(
            module.codec.moments(part.image.float() / 127.5 - 1), draws.normal("posterior", (2, 4, 4))
        )
        with torch.no_grad():
            cond = module.model["conditioner"](part)
            noise, t = draws.normal("noise", (2, 4, 4)), draws.stratified("t")
            losses.append(module.loss(module.model["denoiser"], x0, noise, t, cond))
    assert validate(module, val)["val/loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_loss_by_quarters_of_t(diffusion_module, batch, fit):
    """Four samples, spread evenly over t: each quarter has one; then a law of t that leaves one quarter alone."""
    module, follow, asked = diffusion_module(), Follow(), []
    plain = module._losses

    def losses(part, number):
        asked.append(plain(part, number))
        return asked[-1]

    module._losses = losses
    fit(module, [batch(i) for i in range(3)], follow)
    sums, counts = torch.zeros(4), torch.zeros(4)
    for (loss, t, _), values in zip(asked, follow.values):
        for quarter in range(4):
            inside = (t >= quarter / 4) & (t < (quarter + 1) / 4)
            sums[quarter] = 0.98 * sums[quarter] + loss.detach()[inside].sum()
            counts[quarter] = 0.98 * counts[quarter] + inside.sum()
            assert values[f"train/loss_t{quarter}"] == pytest.approx((sums / counts)[quarter].item(), rel=1e-5)
    module, follow = diffusion_module(), Follow()
    module.loss.timesteps = lambda u, t_max: 0.25 + 0.75 * u
    fit(module, [batch(0)], follow)
    assert "train/loss_t0" not in follow.values[0]
    assert {"train/loss_t1", "train/loss_t2", "train/loss_t3"} <= follow.values[0].keys()


def test_the_share_of_dropped_captions_is_logged(diffusion_module, batch, fit):
    """Over all batches so far, and the same by micro-batches; captions over the limit of 6 tokens are counted, where
    they were not dropped."""
    seen = {}
    for size in (None, 1):
        module, follow = diffusion_module(micro_batch=size), Follow()
        module.model["conditioner"].drop = 0.5
        fit(module, [batch(i) for i in range(6)], follow)
        seen[size] = [values["train/dropped/text"] for values in follow.values]
        cut = [values["train/captions_cut"] for values in follow.values]
        long = [len(caption.split()) > 4 for i in range(6) for caption in batch(i).caption]
        conditioner = module.model["conditioner"]
        kept = torch.cat([~conditioner.dropped(draws_of(module, batch(i), i))["text"] for i in range(6)]).tolist()
        counts = [sum(a and b for a, b in zip(long[: 4 * n], kept)) for n in range(1, 7)]
        assert cut == counts
        assert counts[-1] > 1
    gone = [module.model["conditioner"].dropped(draws_of(module, batch(i), i))["text"].float().mean() for i in range(6)]
    assert seen[None] == pytest.approx([sum(gone[: i + 1]).item() / (i + 1) for i in range(6)])
    assert seen[1] == pytest.approx(seen[None])
    assert 0 < seen[None][-1] < 1


def test_offset_noise_is_added_in_training_alone(diffusion_module, batch, fit, validate, monkeypatch):
    plain, offset = randomised(diffusion_module()), randomised(diffusion_module(offset_noise=0.5))
    noises = []
    for module in (plain, offset):
        call = module.loss.__call__
        monkeypatch.setattr(module, "loss", type("Spy", (), {"sample_t": module.loss.sample_t, "__call__": None})())
        type(module.loss).__call__ = lambda self, denoiser, x0, noise, t, cond, call=call: (
            noises.append(noise) or call(denoiser, x0, noise, t, cond)
        )
        module.schedule = lambda number: 0.0
        fit(module, [batch(0)])
    draws = draws_of(plain, batch(0)).normal("offset", (2, 1, 1))
    torch.testing.assert_close(noises[1] - noises[0], 0.5 * draws.expand_as(noises[0]))
    assert validate(plain, [batch(1)]) == validate(offset, [batch(1)])
    with pytest.raises(InputError, match=r"task\.offset_noise: expected a strength of at least 0"):
        diffusion_module(offset_noise=-0.1)


def test_the_comparable_loss_depends_on_network_and_images_alone(diffusion_module, batch, validate):
    """Neither the law of t, nor the weighting, nor how the images are batched plays a part."""
    val = [batch(0, size=4), batch(1, size=2)]
    plain = validate(randomised(diffusion_module()), val)
    other = randomised(diffusion_module(loss=DiffusionLoss(timesteps=LogitNormal(mean=1.0), weighting=MinSNR())))
    found = validate(other, val)
    names = [name for name in plain if name.startswith("val/loss_v")]
    assert len(names) >= 4
    assert {name: found[name] for name in names} == {name: plain[name] for name in names}
    assert found["val/loss"] != plain["val/loss"]
    cut = [batch(0, size=4, rows=slice(0, 3)), batch(0, size=4, rows=slice(3, 4)), batch(1, size=2)]
    for part, start in zip(cut, (0, 0, 0)):
        part.start, part.total = start, len(part)
    recut = validate(randomised(diffusion_module()), cut)
    assert {name: recut[name] for name in names} == pytest.approx({name: plain[name] for name in names}, rel=1e-5)


def test_weights_to_start_from_are_the_first_average_too(diffusion_module, batch, fit):
    module, other = diffusion_module(), randomised(diffusion_module())
    wanted = other.model["denoiser"].backbone.state_dict()
    module.start_from(lambda backbone: backbone.load_state_dict(wanted))
    for part in (module.model, module.ema.model):
        found = part["denoiser"].backbone.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert int(module.ema.updates) == 0


def test_power_averages_follow_and_are_saved(diffusion_module, batch, fit):
    module = diffusion_module(power_ema=PowerEma)
    fit(module, [batch(i) for i in range(4)])
    assert module.power_ema.count == 4
    name = "denoiser.backbone.out.2.weight"
    assert not torch.equal(module.state_dict()[f"power_ema.averages.0.{name}"], module.model.state_dict()[name])
    fresh = diffusion_module(power_ema=PowerEma)
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert fresh.power_ema.count == 4
    assert diffusion_module().power_ema is None
