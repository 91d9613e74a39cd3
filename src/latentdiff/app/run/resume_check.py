"""What a resumed run must share with its checkpoint, and what it may change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from latentdiff.app.processes import say
from latentdiff.app.run.preflight import kind_of
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config
from latentdiff.data.datamodule import DataModule
from latentdiff.diffusion.timesteps import Curriculum

ARCHITECTURE = (
    "autoencoder",
    "backbone",
    "diffusion.path",
    "diffusion.parameterization",
    "conditioner",
    "latent",
    "task.power_ema",
    "reconstruction.learn_logvar",
    "reconstruction.perceptual._target_",
    "adversarial.discriminator",
    "adversarial.lecam._target_",
    "optim.optimizer._target_",
    "optim.optimizer.adamw",
    "adversarial.optimizer._target_",
    "adversarial.optimizer.adamw",
)
"""Parts of the configuration that a resumed run must share with its checkpoint: what has weights or a state, and which
weights an optimiser moves how (Muon's ``adamw``). The law of t and the weighting may change, as the optimisers'
settings may."""

ORDER = ("seed", "global_batch", "data.module")
"""Parts that decide which samples a batch holds and what is made of them."""

PLACES = ("num_workers", "max_batches", "val_batch", "max_broken", "damaged", "root", "train", "val", "cache", "name")
"""Entries of ``data.module``, and what is below them, that do not. Whether the training samples are the same, their
fingerprint says."""

OF_THIS_RUN = (
    "run_dir",
    "print_config",
    "resume",
    "resume_with_changed_data",
    "paths",
    "first_stage",
    "init_backbone",
)
"""Root keys of which nothing needs to be said when they differ."""


def check_kind(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses a checkpoint of another kind, and one that was saved for use alone."""
    manifest = store.read_manifest(checkpoint, expect_kind=kind_of(cfg))
    if store.TRAIN_STATE not in manifest.files:
        raise InputError(
            f"'{checkpoint}' was saved without training state and cannot be resumed; resume from a checkpoint that "
            "training wrote, or start a new run from its weights with init_backbone=PATH"
        )


def check_config(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses a checkpoint of another architecture or kind of optimiser, or of another order of the samples unless
    ``resume_with_changed_data`` is set, naming each key that differs; says what else has changed."""
    saved = load_config(checkpoint / store.CONFIG)
    if differing := [_shown(*each) for each in _changed(saved, cfg, ARCHITECTURE)]:
        raise InputError(
            f"'{checkpoint}' cannot be resumed with another architecture or optimiser; start in a new run_dir, or set "
            "back\n  " + "\n  ".join(differing)
        )
    _refuse_data(cfg, checkpoint, _changed_order(saved, cfg))
    laws = [OmegaConf.select(each, "task.loss.timesteps") for each in (cfg, saved)]
    if None not in laws:
        _check_curriculum(*map(build, laws), checkpoint)
    for key in _own_keys(cfg):
        old, new = OmegaConf.select(saved, key), OmegaConf.select(cfg, key)
        if old != new and not key.startswith(ORDER):
            say(f"resuming with {key}: {old!r} -> {new!r}")


def position(data: DataModule) -> dict:
    """What a checkpoint says of the data, beside the number of batches and its configuration."""
    return {"fingerprint": data.fingerprint()}


def check_data(cfg: DictConfig, checkpoint: Path, now: dict) -> None:
    """Refuses other training samples under the same name, unless ``resume_with_changed_data`` is set."""
    before = store.read_manifest(checkpoint).data
    if before is not None and before["fingerprint"] != now["fingerprint"]:
        old, new = (each["fingerprint"][:12] for each in (before, now))
        _refuse_data(cfg, checkpoint, [f"training samples: fingerprint {old} in the checkpoint, {new} now"])


def _refuse_data(cfg: DictConfig, checkpoint: Path, differing: list[str]) -> None:
    if not differing:
        return
    listed = "\n  ".join(differing)
    if not cfg.resume_with_changed_data:
        raise InputError(
            f"'{checkpoint}' cannot go on with the samples in the same order; set back what has changed, start in a "
            f"new run_dir, or go on with other samples by resume_with_changed_data=true\n  {listed}"
        )
    say(f"resuming with changed data:\n  {listed}")


def _check_curriculum(now: object, before: object, checkpoint: Path) -> None:
    """A resumed run does not go back to the first law, which a larger ``max_batches`` may have made longer."""
    if isinstance(now, Curriculum) and isinstance(before, Curriculum):
        seen = store.read_manifest(checkpoint).counters["batches_seen"]
        if before.batches <= seen < now.batches:
            raise InputError(
                f"diffusion.timesteps: '{checkpoint}' left the curriculum's first law after {before.batches} batches, "
                f"now it would rule {now.batches}; set diffusion.timesteps.batches={before.batches}"
            )


def _changed(saved: DictConfig, cfg: DictConfig, parts: tuple[str, ...]) -> Iterator[tuple[str, object, object]]:
    for part in parts:
        yield from _differences(OmegaConf.select(saved, part), OmegaConf.select(cfg, part), part)


def _differences(old: object, new: object, key: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, DictConfig) and isinstance(new, DictConfig):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield key, old, new


def _changed_order(saved: DictConfig, cfg: DictConfig) -> list[str]:
    """The module of the data repeats the seed and the batch size of the root: what has changed is listed once."""
    found: dict[tuple[str, str, str], str] = {}
    for key, old, new in _changed(saved, cfg, ORDER):
        name = key.rpartition(".")[2]
        if not (key.startswith("data.module.") and set(key.split(".")[2:]) & set(PLACES)):
            found.setdefault((name, repr(old), repr(new)), _shown(key, old, new))
    return list(found.values())


def _shown(key: str, old: object, new: object) -> str:
    return f"{key}: {old!r} in the checkpoint, {new!r} now"


def _own_keys(node: DictConfig, above: str = "") -> Iterator[str]:
    """The dotted keys of plain values, without those that only refer to another key."""
    for name in node:
        if (not above and name in OF_THIS_RUN) or OmegaConf.is_interpolation(node, name):
            continue
        if OmegaConf.is_missing(node, name):
            continue
        if isinstance(value := node[name], DictConfig):
            yield from _own_keys(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"
