import copy

import pytest
import torch

from latentdiff.checkpoint import store
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO
from latentdiff.training.tally import Tally


def test_means_over_all_samples_and_sums_of_scalars():
    tally = Tally()
    tally.add({"nll": torch.tensor([1.0, 2.0]), "gan": torch.tensor([0.0, 0.0]).bfloat16()})
    tally.add({"nll": torch.tensor([6.0]), "gan": torch.tensor([3.0]).bfloat16()})
    tally.note("kl", torch.tensor(0.25))
    tally.note("kl", torch.tensor(0.5))
    assert tally.settle(keys=list("abc"), number=0) == {"nll": 3.0, "gan": 1.0, "kl": 0.75}


def test_values_spread_over_bins_come_as_sums_and_counts():
    tally = Tally()
    tally.add({"loss": torch.tensor([1.0, 2.0])})
    tally.spread("by", torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), 3)
    tally.add({"loss": torch.tensor([4.0])})
    tally.spread("by", torch.tensor([4.0]), torch.tensor([2]), 3)
    sums = {"by/sum0": 1.0, "by/sum1": 0.0, "by/sum2": 6.0}
    counts = {"by/count0": 1.0, "by/count1": 0.0, "by/count2": 2.0}
    assert tally.settle(keys=list("abc"), number=0) == {"loss": pytest.approx(7 / 3), **sums, **counts}


def test_error_names_batch_term_and_samples():
    tally = Tally()
    tally.add({"nll": torch.tensor([1.0, 2.0, 3.0]), "perceptual": torch.tensor([0.0, float("nan"), float("inf")])})
    tally.note("grad_norm", torch.tensor(float("nan")))
    with pytest.raises(NonFiniteError, match=r"^batch 17 .*: perceptual \(samples b, c\); grad_norm: not finite") as e:
        tally.settle(keys=list("abc"), number=17)
    assert "nll" not in str(e.value)


def test_long_lists_of_samples_are_cut():
    tally = Tally()
    tally.add({"nll": torch.full((11,), float("nan"))})
    with pytest.raises(NonFiniteError, match=r"\(samples 0, 1, 2, 3, 4, 5, 6, 7 and 3 more\)"):
        tally.settle(keys=[str(i) for i in range(11)], number=0)


def spoil(module, term, batch):
    """Makes one term not finite from the third batch on, for the second sample alone where a term knows samples."""

    def second(values):
        bad = torch.zeros(len(values)).index_fill(0, torch.tensor(1), float("nan"))
        return values + bad if module.counters.batches_seen == 2 else values

    reconstruction, game, bottleneck = module.reconstruction, module.game, module.autoencoder.bottleneck
    if term == "nll":
        plain = reconstruction.terms
        reconstruction.terms = lambda a, b: {"nll": second(plain(a, b)["nll"])}
    elif term == "perceptual":
        reconstruction.perceptual = lambda a, b: second((a - b).square().mean((1, 2, 3)))
    elif term == "penalty":
        bottleneck.register_forward_hook(lambda m, i, latent: _with_penalty(latent, second(latent.penalty)))
    elif term == "gan":
        plain = game.loss.generator
        game.loss = copy.copy(game.loss)
        game.loss.generator = lambda fake: second(plain(fake))
    else:
        plain = game.loss.discriminator
        game.loss = copy.copy(game.loss)
        game.loss.discriminator = lambda real, fake: second(plain(real, fake))


def _with_penalty(latent, penalty):
    object.__setattr__(latent, "penalty", penalty)
    return latent


@pytest.mark.parametrize("term", ["nll", "perceptual", "penalty", "gan", "discriminator"])
def test_stage_one_stops_before_the_update(autoencoder_module, batch, fit, tmp_path, term):
    module = autoencoder_module()
    if term == "perceptual":
        del module.reconstruction.perceptual
    spoil(module, term, batch)
    checkpoints = Checkpoints(run_dir=str(tmp_path), every=1)
    states, save = [], checkpoints._save
    checkpoints._save = lambda *args: (save(*args), states.append(copy.deepcopy(module.state_dict())))
    files = DirectoryCheckpointIO(config="")
    with pytest.raises(NonFiniteError, match=rf"^batch 2 .*\b{term} \(samples 2-1\)"):
        fit(module, [batch(i) for i in range(4)], checkpoints, plugins=[files])
    assert module.counters.batches_seen == 2
    assert all(torch.equal(value, states[-1][name]) for name, value in module.state_dict().items())
    last = tmp_path / "checkpoints" / "last"
    assert store.verify(last).counters["batches_seen"] == 2
    saved = store.load_weights(last)
    assert all(torch.equal(saved[name], states[-1][name]) for name in saved if name.startswith("autoencoder."))


def test_a_gradient_that_is_not_finite_stops_too(autoencoder_module, batch, fit):
    """sqrt(0) has a finite value and no gradient."""
    module = autoencoder_module()
    module.reconstruction.terms = lambda a, b: {"nll": (0.0 * (a - b)).sum((1, 2, 3)).sqrt()}
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(NonFiniteError, match=r"batch 0 .*grad_norm"):
        fit(module, [batch()])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_ruined_discriminator_stops_the_run(autoencoder_module, batch, fit):
    module = autoencoder_module()
    with torch.no_grad():
        module.discriminator.main[0].weight[0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"gan \(samples 0-0, 0-1, 0-2, 0-3\).*discriminator \("):
        fit(module, [batch()])


def test_stage_two_stops_before_the_update(diffusion_module, batch, fit):
    module = diffusion_module()
    with torch.no_grad():
        module.model["denoiser"].backbone.out[2].bias[0] = float("nan")
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(NonFiniteError, match=r"batch 0 .*: loss \(samples 0-0, 0-1, 0-2, 0-3\); grad_norm: not"):
        fit(module, [batch()])
    after = module.state_dict()
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in after)
