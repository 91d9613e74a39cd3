import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.bottlenecks.fsq import FSQ

LEVELS = (8, 5, 2, 3)


@pytest.mark.parametrize("levels", [LEVELS, (8, 5, 5, 5), (2,)])
def test_round_trip_of_all_codes(levels):
    module = FSQ(levels=levels)
    codes = torch.arange(module.entries).view(1, 1, -1)
    values = module.lookup(codes)
    assert values.shape == (1, len(levels), 1, module.entries)
    assert module.indices(values).equal(codes)
    assert module.for_decoder(values).equal(values)
    assert len(values[0, :, 0].T.unique(dim=0)) == module.entries
    assert [len(channel.unique()) for channel in values[0]] == list(levels)
    assert values.abs().max() <= 1


def test_bounded_latents_keep_zero_and_reach_every_level():
    module = FSQ(levels=LEVELS)
    assert module.posterior(torch.zeros(1, 4, 1, 1)).mean.abs().max() < 1e-6
    h = torch.linspace(-12, 12, 4001).expand(1, 4, 1, -1)
    latent = module(h, torch.zeros(()))
    assert [len(channel.unique()) for channel in latent.z[0]] == list(LEVELS)
    assert (latent.z - latent.posterior.mean).abs().amax((0, 2, 3)).le(0.51 / (module.levels.flatten() // 2)).all()
    assert not latent.posterior.std.any()
    assert not latent.penalty.any()


def test_the_gradient_passes_the_rounding_and_not_the_bound(draw):
    module, h = FSQ(levels=LEVELS), draw(2, 4, 3, 3).requires_grad_()
    (module(h, torch.zeros(())).z * draw(2, 4, 3, 3, seed=1)).sum().backward()
    (through_bound,) = torch.autograd.grad((module.posterior(h).mean * draw(2, 4, 3, 3, seed=1)).sum(), h)
    assert h.grad.equal(through_bound)
    assert through_bound.all()


def test_what_strays_from_the_levels_goes_to_the_outermost():
    module = FSQ(levels=LEVELS)
    codes = module.indices(torch.stack([torch.full((4, 1, 1), -9.0), torch.full((4, 1, 1), 9.0)]))
    assert codes.flatten().tolist() == [0, module.entries - 1]


def test_use_is_that_of_the_whole_batch(draw):
    module = FSQ(levels=(3, 3))
    h = draw(4, 2, 8, 8)
    module(h[:1], torch.zeros(()))
    module(h[1:], torch.zeros(()))
    p = torch.bincount(module.indices(module.posterior(h).mean).flatten(), minlength=9) / (4 * 64)
    logs = module.after_batch()
    torch.testing.assert_close(logs["perplexity"], torch.distributions.Categorical(p).entropy().exp())
    assert logs["usage"] == (p > 0).float().mean()
    with pytest.raises(ValueError, match="training mode"):
        module.after_batch()


def test_float64_stays_and_nothing_is_saved(draw):
    module = FSQ(levels=LEVELS)
    assert module(draw(1, 4, 2, 2).double(), torch.zeros(())).z.dtype == torch.float64
    assert not module.state_dict()


def test_faults_are_refused(draw):
    with pytest.raises(InputError, match="at least 2 per channel"):
        FSQ(levels=(8, 1))
    with pytest.raises(InputError, match="indices 0 to 8, got 9 to 9"):
        FSQ(levels=(3, 3)).lookup(torch.tensor([[[9]]]))
    with pytest.raises(InputError, match=r"shape \(B, 2, h, w\)"):
        FSQ(levels=(3, 3)).indices(draw(1, 3, 2, 2))
