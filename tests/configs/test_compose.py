"""Every YAML of configs/: it composes in a root that it fits, has no fault, and its parts can be built.

The files are found by themselves: a new option of a group is tested as soon as it exists, a new group as soon as
``ROOTS_OF`` says where it belongs.
"""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from latentdiff.app import schema
from latentdiff.app.build import trainer as build_trainer
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.config.validate import validate
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO
from latentdiff.types import Batch, Conditioning

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
AE = ("train", "experiment=ae_kl")
LDM = ("train", "experiment=ldm_txt2img")
CLASSIFIER = ("train", "experiment=classifier")
DIT = ("train", "experiment=paper/dit_xl_2")
EVALUATE = ("evaluate", "checkpoint=somewhere")
SAMPLE = ("sample", "checkpoint=somewhere", "prompt=a red circle")
ROOTS_OF: dict[str, list[tuple[str, ...]]] = {
    "adversarial": [AE],
    "autoencoder": [AE],
    "reconstruction": [AE],
    "backbone": [LDM],
    "classifier": [CLASSIFIER],
    "conditioner": [LDM],
    "diffusion": [LDM],
    "first_stage": [LDM],
    "guidance": [LDM, EVALUATE, SAMPLE],
    "sampler": [LDM, SAMPLE],
    "callbacks": [AE, LDM, CLASSIFIER],
    "data": [LDM, EVALUATE],
    "debug": [AE, LDM, DIT],
    "experiment": [("train",)],
    "hydra": [AE],
    "logger": [LDM],
    "metrics": [EVALUATE],
    "optim": [AE],
    "paths": [AE],
    "task": [AE, LDM, CLASSIFIER],
    "trainer": [AE, SAMPLE],
}
TASK_OF = {"autoencoder": AE, "diffusion": LDM, "classifier": CLASSIFIER}
"""Tasks and their callbacks go with the experiments of their own."""
DEBUG_OF = {"short": (AE, LDM), "tiny_autoencoder": (AE,), "tiny_unet": (LDM,), "tiny_text": (LDM,), "tiny_dit": (DIT,)}
"""What each shrinks."""
LOADS_WEIGHTS = (
    "open_clip_text",
    "open_clip_text_pooled",
    "open_clip_text_sd2",
    "text_inpaint",
    "hf_bert",
    "hf_t5",
    "text_transformer_bert",
)
"""Conditioners that need files which cannot be had without a network."""
OF_A_CHECKPOINT = ("guidance=classifier", "guidance=autoguidance")
"""Read a second checkpoint, which training has none of."""


def options(group: str) -> list[str]:
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def fits(group: str, option: str, root: tuple[str, ...]) -> bool:
    if option == "checkpoint" or f"{group}={option}" in OF_A_CHECKPOINT:
        return root[0] != "train"
    if group == "debug":
        return root in DEBUG_OF[option]
    return group not in ("task", "callbacks") or TASK_OF.get(option) == root


EVERYWHERE = [
    pytest.param(root, group, option, id=f"{root[0]}-{root[-1].partition('=')[2]}-{group}={option}")
    for group, roots in ROOTS_OF.items()
    for option in options(group)
    for root in roots
    if fits(group, option, root)
]


def composed(root: str, *overrides: str) -> DictConfig:
    """The configuration, faultless; what only the command line can know is made up."""
    return copy.deepcopy(_composed(root, *overrides))


@cache
def _composed(root: str, *overrides: str) -> DictConfig:
    schema.register()
    needs = any(line.startswith(("data=webdataset", "data=resampled", "experiment=paper/")) for line in overrides)
    data = ("data.train=shards", "data.val=shards") if needs else ()
    data = ("data.train=cache",) if "data=cached" in overrides else data
    guide = ("guidance.checkpoint=somewhere",) if set(overrides) & set(OF_A_CHECKPOINT) else ()
    cfg, faults = compose(CONFIGS, root, [*overrides, *data, *guide])
    assert [str(fault) for fault in faults] == []
    about = schema.ROOTS[root]
    assert [str(fault) for fault in validate(cfg, injected=about.injected, runtime=about.runtime)] == []
    return cfg


def test_every_group_is_known() -> None:
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} == {*ROOTS_OF, "sweep"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(schema.ROOTS)


@pytest.mark.parametrize(("root", "group", "option"), EVERYWHERE)
def test_every_option_fits_in(root: tuple[str, ...], group: str, option: str) -> None:
    composed(root[0], *[line for line in root[1:] if not line.startswith(f"{group}=")], f"{group}={option}")


@pytest.mark.parametrize("name", options("experiment"))
def test_experiments_are_differences(name: str) -> None:
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 45
    assert text.startswith("# @package _global_\n# ")
    assert composed("train", f"experiment={name}").experiment == name


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(node: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return build(node)


def train_config(*overrides: str) -> DictConfig:
    """Of train.py, with the latents' shape filled in as the program does."""
    cfg = composed("train", *overrides)
    cfg.run_dir, cfg.latent.channels, cfg.latent.factor = "run", 4, 8
    return cfg


@pytest.mark.parametrize("option", options("autoencoder"))
def test_autoencoders_keep_the_image_s_shape(option: str) -> None:
    cfg = train_config("experiment=ae_kl", f"autoencoder={option}")
    autoencoder = on_meta(cfg.autoencoder)
    image = torch.empty(2, 3, 64, 64, device="meta")
    mean = autoencoder.encode(image).mean
    side = 64 // autoencoder.factor
    assert mean.shape == (2, autoencoder.latent_channels, side, side)
    assert autoencoder.decode(mean).shape == image.shape


@pytest.mark.parametrize("option", options("backbone"))
def test_backbones_keep_the_latent_s_shape(option: str) -> None:
    cfg = train_config("experiment=ldm_txt2img", f"backbone={option}")
    backbone, conditioner = on_meta(cfg.backbone), on_meta(cfg.conditioner.module)
    latent = torch.empty(2, 4, 2 * backbone.factor, backbone.factor, device="meta")
    cond = conditioner.null(Batch(keys=["a", "b"]))
    if backbone.context_dim != cfg.conditioner.width:  # published ones read what they were trained with
        tokens = None if backbone.context_dim is None else torch.empty(2, 1, backbone.context_dim, device="meta")
        vector = None if backbone.vector_dim is None else torch.empty(2, backbone.vector_dim, device="meta")
        cond = Conditioning(tokens=tokens, vector=vector)
    assert backbone(latent, torch.ones(2, device="meta"), cond).shape == latent.shape


@pytest.mark.parametrize(
    ("overrides", "part", "count"),
    [
        (("experiment=ae_kl", "autoencoder=kl_f8"), "autoencoder", 83_653_863),
        (("experiment=ldm_txt2img", "backbone=unet", "conditioner=open_clip_text"), "backbone", 859_520_964),
    ],
)
def test_published_sizes(overrides: tuple[str, ...], part: str, count: int) -> None:
    assert parameters(on_meta(train_config(*overrides)[part])) == count


def meta_batch(size: int = 64, **small: int) -> Batch:
    """Two samples with everything that a batch can hold; ``low_res`` is smaller by its factor."""
    maps = torch.empty(2, size, size, dtype=torch.uint8, device="meta")
    low = size // small.get("factor", 4)
    return Batch(
        keys=["a", "b"],
        image=torch.empty(2, 3, size, size, dtype=torch.uint8, device="meta"),
        caption=["a red circle", ""],
        label=torch.empty(2, dtype=torch.int64, device="meta"),
        segmentation=maps,
        mask=maps[:, None],
        low_res=torch.empty(2, 3, low, low, dtype=torch.uint8, device="meta"),
        size=torch.empty(2, 6, dtype=torch.int64, device="meta"),
    )


def meta_codec() -> LatentCodec:
    with torch.device("meta"):
        autoencoder = build(train_config("experiment=ae_kl").autoencoder)
        channels = autoencoder.latent_channels
        return LatentCodec(autoencoder=autoencoder, mean=torch.zeros(channels), std=torch.ones(channels))


def given(cond: Conditioning) -> dict[str, int | None]:
    """What a conditioner's YAML says of its conditions."""
    tokens, vector, spatial = (None if x is None else x.shape for x in (cond.tokens, cond.vector, cond.spatial))
    return {
        "width": None if tokens is None else tokens[-1],
        "vector": None if vector is None else vector[-1],
        "spatial": 0 if spatial is None else spatial[1],
    }


@pytest.mark.parametrize("option", [o for o in options("conditioner") if o not in LOADS_WEIGHTS])
def test_conditioners_say_what_they_give_and_what_they_read(option: str) -> None:
    """So that the backbone fits, and data without what is read are refused."""
    cfg = train_config("experiment=ldm_txt2img", f"conditioner={option}")
    node, codec = cfg.conditioner, meta_codec()
    conditioner = on_meta(node.module)
    batch = meta_batch(factor=OmegaConf.select(node, "conditions.low_res.factor") or 4)
    with torch.device("meta"):
        null = conditioner.null(batch, codec)
        assert given(null) == {
            "width": node.get("width"),
            "vector": node.get("vector"),
            "spatial": node.get("spatial", 0),
        }
        assert (null.label is not None) == (node.get("rows") is not None)
        reads = {"caption": node.reads_captions, "label": node.get("reads_labels", False)}
        reads |= dict.fromkeys(node.get("conditions") or {}, True)
        assert node.get("rows") in (None, (node.get("classes") or 0) + 1)
        for name, wanted in reads.items():
            with pytest.raises(InputError, match="the batch has none") if wanted else nullcontext():
                conditioner(replace(batch, **{name: None}), codec)
    for data in ("shapes", "webdataset"):
        module = train_config("experiment=ldm_txt2img", f"conditioner={option}", f"data={data}").data.module
        assert (module.require_captions, module.require_labels) == (reads["caption"], reads["label"])
        assert module.conditions == node.get("conditions")
        plain = train_config("experiment=ae_kl", f"data={data}").data.module
        assert (plain.require_captions, plain.require_labels, plain.conditions) == (False, False, None)


def test_clip_says_what_it_gives(tiny_clip: tuple[str, ...]) -> None:
    cfg = train_config("experiment=ldm_txt2img", "conditioner=open_clip_text", *tiny_clip)
    assert given(build(cfg.conditioner.module).null(Batch(keys=["a"])))["width"] == cfg.conditioner.width


def test_clip_s_width_is_that_of_the_model_named() -> None:
    import open_clip

    node = train_config("experiment=ldm_txt2img", "conditioner=open_clip_text").conditioner
    name = node.module.model.removesuffix("-quickgelu")
    assert open_clip.get_model_config(name)["text_cfg"]["width"] == node.width == 768
    assert node.module.weights in open_clip.list_pretrained_tags_by_model(node.module.model)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for a CLIP of a size that can be had here."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    (folder / "small-clip.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder)
    torch.save(open_clip.create_model("small-clip").state_dict(), folder / "weights.pt")
    return (
        "conditioner.width=24",
        "conditioner.module.model=small-clip",
        f"conditioner.module.weights={folder / 'weights.pt'}",
        f"+conditioner.module.model_config={folder}",
    )


def test_lpips_is_built_from_a_file_of_vgg16(tmp_path: Path) -> None:
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    vgg: dict[str, Tensor] = {}
    for number, before, width in zip(numbers, widths, widths[1:]):
        vgg[f"features.{number}.weight"] = torch.full((width, before, 3, 3), 0.01)
        vgg[f"features.{number}.bias"] = torch.zeros(width)
    torch.save(vgg, tmp_path / "vgg16.pth")
    cfg = train_config("experiment=ae_kl", "reconstruction=lpips")
    cfg.reconstruction.perceptual.weights = str(tmp_path / "vgg16.pth")
    loss = build(cfg.reconstruction)
    assert (loss.l1, loss.l2) == (1.0, 0.0)
    image = torch.rand(1, 3, 32, 32)
    assert loss(image, image).item() == 0.0
    assert not any(parameter.requires_grad for parameter in loss.perceptual.parameters())


@pytest.mark.parametrize("option", options("classifier"))
def test_classifiers_answer_for_the_latents_of_their_experiment(option: str) -> None:
    cfg = train_config("experiment=classifier", f"classifier={option}")
    classifier = on_meta(cfg.task.classifier)
    latent, t = torch.empty(2, 4, 16, 16, device="meta"), torch.ones(2, device="meta")
    assert classifier(latent, t).shape == (2, cfg.classifier.classes)
    assert cfg.diffusion.path == train_config("experiment=ldm_txt2img").diffusion.path


def test_the_base_of_classifier_guidance_is_a_choice() -> None:
    chosen = ("guidance=classifier", "guidance@guidance.base=classifier_free", "guidance.base.scale=2.0")
    assert build(composed(*SAMPLE, *chosen).guidance.base).scale == 2.0


SMALL = {
    "adversarial": (AE, ["adversarial.discriminator", "adversarial.schedule", "adversarial.optimizer"]),
    "diffusion": (LDM, ["diffusion"]),
    "guidance": (LDM, ["guidance"]),
    "sampler": (LDM, ["sampler.solver", "sampler.grid"]),
    "optim": (AE, ["optim.optimizer", "optim.schedule"]),
    "data": (LDM, ["data.module", "data.metrics"]),
    "callbacks": (None, ["callbacks"]),
    "metrics": (EVALUATE, ["metrics"]),
}


NEED_FILES = ("checkpoint", "inception", "inception_small", "paper", "clip", "dino", "lpips")
"""A checkpoint, or weights that are downloaded."""


@pytest.mark.parametrize(
    ("group", "option"),
    [
        pytest.param(group, option, id=f"{group}={option}")
        for group in SMALL
        for option in options(group)
        if option not in NEED_FILES and f"{group}={option}" not in OF_A_CHECKPOINT
    ],
)
def test_small_parts_are_built(group: str, option: str) -> None:
    root, keys = SMALL[group]
    root = root or TASK_OF[option]
    cfg = composed(*root, f"{group}={option}")
    cfg.run_dir = "run"
    for key in keys:
        node = cfg
        for name in key.split("."):
            node = node[name]
        assert node is None or build(node) is not None


@pytest.mark.parametrize("option", options("trainer"))
def test_trainers_and_loggers_are_built_or_say_what_is_missing(option: str, tmp_path: Path) -> None:
    cfg = train_config("experiment=ae_kl", f"trainer={option}", "logger=[csv,wandb]")
    cfg.run_dir = str(tmp_path)
    if option in ("gpu", "ddp", "fsdp") and not torch.cuda.is_available():
        with pytest.raises(InputError, match="gpu"):
            build_trainer(cfg, DirectoryCheckpointIO(config=""))
        return
    trainer = build_trainer(cfg, DirectoryCheckpointIO(config=""))
    assert trainer.world_size == (2 if option in ("ddp_cpu", "fsdp_cpu") else 1)
    assert (trainer.max_epochs, trainer.val_check_interval) == (1, cfg.validate_every)
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CSVLogger", "WandbLogger"]


OWN_TEST = [name for name in options("experiment") if name.startswith("paper/") and "/ae_" not in name]
"""Published second stages: test_paper_diffusion builds them, without the weights of CLIP."""


@pytest.mark.parametrize("name", [name for name in options("experiment") if name not in OWN_TEST])
def test_experiments_are_built_and_their_shapes_fit(name: str) -> None:
    """The whole task on the meta device, with the first stage that it would train."""
    cfg = composed("train", f"experiment={name}")
    if cfg.reconstruction is not None and "weights" in (cfg.reconstruction.perceptual or {}):
        cfg.reconstruction.perceptual = None  # LPIPS would download
    size, parts = cfg.data.size, {}
    image = torch.empty(2, 3, size, size, device="meta")
    if cfg.first_stage is not None:
        first = composed("train", f"experiment={cfg.first_stage.experiment}", *cfg.first_stage.overrides)
        assert first.data.size == size
        with torch.device("meta"):
            autoencoder = build(first.autoencoder)
            channels = autoencoder.latent_channels
            parts["codec"] = LatentCodec(autoencoder=autoencoder, mean=torch.zeros(channels), std=torch.ones(channels))
        cfg.latent.channels, cfg.latent.factor = channels, autoencoder.factor
    with torch.device("meta"):
        module = build(cfg.task, inject=parts)
    assert size % module.latent["factor"] == 0
    if "classifier" in cfg.task:
        latent = module.codec.moments(image)[0]
        assert module.model(latent, torch.ones(2, device="meta")).shape == (2, cfg.classifier.classes)
    elif parts:
        latent = module.codec.moments(image)[0]
        denoiser, conditioner = module.model["denoiser"], module.model["conditioner"]
        batch = meta_batch(size, factor=OmegaConf.select(cfg, "conditioner.conditions.low_res.factor") or 4)
        with torch.device("meta"):
            cond = conditioner(batch, module.codec)
        assert denoiser.backbone(latent, torch.ones(2, device="meta"), cond).shape == latent.shape
        assert module.codec.decode(latent).shape == image.shape
    else:
        reconstruction = module.autoencoder.decode(module.autoencoder.encode(image).mean)
        assert reconstruction.shape == image.shape
        assert module.discriminator is None or module.discriminator(reconstruction).shape[:2] == (2, 1)
    optimizers = module.configure_optimizers()
    first, *second = optimizers if isinstance(optimizers, list) else [optimizers]
    assert first.defaults["lr"] == cfg.optim.lr
    for optimizer in second:
        assert optimizer.defaults["lr"] == cfg.adversarial.optimizer.lr
