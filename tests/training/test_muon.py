import pytest
import torch
from torch import nn
from torch.optim import AdamW

from latentdiff.config.errors import InputError
from latentdiff.training.muon import Muon, orthogonalize
from latentdiff.training.optim import set_learning_rate


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, batches: int, first: int = 0) -> float:
    for number in range(first, first + batches):
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(16, 3, 6, 6, generator=generator)
        loss = (module(image) - image.mean((1, 2, 3))[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 24)])
def test_singular_values_become_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = orthogonalize(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(result)
    assert result.dtype is torch.float64
    assert values.max() < 1.25
    assert (values > 0.65)[s > 0.05 * s.amax(1, keepdim=True)].all()
    # the directions are those of the matrix: U^T X V is diagonal
    inside = u.mT @ result @ vh.mT
    off = inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-10


def test_scale_of_the_matrix_does_not_matter():
    matrices = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrices), orthogonalize(matrices * 1e-3), rtol=1e-3, atol=1e-3)


def test_update_is_as_large_as_adamws():
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    Muon([("weight", weight)], lr=1e-2).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.2e-2, rel=0.15)


def test_vectors_and_named_matrices_move_by_adamw():
    ours, theirs = network(), network()
    named = [(n, p) for n, p in ours.named_parameters()]
    train(ours, Muon(named, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, adamw=["*"]), 5)
    train(theirs, AdamW(theirs.parameters(), lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1), 5)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_split_between_the_two():
    optimizer = Muon(network().named_parameters(), adamw=["3.*"])
    shapes = {group["orthogonal"]: [tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups}
    assert shapes[True] == [(8, 3, 3, 3)]
    assert sorted(shapes[False]) == [(5,), (5, 128), (8,), (8,), (8,)]
    assert set_learning_rate(optimizer, 0.5) == 5e-4
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}


def test_learns():
    module = network()
    first = train(module, Muon(module.named_parameters(), lr=1e-2, adamw=["3.*"]), 1)
    assert train(module, Muon(module.named_parameters(), lr=1e-2, adamw=["3.*"]), 150, first=1) < 0.2 * first


def test_goes_on_from_its_state():
    straight, stopped = network(), network()
    whole = Muon(straight.named_parameters(), lr=1e-2)
    train(straight, whole, 6)
    train(stopped, before := Muon(stopped.named_parameters(), lr=1e-2), 3)
    after = Muon(stopped.named_parameters(), lr=1e-2)
    after.load_state_dict(before.state_dict())
    train(stopped, after, 3, first=3)
    for a, b in zip(straight.parameters(), stopped.parameters()):
        assert torch.equal(a, b)


def test_state_that_was_loaded_to_another_device_follows_the_parameters():
    """Loading leaves AdamW's step where it was saved from, unless the saved group says that it is fused."""
    weight = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = Muon([("weight", weight)])
    optimizer.state[weight] = {
        "step": torch.ones(()),
        "exp_avg": torch.zeros(3, device="meta"),
        "exp_avg_sq": torch.zeros(3, device="meta"),
    }
    weight.grad = torch.ones(3, device="meta")
    optimizer.step()
    assert optimizer.state[weight]["step"].device.type == "meta"


def test_parameters_without_gradient_stay():
    module = network()
    optimizer = Muon(module.named_parameters())
    optimizer.step()
    for a, b in zip(module.parameters(), network().parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "word"), [({"lr": -1.0}, "lr"), ({"momentum": 1.0}, "momentum"), ({"betas": (0.9, 1.5)}, "betas")]
)
def test_settings_out_of_range(settings, word):
    with pytest.raises(InputError, match=word):
        Muon(network().named_parameters(), **settings)


def test_parameters_need_names():
    with pytest.raises(InputError, match="named"):
        Muon(network().parameters())
