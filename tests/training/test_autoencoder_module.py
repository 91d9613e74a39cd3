import copy
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch

from latentdiff.diffusion.noise import Draws
from latentdiff.losses.adversarial import Hinge, NonSaturating, Vanilla
from latentdiff.models.autoencoder.bottlenecks.fsq import FSQ
from latentdiff.models.autoencoder.bottlenecks.kl import KL


def close(a, b, rtol=1e-4):
    """Equal up to float32 rounding; a gradient that is nought but for rounding is compared with the largest of all."""
    assert a.keys() == b.keys()
    largest = max(g.abs().max().item() for g in b.values())
    for name in a:
        scale = max(b[name].abs().max().item(), 1e-4 * largest)
        torch.testing.assert_close(a[name], b[name], atol=rtol * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def plain_gradients(module, batch, weight):
    """Plain autograd of ``nll + d_weight * weight * gan + bottleneck_weight * kl`` and of the discriminator's loss."""
    module = copy.deepcopy(module)
    image = batch.image.to(module.dtype) / 127.5 - 1
    posterior = module.autoencoder.encode(image)
    draws = Draws(seed=module.seed, number=0, start=batch.start, count=len(batch), total=batch.total)
    fake = module.autoencoder.decode(posterior.sample(draws.normal("posterior", posterior.mean.shape[1:])))
    nll = module.reconstruction(fake, image).mean()
    kl = posterior.kl().sum((1, 2, 3)).mean()
    loss = module.game.loss
    gan = loss.generator(module.discriminator(fake)).mean()
    last = module.autoencoder.decoder.conv_out.weight
    by_nll, by_gan = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, gan))
    d_weight = (by_nll / (by_gan + 1e-4)).clamp(0, 1e4).detach()
    trained = {
        name: p for name, p in module.named_parameters() if p.requires_grad and not name.startswith("discriminator.")
    }
    total = nll + d_weight * weight * gan + module.game.bottleneck_weight * kl
    found = dict(zip(trained, torch.autograd.grad(total, trained.values(), retain_graph=True)))
    judge = dict(module.discriminator.named_parameters(prefix="discriminator"))
    judged = loss.discriminator(module.discriminator(image), module.discriminator(fake.detach())).mean()
    return found | dict(zip(judge, torch.autograd.grad(judged, judge.values())))


@pytest.mark.parametrize("learn_logvar", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_are_those_of_the_whole_weighted_loss(autoencoder_module, batch, gradients, learn_logvar, norm):
    """No gradient of the generator's loss reaches the discriminator, none of the discriminator's the autoencoder."""
    module = autoencoder_module(learn_logvar=learn_logvar, norm=norm)
    expected = plain_gradients(module, batch(), 0.5)
    assert ("reconstruction.logvar" in expected) == learn_logvar
    close(gradients(module, batch()), expected)


@pytest.mark.parametrize("loss", [Hinge(), NonSaturating(), Vanilla()])
def test_gradients_are_exact_for_every_loss(autoencoder_module, batch, gradients, loss):
    module = autoencoder_module(adversarial_loss=loss).double()
    expected = plain_gradients(module, batch(), 0.5)
    close(gradients(module, batch(), precision="64-true"), expected, rtol=1e-10)


def test_adaptive_weight_is_that_of_two_passes_to_the_last_layer(autoencoder_module, batch, fit):
    module = autoencoder_module().double()
    whole, unheard = (plain_gradients(module, batch(), weight) for weight in (1.0, 0.0))
    heard = autoencoder_module(schedule={"weight": 1.0})
    values = fit(heard, [batch()], precision="64-true").callback_metrics
    name = "autoencoder.decoder.conv_out.weight"
    module.game.bottleneck_weight = 0.0
    by_nll = plain_gradients(module, batch(), 0.0)[name]
    by_gan = (whole[name] - unheard[name]) / values["train/adaptive_weight"]
    expected = by_nll.norm() / (by_gan.norm() + 1e-4)
    assert values["train/adversarial_weight"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_unheard_adversary_leaves_reconstruction_and_kl(autoencoder_module, batch, gradients):
    module = autoencoder_module(schedule={"warmup": 1})
    close(gradients(module, batch()), plain_gradients(module, batch(), 0.0))


def test_adversary_matters_when_heard(autoencoder_module, batch):
    """Guards the two tests above: the terms they compare are not negligible."""
    module = autoencoder_module()
    heard, unheard = (plain_gradients(module, batch(), weight) for weight in (0.5, 0.0))
    name = "autoencoder.decoder.conv_out.weight"
    assert (heard[name] - unheard[name]).norm() > 0.1 * unheard[name].norm()
    module.game.bottleneck_weight = 0.0
    name = "autoencoder.quant_conv.weight"
    without_kl = plain_gradients(module, batch(), 0.0)
    assert (without_kl[name] - unheard[name]).norm() > 0.1 * unheard[name].norm()


def test_before_the_game_starts_the_discriminator_has_zero_gradients(autoencoder_module, batch, gradients):
    """Zero, not none: DDP waits for every parameter."""
    found = gradients(autoencoder_module(schedule={"start": 1}), batch())
    judge = [g for name, g in found.items() if name.startswith("discriminator.")]
    assert len(judge) > 0
    assert all(g.abs().max() == 0 for g in judge)


class Snapshots(pl.Callback):
    """Copies of the state after every batch."""

    def __init__(self):
        self.states, self.rates = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.states.append(copy.deepcopy(module.state_dict()))
        self.rates.append([group["lr"] for o in trainer.optimizers for group in o.param_groups])


def moved(states, prefix):
    """Whether any weight under the prefix moved in each batch after the first."""
    return [
        any(not torch.equal(now[k], before[k]) for k in now if k.startswith(prefix)) for before, now in pairwise(states)
    ]


def test_phases_are_counted_in_batches(autoencoder_module, batch, fit):
    """With two optimisers Lightning's global_step is twice the number of batches; the phases ignore it."""
    module = autoencoder_module(schedule={"start": 3, "warmup": 1})
    seen, heard = Snapshots(), []

    class Heard(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
            heard.append("train/gan" in trainer.callback_metrics)

    fit(module, [batch(i) for i in range(6)], seen, Heard())
    assert moved(seen.states, "autoencoder.") == [True] * 5
    assert moved(seen.states, "discriminator.") == [False, False, True, True, True]
    assert heard == [False] * 4 + [True] * 2
    assert module.counters.as_dict() == {"batches_seen": 6, "images_seen": 24}


def test_learning_rate_is_set_for_every_batch_from_each_optimisers_own(autoencoder_module, batch, fit):
    module = autoencoder_module(
        schedule={"start": 0},
        discriminator_optimizer=lambda p: torch.optim.AdamW(p, lr=5e-4),
    )
    module.schedule = lambda number: [1.0, 0.5, 0.25][number]
    seen = Snapshots()
    lightning = fit(module, [batch(i) for i in range(3)], seen)
    assert seen.rates == [[1e-3, 5e-4], [5e-4, 2.5e-4], [2.5e-4, 1.25e-4]]
    assert lightning.callback_metrics["train/lr"].item() == pytest.approx(2.5e-4)


def test_average_follows_every_batch(autoencoder_module, batch, fit):
    """After n updates the decay is min(0.9, (1 + n) / (10 + n))."""
    module = autoencoder_module()
    name, seen = "encoder.conv_in.weight", Snapshots()
    shadow = module.autoencoder.state_dict()[name].clone()
    fit(module, [batch(i) for i in range(4)], seen)
    for n, state in enumerate(seen.states):
        decay = min(0.9, (1 + n) / (10 + n))
        shadow = decay * shadow + (1 - decay) * state[f"autoencoder.{name}"]
        torch.testing.assert_close(state[f"ema.model.{name}"], shadow, atol=1e-6, rtol=0)


def test_log_scale_reaches_its_closed_form_optimum(autoencoder_module, batch, fit):
    """With the autoencoder held still: the logarithm of the mean absolute error per element."""
    module = autoencoder_module(
        learn_logvar=True,
        discriminator=None,
        optimizer=lambda named: torch.optim.SGD([p for name, p in named if name.endswith("logvar")], lr=1e-3),
    )
    with torch.no_grad():  # no noise in the latent
        module.autoencoder.quant_conv.weight[2:] = 0.0
        module.autoencoder.quant_conv.bias[2:] = -30.0
    one = batch()
    fit(module, [batch() for _ in range(60)])
    image = one.image.float() / 127.5 - 1
    with torch.no_grad():
        error = (module.autoencoder.decode(module.autoencoder.encode(image).mean) - image).abs().mean()
    assert module.reconstruction.logvar.item() == pytest.approx(error.log().item(), rel=1e-3)


@pytest.mark.parametrize("learn_logvar", [False, True])
def test_log_scale_is_optimised_only_where_it_learns(autoencoder_module, batch, fit, learn_logvar):
    """The L1 error is below 1 per element, so that the likelihood rises when the scale falls."""
    module = autoencoder_module(learn_logvar=learn_logvar)
    fit(module, [batch(i) for i in range(3)])
    logvar = module.reconstruction.logvar.item()
    assert logvar == pytest.approx(-3e-3, rel=0.05) if learn_logvar else logvar == 0


def test_gradient_is_clipped_to_the_limit(autoencoder_module, batch, gradients):
    free = gradients(autoencoder_module(), batch())
    cut = gradients(autoencoder_module(gradient_clip=0.5), batch())
    own = [name for name in free if name.startswith("autoencoder.")]
    assert torch.cat([cut[name].flatten() for name in own]).norm().item() == pytest.approx(0.5, rel=1e-3)
    name = "discriminator.main.0.weight"
    assert torch.equal(cut[name], free[name])


def test_trains_without_a_discriminator(autoencoder_module, batch, gradients):
    module = autoencoder_module()
    expected = plain_gradients(module, batch(), 0.0)
    alone = gradients(autoencoder_module(discriminator=None), batch())
    close(alone, {name: g for name, g in expected.items() if name.startswith("autoencoder.")})


def test_gradients_do_not_depend_on_the_split_over_ranks(autoencoder_module, batch, gradients):
    """The ranks' mean is the global batch's gradient: draws belong to samples, losses are means over them."""
    make = lambda: autoencoder_module(schedule={"warmup": 1})  # noqa: E731
    whole = gradients(make(), batch())
    halves = [gradients(make(), batch(rows=slice(s, s + 2))) for s in (0, 2)]
    close({name: (halves[0][name] + halves[1][name]) / 2 for name in whole}, whole)


def test_bfloat16_gradients_are_those_of_plain_autograd_in_bfloat16(autoencoder_module, batch, gradients):
    """Both are far from float32 (an L1 loss jumps where rounding changes a sign) and near each other."""
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_gradients(autoencoder_module(), batch(), 0.5)
    found = gradients(autoencoder_module(), batch(), precision="bf16-mixed")
    for part in ("autoencoder.", "discriminator."):
        a, b = (
            torch.cat([of[name].flatten() for name in expected if name.startswith(part)]) for of in (expected, found)
        )
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.06 * a.norm()


def test_latent_statistics_are_those_of_draws(autoencoder_module, batch, fit):
    module = autoencoder_module()
    with torch.no_grad():
        module.ema.model.quant_conv.bias.copy_(torch.tensor([0.5, -1.0, -0.5, 1.0]))
    batches = [batch(0, size=5), batch(1, size=3)]
    fit(module, [batch(3)], val=batches)
    module.measure_latents()
    image = torch.cat([b.image for b in batches]).float() / 127.5 - 1
    with torch.no_grad():
        posterior = module.ema.model.encode(image)
        mean, std = posterior.mean.transpose(0, 1).flatten(1), posterior.std.transpose(0, 1).flatten(1)
        noise = torch.randn(2000, *mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.latent_mean, mean.mean(1))
    torch.testing.assert_close(module.latent_std, (mean.var(1, correction=0) + std.square().mean(1)).sqrt())
    draws = (mean + std * noise).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module.latent_std, draws.std(1), rtol=0.01, atol=0)


def test_validation_is_the_mean_over_images_for_the_averaged_weights(autoencoder_module, batch, fit, validate):
    """Batches of different size count by their images."""
    module = autoencoder_module()
    fit(module, [batch(i) for i in range(3)])
    val = [batch(7, size=4), batch(8, size=2)]
    values = validate(module, val)
    image = torch.cat([b.image for b in val])
    with torch.no_grad():
        posterior = module.ema.model.encode(image.float() / 127.5 - 1)
        rebuilt = module.ema.model.decode(posterior.mean)
        kl = posterior.kl().sum((1, 2, 3))
    levels = ((rebuilt.clamp(-1, 1) + 1) * 127.5).round()
    error = ((levels - image.float()) / 255).square().mean((1, 2, 3))
    assert values["val/psnr"] == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-5)
    assert values["val/kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert validate(module, val) == values


@pytest.mark.parametrize(("bottleneck", "weight", "elements"), [(KL(), 1e-6, 1), (FSQ(levels=[4, 4]), 1.0, 3 * 8 * 8)])
def test_weight_and_limit_follow_the_reduction(tiny, autoencoder_module, bottleneck, weight, elements):
    """VQGAN's clamp of the adaptive weight stands beside a mean over elements, ours beside their sum."""
    module = autoencoder_module(autoencoder=tiny(bottleneck), bottleneck_weight=None)
    assert module.game.bottleneck_weight == weight
    assert module.game.adaptive_limit(3 * 8 * 8) == 1e4 * elements
