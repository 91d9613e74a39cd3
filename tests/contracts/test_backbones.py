"""What every module of ``latentdiff.models.backbones`` must do, through the tiny configurations that name it.

A new backbone is tested as soon as ``configs/backbone/NAME_tiny.yaml`` stands beside it. All others, of published
sizes, are built on the meta device and counted.
"""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.checkpoint.foreign.unet import diffusers_config
from latentdiff.checkpoint.foreign.unet.architecture import of_module
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.models import backbones
from latentdiff.types import Conditioning

CHANNELS, WIDTH, SIZE = 4, 32, 8
ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted((ROOT / "backbone").glob("*_tiny.yaml"))
LARGE = sorted(path.stem for path in (ROOT / "backbone").glob("*.yaml") if path not in CONFIGS)

PUBLISHED = {
    "unet": (859_520_964, 4, 768),
    "sd1": (859_520_964, 4, None),
    "sd2": (865_910_724, 4, None),
    "sdxl": (2_567_463_684, 4, None),
    "ldm8_txt2img": (872_300_484, 4, None),
    "ldm4_imagenet": (400_920_579, 3, None),
    "ldm8_imagenet": (394_984_196, 4, None),
    "ldm4_uncond": (274_056_163, 3, None),
    "ldm8_churches": (294_966_916, 4, None),
}
"""Parameters, channels of the latents, width of the context where the configuration leaves it open.

LDM's logs say 859.52 M, 865.91 M and 872.30 M of SD 1, SD 2 and the text-to-image model; the paper (arXiv:2112.10752,
tables 10, 12 and 13) 400 M, 395 M, 274 M and 294 M of the others; diffusers' UNets of equal configuration have the same
numbers to the last digit, see ``test_diffusers_builds_them_with_as_many_parameters``."""
MODULES = {module.name for module in pkgutil.iter_modules(backbones.__path__)}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda file: file.stem)
def make(request):
    """A new backbone; ``randomise`` gives every parameter values, the ones that start at zero too."""
    cfg = OmegaConf.create({"latent": {"channels": CHANNELS}, "conditioner": {"width": WIDTH}})
    cfg.backbone = OmegaConf.load(request.param)

    def new(*, randomise: bool = True):
        torch.manual_seed(0)
        model = build(cfg.backbone)
        if randomise:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=generator))
        return model

    return new


@pytest.fixture(scope="module")
def model(make):
    return make()


@pytest.fixture(scope="module", params=LARGE)
def large(request):
    """Name and model, on the meta device, of a configuration that is not tiny."""
    count, channels, width = PUBLISHED.get(request.param, (None, CHANNELS, WIDTH))
    cfg = compose_group(request.param)
    with torch.device("meta"):
        cfg = OmegaConf.merge({"latent": {"channels": channels}, "conditioner": {"width": width}}, cfg)
        return request.param, build(cfg.backbone), count


def compose_group(name):
    """The file of the group, on top of those that its defaults name."""
    node = OmegaConf.load(ROOT / "backbone" / f"{name}.yaml")
    parents = [OmegaConf.load(ROOT / "backbone" / f"{parent}.yaml") for parent in node.pop("defaults", [])]
    return OmegaConf.create({"backbone": OmegaConf.merge(*parents, node)})


def test_large_ones_have_the_published_number_of_parameters_and_keep_the_latent_s_shape(large):
    name, model, count = large
    assert name in PUBLISHED, f"give {name}'s number of parameters and where it is published in PUBLISHED"
    assert sum(p.numel() for p in model.parameters()) == count
    with torch.device("meta"):
        x = torch.empty(2, model.in_channels, 2 * model.factor, model.factor)
        cond = Conditioning(
            tokens=None if model.context_dim is None else torch.empty(2, 3, model.context_dim),
            vector=None if model.vector_dim is None else torch.empty(2, model.vector_dim),
        )
        assert model(x, torch.ones(2), cond).shape == x.shape


def test_diffusers_builds_them_with_as_many_parameters(large):
    library = pytest.importorskip("diffusers")
    name, model, count = large
    if name == "ldm8_churches":
        with pytest.raises(InputError, match="one width of heads for all levels"):
            diffusers_config.describe(of_module(model))
        return
    config = diffusers_config.describe(of_module(model))
    with torch.device("meta"):
        peer = getattr(library, config.pop("_class_name"))(**config)
    assert sum(p.numel() for p in peer.parameters()) == count


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs():
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    cond = Conditioning(tokens=draw(2, 5, WIDTH), mask=mask)
    return draw(2, CHANNELS, SIZE, SIZE), torch.tensor([30.0, 700.0]), cond


def test_every_backbone_has_a_tiny_configuration():
    targets = {OmegaConf.load(file)._target_.split(".")[-2] for file in CONFIGS}
    assert targets == MODULES
    assert MODULES


def test_shape_and_dtype_are_the_latents(model):
    x, t, cond = inputs()
    with torch.no_grad():
        y = model(x, t, cond)
        wide = model(draw(1, CHANNELS, SIZE, 2 * SIZE), t[:1], Conditioning(cond.tokens[:1], cond.mask[:1]))
    assert (y.shape, y.dtype) == (x.shape, torch.float32)
    assert wide.shape == (1, CHANNELS, SIZE, 2 * SIZE)


def test_gradients_reach_every_parameter_and_every_input(make):
    model = make()
    x, t, cond = inputs()
    x, tokens = x.requires_grad_(), cond.tokens.requires_grad_()
    model(x, t, cond).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    assert x.grad.abs().sum() > 0
    assert tokens.grad[cond.mask].abs().sum() > 0


def test_masked_tokens_do_not_matter(model):
    x, t, cond = inputs()
    other = torch.where(cond.mask[..., None], cond.tokens, draw(2, 5, WIDTH, seed=9))
    with torch.no_grad():
        y = model(x, t, cond)
        torch.testing.assert_close(model(x, t, replace(cond, tokens=other)), y, atol=1e-5, rtol=1e-5)
        short = Conditioning(tokens=cond.tokens[:1, :2], mask=cond.mask[:1, :2])
        torch.testing.assert_close(model(x[:1], t[:1], short), y[:1], atol=1e-5, rtol=1e-5)
        assert (model(x, t, replace(cond, mask=None))[0] - y[0]).abs().max() > 1e-4


def test_null_conditioning_concerns_only_its_samples(model):
    """As guidance and dropping use it: chosen per sample, and joined along the batch."""
    x, t, cond = inputs()
    null = Conditioning(tokens=draw(2, 5, WIDTH, seed=5), mask=torch.tensor([[True] + [False] * 4] * 2))
    with torch.no_grad():
        conditional, unconditional = model(x, t, cond), model(x, t, null)
        mixed = model(x, t, cond.where(torch.tensor([True, False]), null))
        both = model(torch.cat([x, x]), torch.cat([t, t]), cond.cat(null))
    expected = torch.stack([conditional[0], unconditional[1]])
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both, torch.cat([conditional, unconditional]), atol=1e-5, rtol=1e-5)
    assert (conditional - unconditional).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_sample_depends_on_its_own_input_and_time(model):
    x, t, cond = inputs()
    with torch.no_grad():
        y = model(x, t, cond)
        changed = model(torch.cat([x[:1], draw(1, CHANNELS, SIZE, SIZE, seed=7)]), t, cond)
        torch.testing.assert_close(changed[:1], y[:1], atol=1e-5, rtol=1e-5)
        later = model(x, torch.tensor([30.0, 900.0]), cond)
        torch.testing.assert_close(later[:1], y[:1], atol=1e-5, rtol=1e-5)
        assert (later[1] - y[1]).abs().max() > 1e-4


def test_a_fresh_model_starts_at_zero_and_one_step_lowers_the_loss(make):
    model = make(randomise=False)
    x, t, cond = inputs()
    target = draw(2, CHANNELS, SIZE, SIZE, seed=3)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(3):
        loss = (model(x, t, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(target.square().mean().item(), rel=1e-5)
    assert losses[0] > losses[1] > losses[2]
