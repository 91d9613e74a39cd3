"""What is sharded and how it is put together again, in a group of one process; ``test_two_ranks.py`` has two."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from latentdiff.models.backbones.dit import DiT
from latentdiff.models.backbones.unet import UNet
from latentdiff.training.compilation import compile_blocks
from latentdiff.training.muon import Muon
from latentdiff.training.parallel import (
    clip_gradients,
    join_groups,
    shard,
    split_groups,
    split_like,
    total_norm,
    trained_networks,
    whole,
)
from latentdiff.types import Conditioning


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def sharded(module, mesh):
    module._device_mesh = mesh
    module.configure_model()
    return module


def backbone(kind, *, checkpoint):
    torch.manual_seed(0)
    if kind == "dit":
        network = DiT(in_channels=2, out_channels=2, width=16, depth=2, heads=2, checkpoint=checkpoint)
    else:
        network = UNet(
            in_channels=2,
            out_channels=2,
            channels=8,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_factors=(2,),
            context_dim=None,
            heads=2,
            norm_groups=2,
            checkpoint=checkpoint,
        )
    for p in network.parameters():  # a new one answers 0 and has gradients in its last layer alone
        nn.init.normal_(p, std=0.2)
    return network.double()


class Holder(nn.Module):
    """Stands for a Lightning module that has been given a mesh."""

    def __init__(self, network, mesh):
        super().__init__()
        self.network, self.device_mesh = network, {"data_parallel": mesh}


@pytest.mark.parametrize(
    ("kind", "how"),
    [("unet", "plain"), ("unet", "checkpoint"), ("dit", "plain"), ("dit", "checkpoint"), ("dit", "compile")],
)
def test_gradients_of_a_sharded_backbone_are_the_plain_ones(mesh, kind, how):
    """Also where blocks are computed again in the backward pass, or compiled."""
    plain, holder = backbone(kind, checkpoint=False), Holder(backbone(kind, checkpoint=how == "checkpoint"), mesh)
    compile_blocks(holder.network, "blocks" if how == "compile" else "none", backend="eager")
    shard(holder, ["network"], holder, [])
    assert all(isinstance(p, DTensor) for p in holder.parameters())
    assert sum(isinstance(m, FSDPModule) for m in holder.modules()) > 2
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64)
    for network in (plain, holder.network):
        network(x, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), Conditioning()).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), holder.parameters()):
        torch.testing.assert_close(whole(q.grad), p.grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_networks_and_their_averages_are_sharded_the_rest_stays_whole(mesh, any_module):
    module = sharded(any_module(), mesh)
    again = {name for name, m in module.named_modules() if isinstance(m, FSDPModule)}
    module.configure_model()  # every fit calls it
    assert again == {name for name, m in module.named_modules() if isinstance(m, FSDPModule)}
    cut = {name for name, p in module.named_parameters() if isinstance(p, DTensor)}
    assert cut
    trained = {name for name in cut if not name.startswith("ema.")}
    follows = {name.removeprefix("ema.model.") for name in cut if name.startswith("ema.")}
    assert follows == {name.split(".", 1)[1] for name in trained}
    assert not any(name.startswith(("codec.", "discriminator.", "reconstruction.")) for name in cut)


def test_nothing_is_sharded_without_a_mesh(any_module):
    module = any_module()
    module.configure_model()
    assert not any(isinstance(p, DTensor) for p in module.parameters())


def test_only_networks_that_train_are_found():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2).requires_grad_(False), "c": nn.ReLU()})
    assert trained_networks(model, nn.Linear) == ["a"]


@pytest.fixture
def mixed(mesh):
    """Named parameters, every second of them sharded, with gradients; and the same ones whole."""
    generator = torch.Generator().manual_seed(0)
    plain = {f"p{i}": nn.Parameter(torch.randn(4, 3 if i < 4 else 1, generator=generator)) for i in range(6)}
    some = {}
    for i, (name, p) in enumerate(plain.items()):
        p.grad = torch.randn(p.shape, generator=generator)
        q = p.detach().clone()
        some[name] = nn.Parameter(q if i % 2 else torch.distributed.tensor.distribute_tensor(q, mesh))
        some[name].grad = split_like(p.grad.clone(), some[name])
    return some, plain


def test_norm_and_clipping_of_a_mixture(mixed):
    some, plain = (list(of.values()) for of in mixed)
    assert total_norm(some) == pytest.approx(float(nn.utils.get_total_norm([p.detach() for p in plain])), rel=1e-6)
    norm = nn.utils.clip_grad_norm_(plain, 0.5)
    assert clip_gradients(some, 0.5) == pytest.approx(float(norm), rel=1e-6)
    for p, q in zip(plain, some):
        torch.testing.assert_close(whole(q.grad), p.grad)


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_a_split_optimizer_moves_and_joins_as_one(mixed, optimizer):
    some, plain = mixed
    ours, theirs = optimizer(some.items(), lr=0.1), optimizer(plain.items(), lr=0.1)
    ours.param_groups = split_groups(ours.param_groups)
    for group in ours.param_groups:
        assert len({isinstance(p, DTensor) for p in group["params"]}) == 1
    for _ in range(3):
        ours.step()
        theirs.step()
    for p, q in zip(plain.values(), some.values()):
        torch.testing.assert_close(whole(q.detach()), p.detach())
    joined = join_groups(ours.param_groups)
    expected = theirs.param_groups
    assert [group["param_names"] for group in joined] == [group["param_names"] for group in expected]
    assert [{*group} for group in joined] == [{*group} for group in expected]
    assert all(p is some[n] for group in joined for n, p in zip(group["param_names"], group["params"]))


def test_split_and_whole_are_inverse(mesh):
    full = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    other = torch.distributed.tensor.distribute_tensor(torch.zeros(5, 3), mesh)
    assert torch.equal(whole(split_like(full, other)), full)
    assert split_like(full, torch.zeros(5, 3)) is full
    assert whole(full) is full
