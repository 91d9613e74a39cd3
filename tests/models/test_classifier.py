import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.models.classifier import AttentionPool, EncoderClassifier, NoisyClassifier
from latentdiff.nn.embeddings import position_embedding


def small(**changes):
    torch.manual_seed(0)
    options = {
        "in_channels": 3,
        "classes": 5,
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_factors": [2],
        "head_width": 4,
        "norm_groups": 2,
    }
    return randomised(EncoderClassifier(**(options | changes))).eval()


def randomised(module):
    """Layers that start at zero hide what is before them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changes", [{}, {"patch": 2}, {"attention_factors": []}, {"channel_multipliers": [2], "attention_factors": [1]}]
)
def test_every_input_and_every_parameter_counts(changes):
    model, x, t = small(**changes), draw(2, 3, 8, 12).requires_grad_(), torch.tensor([3.0, 700.0])
    logits = model(x, t)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if ".to_kv.bias" not in name)
    assert x.grad.abs().amax((1, 2, 3)).min() > 0
    assert (model(x, t.flip(0)) - logits).abs().max() > 1e-4


def test_samples_do_not_see_each_other():
    model, x, t = small(), draw(3, 3, 8, 8), torch.tensor([3.0, 400.0, 700.0])
    torch.testing.assert_close(model(x, t)[1:2], model(x[1:2], t[1:2]), atol=1e-5, rtol=1e-5)


def test_the_pool_is_one_row_of_multi_head_attention():
    """Against torch's own attention of the mean over the mean and all places."""
    torch.manual_seed(0)
    pool, x = AttentionPool(width=8, heads=2, out=3), draw(2, 8, 3, 4)
    peer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([pool.to_q.weight, pool.to_kv.weight]))
        peer.in_proj_bias.copy_(torch.cat([pool.to_q.bias, pool.to_kv.bias]))
        peer.out_proj.weight.copy_(torch.eye(8))
        peer.out_proj.bias.zero_()
        mean = x.mean((2, 3))[:, None]
        tokens = torch.cat([mean, (x + position_embedding(3, 4, 8)).flatten(2).transpose(1, 2)], 1)
        theirs = pool.to_out(peer(mean, tokens, tokens)[0][:, 0])
        torch.testing.assert_close(pool(x), theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("path", [RectifiedFlow(), ScaledLinearDDPM()])
def test_the_network_sees_variance_one_at_every_time(path):
    class Keep(torch.nn.Module):
        classes, factor = 2, 1

        def forward(self, x, t):
            self.seen = (x, t)
            return x.flatten(1)[:, :2]

    keep, t = Keep(), torch.tensor([0.0, 0.3, 1.0])
    x0, noise = draw(3, 1, 100, 100), draw(3, 1, 100, 100, seed=1)
    NoisyClassifier(network=keep, path=path)(path.mix(x0, noise, t), t)
    torch.testing.assert_close(keep.seen[0].std((1, 2, 3)), torch.ones(3), atol=0.03, rtol=0)
    assert torch.equal(keep.seen[1], path.network_time(t))


def test_labels_are_looked_at():
    model = NoisyClassifier(network=small(), path=RectifiedFlow())
    model.check_labels(torch.tensor([0, 4]), ["a", "b"])
    with pytest.raises(
        InputError, match=r"labels 0 to 4; 2 of 3 samples have none \(-1\) or another, first b \(-1\), c"
    ):
        model.check_labels(torch.tensor([0, -1, 5]), ["a", "b", "c"])
    with pytest.raises(InputError, match="needs a label per sample"):
        model.check_labels(None, ["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "at least 2, got 1"),
        ({"attention_factors": [4]}, r"attention_factors \[4\] name no level"),
        ({"head_width": 3}, "a level of 16 channels cannot be split into heads of 3"),
    ],
)
def test_faulty_numbers_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_latents_that_do_not_fit_are_refused():
    for shape in ((1, 2, 8, 8), (1, 3, 8, 7)):
        with pytest.raises(InputError, match="latents of 3 channels, height and width multiples of 2"):
            small()(draw(*shape), torch.ones(1))
