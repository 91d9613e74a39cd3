"""Which first stage a configuration asks for, where it names one that another program wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app.first_stage import planned
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, reading
from latentdiff.checkpoint.foreign.architecture import Architecture
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import first_stage_record
from latentdiff.config.errors import InputError

ARCHITECTURE = Architecture(
    image_channels=3, channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, z_channels=4, embed_dim=4
)
SAID = Statistics((0.5,) * 4, (2.0,) * 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder that says the scale 0.5 and the shift 0.5."""
    torch.manual_seed(0)
    autoencoder = ARCHITECTURE.on_meta().to_empty(device="cpu")
    for p in autoencoder.parameters():
        torch.nn.init.normal_(p)
    diffusers.write(autoencoder, SAID, tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def ckpt(folder: Path) -> Path:
    """The same weights in LDM's layout, without a scale."""
    torch.save({"state_dict": reading.read(folder).weights}, folder.parent / "model.ckpt")
    return folder.parent / "model.ckpt"


@pytest.fixture
def resumed(tmp_path: Path):
    """``resumed(first, statistics)``: a stage-two checkpoint that was trained on them."""

    def make(first: Path, statistics: Statistics) -> Path:
        store.save(
            tmp_path / "ldm",
            kind="diffusion",
            model={"x": torch.zeros(1)},
            config="{}",
            counters={"batches_seen": 1, "images_seen": 2},
            first_stage=first_stage_record(first, statistics),
        )
        return tmp_path / "ldm"

    return make


def config(checkpoint: object = "auto", **given: object):
    return OmegaConf.create({"first_stage": {"checkpoint": str(checkpoint), "scale": None, "shift": None, **given}})


def test_a_folder_says_its_scale(folder: Path) -> None:
    found = planned(config(folder), None)
    assert (found.path, found.latent) == (folder, {"channels": 4, "factor": 4})
    assert found.statistics == SAID
    assert planned(config(folder, scale=0.25), None).statistics == Statistics((0.5,) * 4, (4.0,) * 4)
    assert planned(config(folder.parent), None).path == folder.parent  # a pipeline's folder


def test_a_file_needs_a_scale(ckpt: Path) -> None:
    with pytest.raises(InputError, match=r"does not say how its latents are scaled; give first_stage\.scale=NUMBER"):
        planned(config(ckpt), None)
    found = planned(config(ckpt, scale=0.5, shift=0.5), None)
    assert (found.latent, found.statistics) == ({"channels": 4, "factor": 4}, SAID)


def test_a_resumed_run_keeps_its_first_stage_and_its_scale(ckpt: Path, folder: Path, resumed) -> None:
    before = resumed(ckpt, SAID)
    for cfg in (config(), config(ckpt), config(ckpt, scale=0.5, shift=0.5), config("auto", scale=0.5, shift=0.5)):
        found = planned(cfg, before)
        assert (found.path, found.statistics) == (ckpt, SAID)
    with pytest.raises(InputError, match=r"first_stage\.scale and first_stage\.shift: '.*ldm' was trained on latents"):
        planned(config(ckpt, scale=0.25), before)
    with pytest.raises(InputError, match=r"'.*ldm' was trained on the first stage [0-9a-f]{12}, '.*vae' is [0-9a-f]"):
        planned(config(folder), before)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("vae", {"scale": "none"}, r"\(first_stage\.scale\) must be a number above 0, got 'none'"),
        ("vae", {"shift": "x"}, r"\(first_stage\.shift\) must be a number, got 'x'"),
        ("missing.ckpt", {"scale": 1.0}, r"first_stage\.checkpoint: .*1 missing \(decoder\.conv_in\.bias\)"),
        ("notes.txt", {}, r"first_stage\.checkpoint: .*is a file of no known kind"),
    ],
)
def test_faults_name_the_key(ckpt: Path, folder: Path, name: str, given: dict, message: str) -> None:
    home = ckpt.parent
    content = torch.load(ckpt, weights_only=True)["state_dict"]
    del content["decoder.conv_in.bias"]
    torch.save(content, home / "missing.ckpt")
    (home / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=message):
        planned(config(home / name, **given), None)


def test_a_scale_is_for_other_programs_files(tmp_path: Path) -> None:
    for checkpoint in ("auto", tmp_path):
        with pytest.raises(InputError, match=r"first_stage\.shift: it is for autoencoders of other programs"):
            planned(config(checkpoint, shift=0.0), None)
