"""``latentdiff export`` of checkpoints with random weights to other programs; what it writes is read back."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file

from latentdiff import durable
from latentdiff.app import cli
from latentdiff.app.export import work as export_work
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights, own_backbone
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.instantiate import build
from latentdiff.training.ema import Ema

AUTOENCODER = {
    "_target_": "latentdiff.models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": "latentdiff.models.autoencoder.bottlenecks.kl.KL"},
    "channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 3,
}
TOLD = ("--license", "mit")
MEAN, STD = [0.1, -0.2, 0.0], [0.5, 2.0, 1.0 / 3.0]


@pytest.fixture
def checkpoint(tmp_path: Path):
    """``checkpoint(**changes)``: a run directory whose averaged weights differ from the last ones."""

    def make(mean=MEAN, std=STD, **changes) -> Path:
        node = AUTOENCODER | changes
        model = build(node)
        ema = Ema(build(node), decay=0.9)
        weights = {f"autoencoder.{name}": value for name, value in model.state_dict().items()}
        store.save(
            tmp_path / "run/checkpoints/last",
            kind="autoencoder",
            model=weights | {"latent_mean": torch.tensor(mean), "latent_std": torch.tensor(std)},
            ema={f"ema.{name}": value for name, value in ema.state_dict().items()},
            config=yaml.safe_dump({"autoencoder": node, "data": {"size": 48}}),
            counters={"batches_seen": 1, "images_seen": 2},
        )
        return tmp_path / "run"

    return make


def run(*arguments: object) -> int:
    return cli.main(["export", *map(str, arguments)])


@pytest.mark.parametrize("form", ["latentdiff", "diffusers"])
def test_a_terminated_export_leaves_nothing(checkpoint, tmp_path: Path, monkeypatch, form: str) -> None:
    run_dir, staged = checkpoint(), set()

    def terminate(facts, folder, **_) -> None:
        staged.add(folder.name)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(durable, "passed", lambda _: staged.update(path.name for path in tmp_path.glob("out/.*")))
    monkeypatch.setattr(export_work, "write_card", terminate)
    with pytest.raises(SystemExit) as left:
        run(run_dir, tmp_path / "out/model", "--format", form)
    assert (left.value.code, len(staged)) == (143, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def equal(a: Path, b: Path) -> bool:
    """Whether two first stages have the same weights and statistics, to the bit."""
    first, second = load_codec(a).state_dict(), load_codec(b).state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_of_diffusers_holds_the_whitening_in_its_weights(checkpoint, tmp_path: Path, capsys) -> None:
    run_dir, dest = checkpoint(), tmp_path / "new/vae"
    assert run(run_dir, dest, "--format", "diffusers") == 0
    out = capsys.readouterr().out
    assert f"first stage written: {dest}" in out
    assert "note:" not in out
    config = json.loads((dest / "config.json").read_text())
    assert (config["sample_size"], config["scaling_factor"]) == (48, 1.0)
    before, after = load_codec(run_dir), load_codec(dest)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = before.encode(image)
    torch.testing.assert_close(after.encode(image), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.decode(z), before.decode(z), rtol=0, atol=1e-5)


def test_a_codebook_leaves_the_whitening_to_the_reader(checkpoint, tmp_path: Path, capsys) -> None:
    bottleneck = {"_target_": "latentdiff.models.autoencoder.bottlenecks.vq.VQ", "entries": 8, "channels": 3}
    run_dir = checkpoint(bottleneck=bottleneck)
    assert run(run_dir, tmp_path / "vq", "--format", "diffusers") == 0
    assert "VQModel reads neither shift_factor nor latents_mean" in capsys.readouterr().out
    assert load_codec(tmp_path / "vq").std.flatten().tolist() == pytest.approx(STD)


def test_one_factor_needs_no_note(checkpoint, tmp_path: Path, capsys) -> None:
    run_dir, dest = checkpoint(mean=[0.5] * 3, std=[4.0] * 3), tmp_path / "vae"
    assert run(run_dir, dest, "--format", "diffusers") == 0
    assert "note:" not in capsys.readouterr().out
    config = json.loads((dest / "config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"]) == (0.25, 0.5)
    assert "latents_std" not in config


@pytest.mark.parametrize("option", [[], ["--single-file"]])
def test_a_file_of_ldm(checkpoint, tmp_path: Path, option: list[str]) -> None:
    run_dir, dest = checkpoint(), tmp_path / "ae.safetensors"
    assert run(run_dir, dest, "--format", "ldm", *option) == 0
    assert equal(run_dir, dest)


def test_one_foreign_format_becomes_the_other(checkpoint, tmp_path: Path, capsys) -> None:
    torch.save({"state_dict": build(AUTOENCODER).state_dict()}, tmp_path / "model.ckpt")
    assert run(tmp_path / "model.ckpt", tmp_path / "vae", "--format", "diffusers") == 2
    assert "--scale NUMBER" in capsys.readouterr().err
    assert (
        run(tmp_path / "model.ckpt", tmp_path / "vae", "--format", "diffusers", "--scale", 0.125, "--shift", 0.5) == 0
    )
    config = json.loads((tmp_path / "vae/config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"]) == (0.125, 0.5)
    assert run(tmp_path / "vae", tmp_path / "back.safetensors", "--format", "ldm") == 0
    assert equal(tmp_path / "vae", tmp_path / "back.safetensors")


def test_faults_are_told_and_nothing_is_written(checkpoint, tmp_path: Path, capsys) -> None:
    run_dir, dest = checkpoint(patch=2), tmp_path / "dest"
    (tmp_path / "file").write_text("mine")
    cases = {
        "folds 2x2 pixels": (run_dir, dest, "--format", "diffusers"),
        "no checkpoint found": (tmp_path / "nothing", dest, "--format", "diffusers"),
        "stands already and is not overwritten": (run_dir, tmp_path / "file", "--format", "ldm"),
        "--single-file is for --format ldm": (run_dir, dest, "--format", "diffusers", "--single-file"),
        "--license and --results are for the model card": (run_dir, dest / "x.safetensors", "--format", "ldm", *TOLD),
        "carries its own": (run_dir, dest, "--format", "diffusers", "--scale", 1),
        "--first-stage is for a second stage": (run_dir, dest, "--format", "ldm", "--first-stage", run_dir),
        "a file of no known kind": (tmp_path / "file", dest, "--format", "diffusers"),
    }
    before = sorted(tmp_path.rglob("*"))
    for message, arguments in cases.items():
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("form", ["diffusers", "ldm"])
def test_a_place_that_cannot_be_written(checkpoint, tmp_path: Path, capsys, form: str) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(checkpoint(), tmp_path / "file/vae.safetensors", "--format", form) == 2
    assert f"'{tmp_path}/file/vae.safetensors' cannot be written" in capsys.readouterr().err


DIFFUSION = {
    "path": {"_target_": "latentdiff.diffusion.path.ScaledLinearDDPM"},
    "parameterization": {"_target_": "latentdiff.diffusion.parameterization.Epsilon"},
}
UNET = {
    "_target_": "latentdiff.models.backbones.unet.UNet",
    "in_channels": 4,
    "out_channels": 4,
    "channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_factors": [2],
    "context_dim": 24,
    "heads": 2,
}


@pytest.fixture
def stage_two(tmp_path: Path):
    """``stage_two(**changes)``: a run directory whose averaged weights differ from the last ones."""

    def make(conditioner: dict | None = None, diffusion: dict | None = None, **changes) -> Path:
        node, parts = UNET | changes, DIFFUSION | (diffusion or {})
        last, average = build(node), build(node)
        task = {"denoiser": {"backbone": node, **parts}} | ({"conditioner": conditioner} if conditioner else {})
        store.save(
            tmp_path / "ldm/checkpoints/last",
            kind="diffusion",
            model={f"model.denoiser.backbone.{name}": value for name, value in last.state_dict().items()},
            ema={f"ema.model.denoiser.backbone.{name}": value for name, value in average.state_dict().items()},
            config=OmegaConf.to_yaml(OmegaConf.create({"task": task, "data": {"size": 64}, "diffusion": parts})),
            counters={"batches_seen": 1, "images_seen": 2},
            latent={"channels": 4, "factor": 8},
        )
        return tmp_path / "ldm"

    return make


@pytest.mark.parametrize(
    "options", ["diffusers --unet-only", "ldm", "ldm --unet-only", "ldm --single-file --unet-only"]
)
def test_the_unet_of_stage_two(stage_two, tmp_path: Path, capsys, options: str) -> None:
    run_dir, dest = stage_two(), tmp_path / "new/unet.safetensors"
    assert run(run_dir, dest, "--format", *options.split()) == 0
    said = capsys.readouterr().out
    assert f"UNet written: {dest}" in said
    assert "it predicts Epsilon on ScaledLinearDDPM" in said
    expected = own_backbone(run_dir).state_dict()
    again = build(UNET)
    load_backbone_weights(again, dest)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in expected.items())
    if "diffusers" in options:
        config = json.loads((dest / "config.json").read_text())
        assert (config["_class_name"], config["sample_size"]) == ("UNet2DConditionModel", 8)
        assert "The UNet, without its first stage" in (dest / "README.md").read_text()
    else:
        prefix = "model.diffusion_model." if "--single-file" in options else ""
        assert set(load_file(dest)) == {prefix + name for name in expected}


TEXT = {"_target_": "latentdiff.conditioning.text_transformer.TextTransformerConditioner"}
CLIP = {"_target_": "latentdiff.conditioning.open_clip_text.OpenClipText", "model": "x", "weights": "y"}
CLASSES = {"_target_": "latentdiff.conditioning.class_label.ClassIndex"}
FLOW = {"path": {"_target_": "latentdiff.diffusion.path.RectifiedFlow"}}
ZERO_SNR = {"path": DIFFUSION["path"] | {"zero_terminal_snr": True}}


@pytest.mark.parametrize(
    ("conditioner", "diffusion", "reason"),
    [
        (None, {}, "its conditioner is none"),
        (TEXT, {}, "its conditioner is TextTransformerConditioner"),
        (CLASSES, {}, "its conditioner is ClassIndex"),
        (CLIP | {"pooled": True}, {}, "its UNet reads CLIP's pooled vector"),
        (CLIP, FLOW, "it predicts Epsilon on RectifiedFlow"),
        (CLIP, ZERO_SNR, "epsilon, which says nothing of the image at the pure noise"),
    ],
)
@pytest.mark.parametrize("form", ["ldm --single-file", "diffusers"])
def test_models_that_the_format_cannot_hold_are_refused(
    stage_two, tmp_path: Path, capsys, conditioner, diffusion, reason, form: str
) -> None:
    assert run(stage_two(conditioner, diffusion), tmp_path / "new/place.safetensors", "--format", *form.split()) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert "--unet-only writes its UNet alone" in said
    assert "--format latentdiff holds the whole model" in said
    assert not (tmp_path / "new").exists()


def test_a_whole_model_needs_its_first_stage(stage_two, tmp_path: Path, capsys) -> None:
    for options in ("ldm --single-file", "diffusers"):
        assert run(stage_two(CLIP), tmp_path / "sd.safetensors", "--format", *options.split()) == 2
        assert "does not say which first stage" in capsys.readouterr().err
    assert run(stage_two(CLIP), tmp_path / "sd.ckpt", "--format", "ldm", "--single-file") == 2
    assert "give it a name that ends so" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"patch": 2}, "diffusers", "only patch 1 can be exchanged .* --format latentdiff holds the whole"),
        ({"position_embedding": True}, "ldm", "position_embedding: false"),
        ({}, "ldm --scale 1", "carries its own"),
        ({}, "diffusers --single-file", "--single-file is for --format ldm"),
        ({}, "diffusers --with-text-encoder", "--with-text-encoder is for --format latentdiff"),
        ({}, "latentdiff --unet-only", "--unet-only is for a second stage in --format diffusers or ldm"),
    ],
)
def test_faults_of_a_second_stage_are_told_and_nothing_is_written(
    stage_two, tmp_path: Path, capsys, changes: dict, options: str, message: str
) -> None:
    assert run(stage_two(**changes), tmp_path / "unet.safetensors", "--format", *options.split()) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "unet.safetensors").exists()


def test_other_checkpoints_are_refused(tmp_path: Path, capsys) -> None:
    store.save(
        tmp_path / "classifier",
        kind="classifier",
        model={"x": torch.zeros(1)},
        ema={"ema.model.x": torch.zeros(1)},
        config="{}",
        counters={"batches_seen": 1, "images_seen": 2},
    )
    assert run(tmp_path / "classifier", tmp_path / "vae", "--format", "diffusers") == 2
    assert "kind classifier" in capsys.readouterr().err


def test_the_format_has_to_be_one_of_three(checkpoint, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        run(checkpoint(), tmp_path / "vae", "--format", "onnx")
    assert stop.value.code == 2
    assert re.search("choose from '?diffusers'?, '?ldm'?, '?latentdiff'?", capsys.readouterr().err)


def test_a_failed_export_leaves_nothing_behind(checkpoint, tmp_path: Path, monkeypatch, capsys) -> None:
    run_dir = checkpoint()
    before = sorted(tmp_path.rglob("*"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_work, "write_card", full)
    for form in ("diffusers", "latentdiff"):
        assert run(run_dir, tmp_path / "new/deep/place", "--format", form) == 2
        assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
