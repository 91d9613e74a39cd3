"""latentdiff cache, and train.py from what it writes: the same losses as from the images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentdiff.app import cli
from latentdiff.app.data import cache_work
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_diffusion
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.data.shards import open_shards, write_shards

STEPS = 20
CLIP = "latentdiff-cache-tiny"


def clip_settings(folder: Path) -> tuple[str, ...]:
    """A small random CLIP, its weights in a file."""
    import open_clip

    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    (folder / "config").mkdir()
    (folder / "config" / f"{CLIP}.json").write_text(
        json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(folder / "config")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(CLIP).state_dict(), folder / "weights.pt")
    return (
        "experiment=ldm_txt2img",
        "conditioner=open_clip_text_pooled",
        "conditioner.width=16",
        "conditioner.vector=8",
        f"conditioner.module.model={CLIP}",
        f"conditioner.module.weights={folder / 'weights.pt'}",
        f"+conditioner.module.model_config={folder / 'config'}",
    )


@pytest.fixture(scope="module")
def settings(programs, autoencoder, tmp_path_factory) -> Callable[[str], tuple[str, ...]]:
    """Kind of condition -> the command line of a training on images."""
    clip = clip_settings(tmp_path_factory.mktemp("clip"))
    kinds = {"trained text": programs.stage_two, "class": ("experiment=ldm_class", *programs.conditioned)}
    kinds["frozen text"] = (*programs.conditioned, *clip)
    more = (f"max_batches={STEPS}", f"validate_every={STEPS}", f"first_stage.checkpoint={autoencoder}")
    return lambda kind: (*kinds[kind], "diffusion=rectified_flow", *more)


@pytest.fixture(scope="module")
def made(programs, settings, tmp_path_factory) -> Callable[..., Path]:
    """Makes a cache for a kind of condition."""

    def make(kind: str, *options: str) -> Path:
        dest = tmp_path_factory.mktemp("cache") / "cache"
        assert cli.main(["cache", str(dest), *programs._merged(*settings(kind), *flips(options)), *options]) == 0
        return dest

    return make


@pytest.fixture(scope="module")
def clip_cache(made) -> Path:
    return made("frozen text")


def flips(options: tuple[str, ...]) -> tuple[str, ...]:
    return () if options else ("+data.module.flip=true",)


def from_cache(cache: Path, *, flip: bool = True) -> tuple[str, ...]:
    return ("data=cached", f"data.train={cache}", f"data.flip={str(flip).lower()}", "first_stage.checkpoint=auto")


def losses(metrics, run_dir: Path) -> list[float]:
    return [value for line in metrics(run_dir) for name, value in line.items() if name in ("train/loss", "val/loss")]


def train_cached(programs, settings: tuple[str, ...], *more: str) -> None:
    kept = [line for line in programs._merged(*settings, *more) if not line.startswith("data.module.source.")]
    programs.done("train", *kept)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("trained text", "class")]


@pytest.mark.parametrize("kind", ["frozen text", *SLOW])
def test_cached_and_online_training_agree(programs, settings, made, clip_cache, metrics, tmp_path, kind) -> None:
    """The posterior and the mirroring are drawn anew for each batch, by the same draws."""
    programs.done("train", *settings(kind), "+data.module.flip=true", f"run_dir={tmp_path / 'online'}")
    cache = clip_cache if kind == "frozen text" else made(kind)
    train_cached(programs, settings(kind), *from_cache(cache), f"run_dir={tmp_path / 'cached'}")
    online, cached = (losses(metrics, tmp_path / name) for name in ("online", "cached"))
    assert len(online) == STEPS + 1
    assert cached == pytest.approx(online, rel=1e-3)
    assert len(list((tmp_path / "cached" / "samples").iterdir())) == 1
    one, two = (store.resolve(tmp_path / name, prefer=("last",)) for name in ("online", "cached"))
    assert store.load_weights(one).keys() == store.load_weights(two).keys()
    assert store.read_manifest(one).first_stage == store.read_manifest(two).first_stage


@pytest.mark.slow
def test_half_precision_is_near(programs, settings, made, metrics, tmp_path) -> None:
    programs.done("train", *settings("class"), f"run_dir={tmp_path / 'online'}")
    cache = made("class", "--dtype", "float16")
    train_cached(programs, settings("class"), *from_cache(cache, flip=False), f"run_dir={tmp_path / 'cached'}")
    online, cached = (losses(metrics, tmp_path / name) for name in ("online", "cached"))
    assert cached != online
    assert cached == pytest.approx(online, rel=1e-2)


def test_a_model_trained_from_a_cache_is_whole(programs, settings, clip_cache, monkeypatch, tmp_path) -> None:
    """Training never loads the text encoder; sample.py does."""
    run = (*from_cache(clip_cache), f"run_dir={tmp_path}")
    with monkeypatch.context() as patch:
        patch.setattr("latentdiff.conditioning.open_clip_text.load_open_clip", None)
        train_cached(programs, settings("frozen text"), *run, "max_batches=2")
        train_cached(programs, settings("frozen text"), *run, "max_batches=4")
    assert isinstance(load_diffusion(tmp_path).conditioner, OpenClipText)
    programs.done("sample", *programs.use, f"checkpoint={tmp_path}", "prompt=a ring", f"run_dir={tmp_path / 's'}")
    refused = programs("evaluate", *programs.use, f"checkpoint={tmp_path}", f"run_dir={tmp_path / 'e'}")
    assert refused.code == 2
    assert "cached latents have no images" in refused.err


@pytest.mark.slow
def test_resuming_goes_on_exactly(programs, settings, clip_cache, metrics, tmp_path) -> None:
    command = (*from_cache(clip_cache), "data.workers=2", "optim=adamw", "optim.lr=1.0e-3")
    for name, stops in (("whole", [6]), ("parts", [4, 6])):
        for stop in stops:
            more = (f"max_batches={stop}", "validate_every=2", f"run_dir={tmp_path / name}")
            train_cached(programs, settings("frozen text"), *command, *more)
    assert losses(metrics, tmp_path / "whole") == losses(metrics, tmp_path / "parts")


FOREIGN = {
    "first stage": (["first_stage.checkpoint={other}"], "first_stage.checkpoint: the cache .* holds the latents of"),
    "size": (["data.size=32"], "data.size: .* holds images of size 16, expected 32"),
    "weights": (["conditioner.module.weights={weights}"], "conditioner.module.weights: .*'sha256:.*'sha256:"),
    "encoder": (["conditioner=hf_bert"], "conditioner.module._target_: .*OpenClipText.*expected .*HfText"),
    "pixels": (["experiment=ldm_inpaint", "conditioner=text_inpaint_tiny"], "mask are made from the images"),
    "stage one": (["experiment=ae_kl"], "a first stage is trained on images"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_cache_is_refused(programs, settings, place, clip_cache, tmp_path, what: str) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"others")
    changes, message = FOREIGN[what]
    places = {"other": place.home / "other", "weights": weights}
    base = programs.stage_one if what == "stage one" else settings("frozen text")
    changes = [change.format(**places) for change in changes]
    if what in ("encoder", "pixels"):
        base = [line for line in base if "conditioner" not in line and "experiment" not in line]
        changes = [*changes, *(["experiment=ldm_txt2img"] if what == "encoder" else [])]
    cached = [line for line in from_cache(clip_cache) if what != "stage one" or "first_stage" not in line]
    given = programs._merged(*base, *cached, f"run_dir={tmp_path / 'run'}", *changes)
    outcome = programs("train", *(line for line in given if not line.startswith("data.module.source.")))
    assert outcome.code == 2, outcome
    assert re.search(message, outcome.err), outcome.err
    assert not list((tmp_path / "run").glob("*"))


def test_a_stale_cache_is_refused(programs, settings, clip_cache, tmp_path) -> None:
    shutil.copytree(clip_cache, tmp_path / "stale")
    samples = open_shards(tmp_path / "stale" / "train")
    write_shards([{"latent.npy": samples.read(0, "latent.npy")}], tmp_path / "new")
    shutil.rmtree(tmp_path / "stale" / "train")
    (tmp_path / "new").rename(tmp_path / "stale" / "train")
    given = programs._merged(*settings("frozen text"), *from_cache(tmp_path / "stale"))
    outcome = programs("train", *(line for line in given if not line.startswith("data.module.source.")))
    assert outcome.code == 2
    assert "is stale: the shards of 'train'" in outcome.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_cache_goes_on(programs, settings, clip_cache, monkeypatch, tmp_path, capsys) -> None:
    """Behind the last complete shard; the result is the same, byte by byte."""
    dest, written = tmp_path / "cache", []
    command = ["cache", str(dest), *programs._merged(*settings("frozen text"), *flips(()))]
    real = cache_work.write_shard

    def interrupted(folder: Path, number: int, samples):
        written.append(folder)
        if len(written) == 2:
            next(iter(samples))
            raise KeyboardInterrupt
        return real(folder, number, samples)

    monkeypatch.setattr(cache_work, "write_shard", interrupted)
    assert cli.main(command) == 130
    assert not dest.exists()
    assert cli.main([*command, "--dtype", "float16"]) == 2
    assert "an interrupted command that differs in dtype" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert len(written) == 3
    assert contents(dest) == contents(clip_cache)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert cli.main(command) == 2
    assert "exists already and is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_what_one_writes(programs, settings, clip_cache, tmp_path) -> None:
    program = "import sys; from latentdiff.app.cli import main; sys.exit(main())"
    given = programs._merged(*settings("frozen text"), *flips(()))
    command = [sys.executable, "-c", program, "cache", str(tmp_path / "cache"), *given]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}
    processes = [
        subprocess.Popen(command, env={**programs.environment, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=250) for process in processes] == [0, 0]
    assert contents(tmp_path / "cache") == contents(clip_cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["first_stage.checkpoint=auto"], "name the first stage that is to encode"),
        (["conditioner=text_inpaint_tiny"], "mask are made from the images"),
        (["experiment=ae_kl", "first_stage.checkpoint="], "only the second stage is trained on latents"),
        (["max_batchs=3"], "max_batchs"),
    ],
)
def test_what_cannot_be_cached_is_refused(programs, settings, capsys, tmp_path, changes, message) -> None:
    base = programs.stage_one if "experiment=ae_kl" in changes else settings("class")
    given = [line for line in programs._merged(*base, *changes) if not line.endswith("checkpoint=")]
    assert cli.main(["cache", str(tmp_path / "cache"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
