"""A trained model as one folder: what is in it, and that it stands for the checkpoint it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from latentdiff import durable
from latentdiff.checkpoint import bundle, store
from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import (
    first_stage_record,
    load_classifier,
    load_codec,
    load_diffusion,
)
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.types import Batch

HOME = "latentdiff."
AUTOENCODER = {
    "_target_": f"{HOME}models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": f"{HOME}models.autoencoder.bottlenecks.kl.KL"},
    "channels": 32,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 3,
}
BACKBONE = {
    "_target_": f"{HOME}models.backbones.unet.UNet",
    "in_channels": 3,
    "out_channels": 3,
    "channels": 32,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_factors": [1],
    "context_dim": 8,
    "heads": 2,
}
FLOW = {"_target_": f"{HOME}diffusion.path.RectifiedFlow"}
UNCONDITIONAL = {"_target_": f"{HOME}conditioning.unconditional.Unconditional"}
CLASSIFIER = {
    "_target_": f"{HOME}models.classifier.NoisyClassifier",
    "path": FLOW,
    "network": {
        "_target_": f"{HOME}models.classifier.EncoderClassifier",
        "in_channels": 3,
        "classes": 2,
        "channels": 32,
        "channel_multipliers": [1],
        "num_res_blocks": 1,
        "attention_factors": [1],
        "head_width": 16,
    },
}
SEEN = {"batches_seen": 3, "images_seen": 12}
RUN = {"run_dir": "/home/me/run", "paths": {"data": "/home/me/data"}, "logger": {"csv": {"save_dir": "/home/me"}}}
"""Of the configuration that training stores: where it ran."""


def saved(place: Path, kind: str, task: dict, *, first_stage: dict | None = None, **config) -> Path:
    """As training writes it: trained weights beside the averaged ones, and training state."""
    nodes = {"classifier": CLASSIFIER, "autoencoder": AUTOENCODER, "diffusion": BACKBONE}
    prefix = {"diffusion": "ema.model.denoiser.backbone."}.get(kind, "ema.model.")
    average, last = (build(nodes[kind]).state_dict() for _ in range(2))
    statistics = {"latent_mean": torch.tensor([0.1, 0.2, 0.3]), "latent_std": torch.tensor([1.0, 2.0, 3.0])}
    store.save(
        place,
        kind=kind,
        model={f"x.{name}": value for name, value in last.items()} | (statistics if kind == "autoencoder" else {}),
        ema={prefix + name: value for name, value in average.items()},
        config=OmegaConf.to_yaml(OmegaConf.create({**RUN, "task": task, "data": {"size": 16}, **config})),
        counters=SEEN,
        train_state={"optimizer": torch.zeros(3)},
        first_stage=first_stage,
        latent={"channels": 3, "factor": 2},
        data={"fingerprint": "abc"},
        extra={"val/loss": 0.5},
    )
    return place


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return saved(tmp_path / "run/first/checkpoints/last", "autoencoder", {}, autoencoder=AUTOENCODER)


@pytest.fixture
def second(tmp_path: Path, first: Path):
    """``second(conditioner, first_stage)``: the checkpoint of a second stage."""

    def make(conditioner: dict = UNCONDITIONAL, record: dict | None = None) -> Path:
        velocity = {"_target_": f"{HOME}diffusion.parameterization.Velocity"}
        denoiser = {
            "_target_": f"{HOME}diffusion.denoiser.Denoiser",
            "backbone": BACKBONE,
            "path": FLOW,
            "parameterization": velocity,
        }
        return saved(
            tmp_path / "run/second/checkpoints/last",
            "diffusion",
            {"denoiser": denoiser, "conditioner": conditioner},
            first_stage=record or first_stage_record(first),
            conditioner={"module": conditioner, "reads_captions": conditioner is not UNCONDITIONAL},
        )

    return make


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Folder of a text encoder of transformers, beside the runs."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "run/encoder"
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ncircle\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path):
    """``elsewhere(checkpoint)``: its folder on a machine that has nothing else of it."""

    def move(checkpoint: Path, **options) -> Path:
        write(checkpoint, tmp_path / "out/model", **options)
        (tmp_path / "run").rename(tmp_path / "gone")
        (tmp_path / "out").rename(tmp_path / "another machine")
        return tmp_path / "another machine/model"

    return move


def write(checkpoint: Path, dest: Path, **options) -> None:
    with durable.new_directory(dest) as folder:
        bundle.fill(checkpoint, folder, **options)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_both_stages_work_from_the_folder_alone(second, elsewhere) -> None:
    path = second()
    before, digest = load_diffusion(path), store.digest(path)
    folder = elsewhere(path)
    after = load_diffusion(folder)
    assert equal(before.denoiser, after.denoiser)
    assert equal(before.codec, after.codec)
    assert after.manifest.digest == digest
    assert after.manifest.first_stage["hash"] == before.manifest.first_stage["hash"]
    assert (after.manifest.counters, after.manifest.data) == (SEEN, {"fingerprint": "abc"})
    assert after.manifest.extra["val/loss"] == 0.5
    with pytest.raises(InputError, match="saved without training state"):
        store.load_train_state(after.path)


def test_the_folder_says_nothing_of_the_machine_that_trained_it(second, elsewhere, tmp_path: Path) -> None:
    folder = elsewhere(second())
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json", ".yaml"}
    for path in files:
        content = path.read_bytes()
        assert b"/home/me" not in content
        assert str(tmp_path).encode() not in content
    assert set(load_file(folder / "first_stage/model.safetensors")) == {"latent_mean", "latent_std"}


def test_it_is_a_first_stage_to_whoever_wants_one(second, first, elsewhere) -> None:
    before, record = load_codec(first), first_stage_record(first)
    folder = elsewhere(second())
    assert equal(load_codec(folder), before)
    found = first_stage_record(folder)
    assert (found["hash"], found["path"]) == (record["hash"], str(folder / "first_stage"))


def test_a_first_stage_alone(first, elsewhere) -> None:
    before, digest = load_codec(first), store.digest(first)
    folder = elsewhere(first)
    assert equal(load_codec(folder), before)
    assert store.digest(store.resolve(folder)) == digest


def test_a_classifier(tmp_path: Path, first, elsewhere) -> None:
    place = saved(
        tmp_path / "run/third", "classifier", {"classifier": CLASSIFIER}, first_stage=first_stage_record(first)
    )
    before, digest = load_classifier(place), store.digest(place)
    after = load_classifier(elsewhere(place))
    assert equal(before.classifier, after.classifier)
    assert after.manifest.digest == digest


def test_a_folder_of_a_folder_is_the_same_model(second, tmp_path: Path) -> None:
    path = second()
    write(path, tmp_path / "one")
    write(tmp_path / "one", tmp_path / "two")
    assert store.digest(store.resolve(tmp_path / "two")) == store.digest(path)
    assert equal(load_diffusion(tmp_path / "two").denoiser, load_diffusion(tmp_path / "one").denoiser)


def test_another_program_s_first_stage_becomes_one_of_ours(second, elsewhere, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    statistics = Statistics((0.0,) * 3, (2.0,) * 3)
    diffusers.write(build(AUTOENCODER), statistics, tmp_path / "run/vae")
    path = second(record=first_stage_record(tmp_path / "run/vae"))
    before = load_diffusion(path)
    folder = elsewhere(path)
    after = load_diffusion(folder)
    assert equal(before.codec, after.codec)
    assert after.manifest.first_stage["hash"] == before.manifest.first_stage["hash"]
    assert store.read_manifest(folder / "first_stage").kind == "autoencoder"


@pytest.mark.parametrize("several", [False, True])
def test_a_text_encoder_of_this_machine_goes_along(second, elsewhere, bert, several: bool) -> None:
    node = {"_target_": f"{HOME}conditioning.hf_text.HfText", "model": str(bert), "max_length": 16}
    if several:
        node = {"_target_": f"{HOME}conditioning.compose.Composite", "parts": {"words": node}}
    captions = Batch(keys=["0"], caption=["a red circle"])
    path = second(node)
    before = load_diffusion(path).conditioner(captions)
    folder = elsewhere(path)
    after = load_diffusion(folder)
    assert torch.equal(after.conditioner(captions).tokens, before.tokens)
    written, name = OmegaConf.load(after.path / store.CONFIG), "text_encoder_words" if several else "text_encoder"
    assert written.task.conditioner == written.conditioner.module
    encoder = written.task.conditioner.parts.words if several else written.task.conditioner
    assert encoder.model == f"./{name}"
    (folder / name).rename(folder / "lost")
    with pytest.raises(InputError, match=r"whose text encoder is not at .*keep the folder together"):
        load_diffusion(folder)


def test_a_first_stage_that_is_gone_or_another_is_refused(second, first, tmp_path: Path) -> None:
    path = second()
    first.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"is not at .*--first-stage PATH"):
        write(path, tmp_path / "model")
    other = saved(tmp_path / "other", "autoencoder", {}, autoencoder=AUTOENCODER)
    with pytest.raises(InputError, match="was trained on the first stage"):
        write(path, tmp_path / "model", first_stage=str(other))
    assert not (tmp_path / "model").exists()
    write(path, tmp_path / "model", first_stage=str(tmp_path / "moved"))


def test_damage_is_found(second, tmp_path: Path) -> None:
    write(second(), tmp_path / "model")
    file = tmp_path / "model/checkpoints/last/ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"ema\.safetensors: sha256"):
        load_diffusion(tmp_path / "model")
    listed = json.loads((tmp_path / "model/checkpoints/last/manifest.json").read_text())["files"]
    assert set(listed) == {"config.yaml", "ema.safetensors", "model.safetensors"}


def test_other_weights_under_the_same_manifest_are_another_model(second, tmp_path: Path) -> None:
    path = second()
    write(path, tmp_path / "model")
    for place in (tmp_path / "model/checkpoints/last", tmp_path / "model/first_stage"):
        whole = store.read_manifest(place)
        store.save(
            tmp_path / "forged",
            kind=whole.kind,
            model=store.load_weights(place, "model"),
            ema={name: value * 0 for name, value in store.load_weights(place, "ema").items()},
            config=store.load_config(place),
            counters=whole.counters,
            extra=whole.extra,
        )
        assert store.digest(tmp_path / "forged") != whole.digest
