"""Blocks compiled in place: the same names, the same numbers, one graph per shape."""

import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.models.backbones.unet import UNet
from latentdiff.nn.attention import SpatialTransformer
from latentdiff.nn.resnet import ResBlock
from latentdiff.training import diffusion_module as module_file
from latentdiff.training.compilation import compile_blocks
from latentdiff.types import Conditioning


def unet() -> UNet:
    torch.manual_seed(0)
    built = UNet(
        in_channels=2,
        out_channels=2,
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_factors=(),
        context_dim=4,
        heads=2,
        norm_groups=2,
    )
    with torch.no_grad():
        for p in built.parameters():  # layers that start at zero hide what is before them
            p.add_(0.1 * torch.randn_like(p))
    return built


def answer(backbone: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 2, 8, 8, generator=generator), torch.randn(2, 3, 4, generator=generator)
    cond = Conditioning(tokens=tokens, mask=torch.tensor([[True] * 3, [True, False, False]]))
    output = backbone(x, torch.tensor([10.0, 900.0]), cond)
    gradients = torch.autograd.grad(output.square().sum(), list(backbone.parameters()))
    return output.detach(), dict(zip((name for name, _ in backbone.named_parameters()), gradients))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_keys_outputs_and_gradients_stay_and_a_copy_runs_as_written():
    plain, compiled = unet(), unet()
    compile_blocks(compiled, "blocks", backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]
    (output, gradients), (expected, of_plain) = answer(compiled), answer(plain)
    torch.testing.assert_close(output, expected)
    for name, gradient in of_plain.items():
        torch.testing.assert_close(gradients[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    compiled.load_state_dict(plain.state_dict(), strict=True)
    other = copy.deepcopy(compiled)
    assert compiled_parts(other) == set()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
        for p in plain.parameters():
            p.mul_(0.5)
    assert torch.equal(answer(other)[0], answer(plain)[0])
    assert torch.equal(answer(compiled)[0], output)


class Stack(nn.Module):
    def __init__(self, widths: list[int]):
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.blocks = nn.ModuleList(
            ResBlock(in_channels=a, out_channels=b, embedding=2, norm_groups=1) for a, b in pairs
        )

    def forward(self, x):
        for block in self.blocks:
            x = block(x, x.new_zeros(len(x), 2))
        return x


def test_every_shape_is_compiled_once_and_none_falls_back():
    """The compiler gives up on a function after 8 shapes unless it is told otherwise."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    stack = Stack([*range(2, 12), 11, 11])  # ten shapes, the last one twice
    compile_blocks(stack, "blocks", backend=count)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for _ in range(2):
            stack(torch.randn(1, 2, 2, 2))
    assert len(graphs) == 10
    assert not torch._dynamo.utils.counters["unimplemented"]


def compiled_parts(module: nn.Module) -> set[type]:
    return {type(m) for m in module.modules() if m._compiled_call_impl is not None}


def test_training_is_the_same(diffusion_module, batch, fit, monkeypatch):
    """The average, which is a copy from before, is not compiled and follows all the same."""
    monkeypatch.setattr(module_file, "compile_blocks", functools.partial(compile_blocks, backend="eager"))
    modules = [diffusion_module(compile=choice) for choice in ("none", "blocks")]
    assert compiled_parts(modules[0]) == set()
    assert compiled_parts(modules[1].model) == {ResBlock, SpatialTransformer}
    assert compiled_parts(modules[1].ema) == set()
    states = []
    for module in modules:
        fit(module, [batch(i) for i in range(2)], precision="64-true")
        states.append(module.state_dict())
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    copy.deepcopy(modules[1])


def test_unknown_words_and_backbones_without_blocks_are_refused():
    with pytest.raises(InputError, match=r"task\.compile: expected none or blocks, got 'all'"):
        compile_blocks(unet(), "all")
    with pytest.raises(InputError, match=r"Linear has no block that is compiled"):
        compile_blocks(nn.Linear(1, 1), "blocks")
    compile_blocks(nn.Linear(1, 1), "none")
