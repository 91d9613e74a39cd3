"""Whole models in and out: diffusers' own pipelines say what the images should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from latentdiff.app.export.foreign import Options
from latentdiff.app.export.import_model import import_model
from latentdiff.app.export.work import export
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign.pipeline.whole import Told
from latentdiff.checkpoint.models import load_diffusion
from latentdiff.checkpoint.places import moved
from latentdiff.config.instantiate import build
from latentdiff.types import Batch

PROMPTS = ["a photo of a red cube, on the table", "blue"]
TOLERANCE = {"rtol": 0, "atol": 1e-4}
STRANGE = ["", "Ein Fluß, zwei Häuser & 3 Bäume", "naïve café — 日本 🙂", "word " * 100, "don't we'll\n 12 <b>"]
MENDED = ["“quoted”", "salt &amp; pepper", "ﬁne"]
"""Characters that open_clip replaces before it reads, and transformers does not."""


def batch(captions: list[str] = PROMPTS) -> Batch:
    return Batch(keys=[str(i) for i in range(len(captions))], caption=captions)


def features(pipeline, prompts: list[str] = PROMPTS) -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt(prompts, "cpu", 1, False)[0]


@pytest.fixture
def imported(peer, tmp_path: Path) -> Path:
    import_model(peer.folder, tmp_path / "model", Told())
    return tmp_path / "model"


def test_a_folder_makes_the_images_that_diffusers_makes(peer, imported: Path, theirs, ours) -> None:
    model = load_diffusion(imported)
    (latents, images), (expected_latents, expected) = ours(model), theirs(peer.pipeline)
    assert images.std() > 0.1
    torch.testing.assert_close(latents, expected_latents, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(images, expected, **TOLERANCE)
    tokens = model.conditioner(batch()).tokens
    torch.testing.assert_close(tokens, features(peer.pipeline), **TOLERANCE)
    model.conditioner.pad_with_end = not model.conditioner.pad_with_end
    assert (model.conditioner(batch()).tokens - tokens).abs().max() > 0.1


def test_what_the_folder_says_stands_in_the_configuration(peer, imported: Path) -> None:
    config = load_diffusion(imported).config
    assert config.diffusion.parameterization._target_.endswith({1: ".Epsilon", 2: ".V"}[peer.version])
    assert config.diffusion.path.beta_end == 0.012
    assert config.task.conditioner.pad_with_end == (peer.version == 1)
    assert {1: "heads", 2: "head_width"}[peer.version] in config.backbone
    assert config.data.size == 16
    assert config.conditioner.reads_captions


def test_a_single_file_goes_out_and_comes_back(peer, imported: Path, theirs, ours, tmp_path: Path) -> None:
    """diffusers reads the same file: what it computes with it is what it computes with the folder it was made of."""
    from diffusers import StableDiffusionPipeline

    file = tmp_path / "sd.safetensors"
    export(imported, file, form="ldm", options=Options(single_file=True))
    prefix = {1: "cond_stage_model.transformer.text_model.", 2: "cond_stage_model.model."}[peer.version]
    assert any(name.startswith(prefix) for name in load_file(file))
    expected_latents, expected = theirs(peer.pipeline)

    import_model(file, tmp_path / "again", Told())
    latents, images = ours(load_diffusion(tmp_path / "again"))
    torch.testing.assert_close(latents, expected_latents, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(images, expected, **TOLERANCE)

    without_weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(peer.folder, tmp_path / "configuration", ignore=without_weights)
    read = StableDiffusionPipeline.from_single_file(
        str(file), config=str(tmp_path / "configuration"), local_files_only=True
    )
    read.set_progress_bar_config(disable=True)
    torch.testing.assert_close(features(read), features(peer.pipeline), **TOLERANCE)
    torch.testing.assert_close(theirs(read)[0], expected_latents, rtol=1e-5, atol=2e-4)


def test_a_pipeline_goes_out_as_it_came_in(peer, imported: Path, theirs, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    assert export(imported, tmp_path / "sd", form="diffusers").what == "pipeline"
    read = StableDiffusionPipeline.from_pretrained(str(tmp_path / "sd"))
    read.set_progress_bar_config(disable=True)
    torch.testing.assert_close(features(read), features(peer.pipeline), **TOLERANCE)
    torch.testing.assert_close(theirs(read)[1], theirs(peer.pipeline)[1], **TOLERANCE)
    assert read.scheduler.config.prediction_type == peer.pipeline.scheduler.config.prediction_type
    conditioner = load_diffusion(imported).conditioner
    assert torch.equal(token_ids(conditioner, STRANGE), their_ids(read, STRANGE))
    ours, other = token_ids(conditioner, MENDED), their_ids(read, MENDED)
    assert not any(torch.equal(a, b) for a, b in zip(ours, other))
    same = torch.equal(token_ids(conditioner, ["oh!!!"]), their_ids(read, ["oh!!!"]))
    assert same == (peer.version == 1)


def token_ids(conditioner, captions: list[str]) -> torch.Tensor:
    """What reaches the token table."""
    seen = []
    hook = conditioner.clip.token_embedding.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    conditioner(batch(captions))
    hook.remove()
    return seen[0]


def their_ids(pipeline, captions: list[str]) -> torch.Tensor:
    settings = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
    return pipeline.tokenizer(captions, **settings).input_ids


def test_only_weights_of_the_penultimate_block_are_left_out(peers, tmp_path: Path) -> None:
    """A single file of SD 2 has a block behind the one that is read; a pipeline of diffusers has not."""
    import_model(peers[2].folder, tmp_path / "model", Told())
    export(tmp_path / "model", tmp_path / "sd.safetensors", form="ldm", options=Options(single_file=True))
    tensors = load_file(tmp_path / "sd.safetensors")
    name = "cond_stage_model.model.transformer.resblocks.2.mlp.c_proj.weight"
    assert tensors[name].abs().max() == 0
    metadata = {"text_heads": "2", "unet_heads": "[2, 4]", "prediction": "v_prediction", "image_size": "16"}
    save_file(tensors | {name: torch.ones_like(tensors[name])}, tmp_path / "changed.safetensors", metadata)
    import_model(tmp_path / "changed.safetensors", tmp_path / "again", Told())
    assert load_diffusion(tmp_path / "again").config.task.conditioner.block == 2
    export(tmp_path / "again", tmp_path / "sd", form="diffusers")
    config = json.loads((tmp_path / "sd/text_encoder/config.json").read_text())
    assert config["num_hidden_layers"] == 2
    again = load_file(tmp_path / "sd/text_encoder/model.safetensors")
    original = {k.removeprefix("text_model."): v for k, v in peers[2].pipeline.text_encoder.state_dict().items()}
    original = {k: v for k, v in original.items() if not k.endswith("position_ids")}
    assert {k.removeprefix("text_model.") for k in again} == set(original)
    assert all(torch.equal(again[f"text_model.{k}"], v) for k, v in original.items())


def test_a_moved_folder_names_its_parts_where_they_are(peers, tmp_path: Path) -> None:
    import_model(peers[1].folder, tmp_path / "model", Told())
    before = load_diffusion(tmp_path / "model").conditioner(batch()).tokens
    (tmp_path / "model").rename(tmp_path / "new place")
    checkpoint = store.resolve(tmp_path / "new place")
    manifest, config = store.read_manifest(checkpoint), OmegaConf.load(checkpoint / store.CONFIG)
    node = moved(OmegaConf.to_container(config.task.conditioner), manifest, checkpoint)
    assert torch.equal(build(node)(batch()).tokens, before)
    first = moved(manifest.first_stage["path"], manifest, checkpoint)
    assert first == str(tmp_path / "new place/first_stage")
    assert store.digest(first) == manifest.first_stage["hash"]
    assert moved("elsewhere", manifest, checkpoint) == "elsewhere"
    assert moved(str(tmp_path / "models"), manifest, checkpoint) == str(tmp_path / "models")


MEAN, STD = [0.3, -0.2, 0.5, 0.0], [2.0, 0.7, 1.5, 1.1]
"""Of latents, a shift and a scale for each channel."""


def whitened(folder: Path, prediction: str, *, zero_snr: bool = False) -> Path:
    """An imported model with latents and a prediction as training here makes them."""
    first, second = folder / "first_stage", store.resolve(folder)
    store.save(
        first,
        kind="autoencoder",
        model={"latent_mean": torch.tensor(MEAN), "latent_std": torch.tensor(STD)},
        ema=store.load_weights(first, "ema"),
        config=store.load_config(first),
        counters=store.read_manifest(first).counters,
    )
    config, manifest = OmegaConf.create(store.load_config(second)), store.read_manifest(second)
    for node in (config.diffusion, config.task.denoiser):
        node.parameterization._target_ = f"latentdiff.diffusion.parameterization.{prediction}"
        node.path.zero_terminal_snr = zero_snr
    if zero_snr:
        config.sampler.grid = {"_target_": "latentdiff.diffusion.grids.Trailing"}
    store.save(
        second,
        kind="diffusion",
        model={},
        ema=store.load_weights(second, "ema"),
        config=OmegaConf.to_yaml(config),
        counters=manifest.counters,
        first_stage={"path": str(first), "hash": store.digest(first)},
        latent=manifest.latent,
        extra=manifest.extra,
    )
    return folder


@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [
        ("Epsilon", False),
        ("V", True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("V", False), ("Sample", False), ("Sample", True))),
    ],
)
def test_an_exported_pipeline_makes_the_images_that_we_make(
    peers, theirs, ours, tmp_path: Path, prediction: str, zero_snr: bool
) -> None:
    """Whitened latents, every prediction, without guidance and with it."""
    from diffusers import DiffusionPipeline

    import_model(peers[1].folder, tmp_path / "model", Told())
    run = whitened(tmp_path / "model", prediction, zero_snr=zero_snr)
    assert export(run, tmp_path / "sd", form="diffusers").what == "pipeline"
    read = DiffusionPipeline.from_pretrained(str(tmp_path / "sd"))
    read.set_progress_bar_config(disable=True)
    assert read.vae.config.scaling_factor == 1.0
    model = load_diffusion(run)
    images = []
    for scale in (1.0, 5.0):
        model.config.guidance.scale = scale
        (latents, image), (expected_latents, expected) = ours(model), theirs(read, scale=scale)
        torch.testing.assert_close(latents, expected_latents, rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(image, expected, **TOLERANCE)
        assert image.std() > 0.1
        images.append(image)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_a_single_file_holds_whitened_latents_at_stable_diffusions_scale(peers, ours, tmp_path: Path) -> None:
    import_model(peers[1].folder, tmp_path / "model", Told())
    run = whitened(tmp_path / "model", "Epsilon")
    export(run, tmp_path / "sd.safetensors", form="ldm", options=Options(single_file=True))
    import_model(tmp_path / "sd.safetensors", tmp_path / "again", Told(scale=0.18215))
    (_, image), (_, again) = ours(load_diffusion(run)), ours(load_diffusion(tmp_path / "again"))
    torch.testing.assert_close(again, image, **TOLERANCE)


def test_a_folder_of_ours_brings_its_text_encoder(peers, tmp_path: Path) -> None:
    """Without the place where CLIP's weights were in training."""
    import_model(peers[1].folder, tmp_path / "model", Told())
    before = load_diffusion(tmp_path / "model").conditioner(batch()).tokens
    assert export(tmp_path / "model", tmp_path / "ours", form="latentdiff").notes == []
    (tmp_path / "model").rename(tmp_path / "gone")
    after = load_diffusion(tmp_path / "ours")
    assert torch.equal(after.conditioner(batch()).tokens, before)
    assert after.config.task.conditioner.weights == "./text_encoder/weights.safetensors"
    assert str(tmp_path) not in (after.path / store.CONFIG).read_text()
