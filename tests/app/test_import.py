"""``latentdiff import`` of small single files with random weights; what comes out is what sample.py loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from latentdiff.app import cli
from latentdiff.app.generate import load_generator
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.text.names import own_names, to_hf
from latentdiff.checkpoint.models import load_diffusion
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.backbones.unet import UNet
from latentdiff.types import Batch

TEXT = "cond_stage_model.transformer.text_model."
FIRST = "first_stage_model."
NEEDED = ("--unet-heads", 2, "--text-heads", 2, "--size", 32)


def text_tensors(width: int = 32) -> dict[str, torch.Tensor]:
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "in_proj_weight": (3 * width, width),
        "in_proj_bias": (3 * width,),
        "c_fc.weight": (4 * width, width),
        "c_fc.bias": (4 * width,),
        "c_proj.weight": (width, 4 * width),
        "out_proj.weight": (width, width),
    }
    sizes = {
        n: next((s for end, s in shapes.items() if n.endswith(end)), (width,)) for n in own_names(2, projection=False)
    }
    return to_hf({name: 0.2 * torch.randn(size) for name, size in sizes.items()}, 2)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Of a single file in the layout of Stable Diffusion 1."""
    torch.manual_seed(0)
    unet = UNet(
        in_channels=4,
        out_channels=4,
        channels=32,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        attention_factors=[1],
        context_dim=32,
        heads=2,
    )
    first = Autoencoder(bottleneck=KL(), channels=32, channel_multipliers=[1, 2], num_res_blocks=1, latent_channels=4)
    for parameter in unet.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    found = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    found |= {FIRST + name: value for name, value in first.state_dict().items()}
    return found | {TEXT + name: value.clone() for name, value in text_tensors().items()}


@pytest.fixture
def file(tensors, tmp_path: Path):
    """``file(without=prefix, **tensors)``: a single file, changed."""

    def write(*, without: str = "-", name: str = "sd.safetensors", **more) -> Path:
        kept = {key: value for key, value in tensors.items() if not key.startswith(without)}
        if name.endswith(".safetensors"):
            save_file(kept, tmp_path / name)
        else:
            torch.save({"state_dict": kept, **more}, tmp_path / name)
        return tmp_path / name

    return write


def run(*arguments: object) -> int:
    return cli.main(["import", *map(str, arguments)])


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt"])
def test_a_single_file_becomes_a_checkpoint(file, tensors, tmp_path: Path, capsys, name: str) -> None:
    assert run(file(name=name, global_step=470000), tmp_path / "model", *NEEDED) == 0
    said = capsys.readouterr().out
    assert f"model written: {tmp_path / 'model'}" in said
    assert "Stable Diffusion's factor 0.18215 is taken" in said
    assert "scaled linear, 0.00085 to 0.012" in said
    assert "evaluate.py needs data=" in said
    model = load_diffusion(tmp_path / "model")
    assert torch.equal(model.denoiser.backbone.out[2].weight, tensors["model.diffusion_model.out.2.weight"])
    assert torch.equal(model.codec.autoencoder.decoder.conv_in.weight, tensors[f"{FIRST}decoder.conv_in.weight"])
    assert model.codec.std.flatten().tolist() == pytest.approx([1 / 0.18215] * 4)
    assert model.config.task.conditioner.pad_with_end is True
    assert model.config.guidance.scale == 7.5
    assert store.resolve(tmp_path / "model") == tmp_path / "model/checkpoints/last"


def test_the_checkpoint_generates(file, tmp_path: Path) -> None:
    """With its own sampler and guidance, and with another number of steps."""
    assert run(file(), tmp_path / "model", *NEEDED) == 0
    cfg = {"first_stage": {"checkpoint": None}, "sampler": {"steps": 3}, "guidance": {"scale": None}, "data": None}
    place = store.resolve(tmp_path / "model")
    made = load_generator(OmegaConf.create(cfg), place, torch.device("cpu"), None)
    assert made.reads_captions
    red, blue = (Batch(keys=["0"], caption=[caption]) for caption in ("a red cube", "blue"))
    assert made.pipeline(red, [1]).shape == (1, 3, 32, 32)
    assert (made.pipeline.latents(red, [1]) - made.pipeline.latents(blue, [1])).abs().max() > 0.01
    about = made.pipeline.describe()
    assert (about["sampler"]["name"], about["guidance"]["scale"], about["steps"]) == ("DDIM", 7.5, 3)


def test_half_precision_stays_as_it_is_in_the_file(tensors, tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in tensors.items()}, tmp_path / "half.safetensors")
    assert run(tmp_path / "half.safetensors", tmp_path / "model", *NEEDED) == 0
    stored = load_file(tmp_path / "model/checkpoints/last/ema.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model = load_diffusion(tmp_path / "model")
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert {p.dtype for p in model.conditioner.clip.parameters()} == {torch.float32}


def test_what_the_user_says_is_taken(file, tmp_path: Path) -> None:
    given = ("--prediction", "v", "--scale", 0.5, "--shift", 0.25)
    assert run(file(), tmp_path / "model", *NEEDED, *given) == 0
    model = load_diffusion(tmp_path / "model")
    assert type(model.denoiser.parameterization).__name__ == "V"
    assert model.codec.std.flatten().tolist() == [2.0] * 4
    assert model.codec.mean.flatten().tolist() == [0.25] * 4
    assert model.denoiser.backbone.input_blocks[1][1].transformer_blocks[0].attn1.heads == 2


def test_missing_parts_are_named_and_can_be_given(file, tmp_path: Path, capsys) -> None:
    whole, dest = file(), tmp_path / "model"
    without_first = file(without=FIRST, name="a.safetensors")
    assert run(without_first, dest, *NEEDED) == 2
    assert "no first stage (first_stage_model.*): name one with --first-stage PATH" in capsys.readouterr().err
    assert run(without_first, dest, *NEEDED, "--first-stage", whole) == 0
    without_text = file(without="cond_stage_model.", name="b.safetensors")
    assert run(without_text, tmp_path / "other", *NEEDED) == 2
    said = capsys.readouterr().err
    assert "no text encoder (cond_stage_model.transformer.text_model.* or cond_stage_model.model.*)" in said
    assert "--text-encoder PATH" in said
    pipeline = tmp_path / "pipeline"
    assert cli.main(["export", str(dest), str(pipeline), "--format", "diffusers"]) == 0
    assert run(without_text, tmp_path / "other", *NEEDED[:2], *NEEDED[4:], "--text-encoder", pipeline) == 0
    batch = Batch(keys=["0"], caption=["a red cube"])
    first, second = (load_diffusion(place).conditioner(batch).tokens for place in (dest, tmp_path / "other"))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NEEDED[2:], "give --unet-heads N"),
        (NEEDED[:2] + NEEDED[4:], "give --text-heads N"),
        (NEEDED[:4], "give --size PX"),
        ((*NEEDED[:4], "--size", 30), "--size: expected a multiple of 4"),
        ((*NEEDED[2:], "--unet-heads", 5), "--unet-heads: 5 heads do not divide"),
        ((*NEEDED[:4], "--size", 0), "--size: expected a whole number of at least 1"),
        ((*NEEDED, "--scale", -1), "must be a number above 0"),
    ],
)
def test_what_no_file_says_is_asked_for(file, tmp_path: Path, capsys, arguments: tuple, message: str) -> None:
    assert run(file(), tmp_path / "model", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_other_faults_are_told_and_nothing_is_written(file, tensors, tmp_path: Path, capsys) -> None:
    good, dest = file(), tmp_path / "model"
    (tmp_path / "mine").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "part").mkdir()
    (tmp_path / "part/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (tmp_path / "xl").mkdir()
    (tmp_path / "xl/model_index.json").write_text(json.dumps({"text_encoder_2": ["transformers", "CLIPTextModel"]}))
    narrow = {TEXT + name: value.clone() for name, value in text_tensors(16).items()}
    save_file(tensors | narrow, tmp_path / "narrow.safetensors")
    wide = torch.zeros(32, 9, 3, 3)
    save_file(tensors | {"model.diffusion_model.input_blocks.0.0.weight": wide}, tmp_path / "inpaint.safetensors")
    cases = {
        "stands already": (good, tmp_path / "mine", *NEEDED),
        "does not exist": (tmp_path / "nothing.ckpt", dest, *NEEDED),
        "there is no model_index.json": (tmp_path / "empty", dest),
        "but no folder unet, vae, text_encoder, tokenizer, scheduler": (tmp_path / "part", dest),
        "with text_encoder_2": (tmp_path / "xl", dest),
        "no UNet (model.diffusion_model.*)": (file(without="model.", name="c.safetensors"), dest, *NEEDED),
        "holds more than tensors: fractions.Fraction": (file(name="d.ckpt", more=_fraction()), dest, *NEEDED),
        "reads tokens of width 32": (tmp_path / "narrow.safetensors", dest, *NEEDED),
        "serves training as init_backbone=PATH": (tmp_path / "inpaint.safetensors", dest, *NEEDED),
    }
    before = sorted(tmp_path.rglob("*"))
    for message, arguments in cases.items():
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert run(good, good / "model", *NEEDED) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_folder_answers_for_itself(tmp_path: Path, capsys) -> None:
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / "pipeline" / name).mkdir(parents=True)
    (tmp_path / "pipeline/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert run(tmp_path / "pipeline", tmp_path / "model", "--prediction", "v") == 2
    assert "--prediction is for single files" in capsys.readouterr().err


def _fraction() -> object:
    from fractions import Fraction

    return Fraction(1, 3)
