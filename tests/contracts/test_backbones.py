"""What every module of ``latentdiff.models.backbones`` must do, through the tiny configurations that name it.

A new backbone is tested as soon as ``configs/backbone/NAME_tiny.yaml`` stands beside it. All others, of published
sizes, are built on the meta device and counted.
"""

from __future__ import annotations

import functools
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

IMAGENET = {"width": None, "rows": 1001}
PUBLISHED = {
    "unet": (859_520_964, 4, {"width": 768}),
    "sd1": (859_520_964, 4, {}),
    "sd2": (865_910_724, 4, {}),
    "sdxl": (2_567_463_684, 4, {}),
    "ldm8_txt2img": (872_300_484, 4, {}),
    "ldm4_imagenet": (400_920_579, 3, {}),
    "ldm8_imagenet": (394_984_196, 4, {}),
    "ldm4_uncond": (274_056_163, 3, {}),
    "ldm8_churches": (294_966_916, 4, {}),
    "ldm4_inpaint": (387_245_827, 3, {"spatial": 4}),
    "ldm4_semantic": (215_229_315, 3, {"spatial": 3}),
    "ldm4_superres": (113_622_563, 3, {"spatial": 3}),
    "dit_s_2": (32_858_896, 4, IMAGENET),
    "dit_b_2": (130_303_504, 4, IMAGENET),
    "dit_l_2": (457_824_272, 4, IMAGENET),
    "dit_xl_2": (674_816_272, 4, IMAGENET),
    "dit_xl_2_modern": (674_863_312, 4, IMAGENET),
    "dit_text_xl_2": (814_178_320, 4, {"width": 1024}),
}
"""Parameters, channels of the latents, and what the conditioner gives where the configuration leaves it open.

LDM's logs say 859.52 M, 865.91 M and 872.30 M of SD 1, SD 2 and the text-to-image model; the paper (arXiv:2112.10752,
tables 10, 12 and 13) 400 M, 395 M, 274 M and 294 M of the others down to ldm8_churches; the last three ldm4 are counted
in their files. diffusers' UNets of equal configuration have the same numbers to the last digit, see
``test_diffusers_builds_them_with_as_many_parameters``. DiT's paper (arXiv:2212.09748, table 1) says 33 M, 130 M, 458 M
and 675 M of its own; tests/models/test_dit_published.py derives DiT's."""
MODULES = {module.name for module in pkgutil.iter_modules(backbones.__path__)}


def maker(file: Path):
    """A new backbone for tokens, or for what ``conditioner`` says; ``randomise`` gives every parameter values, the
    ones that start at zero too."""

    def new(*, randomise: bool = True, **conditioner: int | None):
        cfg = OmegaConf.create({"latent": {"channels": CHANNELS}, "conditioner": {"width": WIDTH} | conditioner})
        cfg.backbone = OmegaConf.load(file)
        torch.manual_seed(0)
        model = build(cfg.backbone)
        if randomise:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=generator))
        return model

    return new


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda file: file.stem)
def make(request):
    return maker(request.param)


@pytest.fixture(scope="module")
def model(make):
    return make()


@functools.cache
def large(name):
    """Model, on the meta device, and published count of a configuration that is not tiny."""
    assert name in PUBLISHED, f"give {name}'s number of parameters and where it is published in PUBLISHED"
    count, channels, conditioner = PUBLISHED[name]
    cfg = OmegaConf.merge({"latent": {"channels": channels}, "conditioner": conditioner}, compose_group(name))
    with torch.device("meta"):
        return build(cfg.backbone), count


def compose_group(name):
    """The file of the group, on top of those that its defaults name."""
    node = OmegaConf.load(ROOT / "backbone" / f"{name}.yaml")
    parents = [OmegaConf.load(ROOT / "backbone" / f"{parent}.yaml") for parent in node.pop("defaults", [])]
    return OmegaConf.create({"backbone": OmegaConf.merge(*parents, node)})


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_have_the_published_number_of_parameters_and_keep_the_latent_s_shape(name):
    model, count = large(name)
    assert sum(p.numel() for p in model.parameters()) == count
    with torch.device("meta"):
        size, spatial = (2 * model.factor, model.factor), model.in_channels - model.out_channels
        x = torch.empty(2, model.out_channels, *size)
        cond = Conditioning(
            tokens=None if model.context_dim is None else torch.empty(2, 3, model.context_dim),
            vector=None if model.vector_dim is None else torch.empty(2, model.vector_dim),
            label=None if model.num_classes is None else torch.empty(2, dtype=torch.int64),
            spatial=torch.empty(2, spatial, *size) if spatial else None,
        )
        assert model(x, torch.ones(2), cond).shape == x.shape


@pytest.mark.parametrize("name", [name for name in LARGE if not name.startswith("dit_")])
def test_diffusers_builds_them_with_as_many_parameters(name):
    library = pytest.importorskip("diffusers")
    model, count = large(name)
    if name in ("ldm8_churches", "ldm4_inpaint"):
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


@pytest.mark.parametrize("part", ["label", "vector", "spatial"])
def test_the_conditioner_decides_what_else_is_read(make, part):
    """Its numbers reach the backbone through the configuration; a part that is given matters, to its sample alone."""
    given = {"label": {"rows": 3}, "vector": {"vector": 5}, "spatial": {"spatial": 2}}[part]
    model, (x, t, _) = make(width=None, **given), inputs()
    parts = {"label": torch.tensor([1, 2]), "vector": draw(2, 5, seed=5), "spatial": draw(2, 2, SIZE, SIZE, seed=5)}
    cond = Conditioning(**{part: parts[part]})
    value = torch.cat([parts[part][:1], parts[part][:1]])
    y, changed = model(x, t, cond), model(x, t, Conditioning(**{part: value}))
    assert y.shape == x.shape
    torch.testing.assert_close(changed[0], y[0], atol=1e-5, rtol=1e-5)
    assert (changed[1] - y[1]).abs().max() > 1e-4
    with pytest.raises(InputError):
        model(x, t, Conditioning())
    changed.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


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
