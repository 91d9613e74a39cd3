"""A trained model as one folder: averaged weights, first stage and local text encoders, without its training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from latentdiff import durable
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.saving import save_first_stage
from latentdiff.checkpoint.foreign.text import open_clip
from latentdiff.checkpoint.foreign.text.architecture import of_conditioner
from latentdiff.checkpoint.manifest import EXPORTED, WEIGHTS
from latentdiff.checkpoint.models import (
    first_stage_place,
    load_classifier,
    load_codec,
    load_diffusion,
    recorded_statistics,
)
from latentdiff.checkpoint.places import CHECKPOINT, FIRST_STAGE, HERE, ROOT, TEXT_ENCODER, moved
from latentdiff.conditioning.hf_text import HfText
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config import allowlist
from latentdiff.config.instantiate import build, load_config

OF_THE_RUN = ("run_dir", "paths", "logger", "callbacks", "first_stage", "init_backbone", "resume")
"""Keys of a run's configuration that say where it ran, and nothing of the model."""
STATISTICS = ("latent_mean", "latent_std")
"""All that a first stage's trained weights have and its averaged ones have not."""

_LOADED = {"diffusion": load_diffusion, "autoencoder": load_codec, "classifier": load_classifier}


ABOUT = "about"
"""Key of ``extra``: what its publisher knows of it beside the checkpoint, JSON-ready."""


def fill(
    checkpoint: str | Path,
    folder: Path,
    *,
    first_stage: str | None = None,
    with_text_encoder: bool = False,
    about: Mapping[str, object] | None = None,
) -> list[str]:
    """Fills the empty ``folder``, which then stands for ``checkpoint`` wherever one is named; returns what its reader
    should know.

    ``checkpoints/last`` holds the averaged weights, without training state; ``first_stage`` what they were trained on.
    Frozen text encoders that lie on this machine are put in as safetensors, those of a public name only
    ``with_text_encoder``: they are downloaded where the folder is used. ``first_stage``: its place, if it is not where
    training found it. ``about`` goes into its manifest.

    The folder is loaded at the end. Raises InputError where ``checkpoint`` or a part of it is missing or damaged.
    """
    path = store.resolve(checkpoint, prefer=("last", "best"))
    manifest = store.verify(path)
    config, record = OmegaConf.to_container(load_config(path / store.CONFIG)), manifest.first_stage
    if record is not None:
        where = first_stage_place(path, manifest, first_stage)
        _write_first_stage(where, record, folder / FIRST_STAGE, config)
        record = record | {"path": f"{HERE}/{FIRST_STAGE}"}
    node = (config.get("task") or {}).get("conditioner")
    if node is not None and manifest.kind == "diffusion":
        node = _with_encoders(moved(node, manifest, path), folder, path, include_named=with_text_encoder)
        config["task"]["conditioner"] = node
        config["conditioner"] = (config.get("conditioner") or {}) | {"module": node}
    _save(path, manifest, folder / CHECKPOINT, config, first_stage=record, about=about)
    _LOADED[manifest.kind](folder)
    return _notes(node or {})


def _write_first_stage(where: Path, record: Mapping[str, Any], place: Path, config: Mapping) -> None:
    if not foreign.recognises(where):
        _save(where, store.verify(where), place, OmegaConf.to_container(load_config(where / store.CONFIG)))
        return
    origin = {EXPORTED: {"digest": record["hash"]}, "imported_from": where.name}
    data = {"size": config["data"]["size"], "module": None, "metrics": {}}
    save_first_stage(foreign.read(where), recorded_statistics(record), place, data=data, extra=origin)


def _save(
    path: Path,
    manifest: store.Manifest,
    place: Path,
    config: dict,
    *,
    first_stage: dict | None = None,
    about: Mapping[str, object] | None = None,
) -> None:
    """The checkpoint at ``path`` with what generation needs of it alone, known by the same digest."""
    trained = store.load_weights(path, "model")
    extra = manifest.extra | {EXPORTED: manifest.origin, ROOT: HERE} | ({ABOUT: dict(about)} if about else {})
    if "imported_from" in extra:
        extra["imported_from"] = Path(extra["imported_from"]).name
    store.save(
        place,
        kind=manifest.kind,
        model={name: trained[name] for name in STATISTICS if name in trained},
        ema=path / WEIGHTS["ema"],
        config=OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in config.items() if k not in OF_THE_RUN})),
        counters=manifest.counters,
        first_stage=first_stage,
        latent=manifest.latent,
        data=manifest.data,
        extra=extra,
    )


def _with_encoders(node: dict, root: Path, path: Path, *, include_named: bool, name: str = TEXT_ENCODER) -> dict:
    """The conditioner's node with the encoders that are put into the folder ``root`` named as there."""
    if "parts" in node:
        parts = {
            part: _with_encoders(each, root, path, include_named=include_named, name=f"{TEXT_ENCODER}_{part}")
            for part, each in node["parts"].items()
        }
        return node | {"parts": parts}
    kind = allowlist.resolve(node["_target_"])
    if kind is OpenClipText and (include_named or Path(node["weights"]).exists()):
        with durable.new_directory(root / name) as folder:
            model = open_clip.write(of_conditioner(build(node), path), folder)
        weights = f"{HERE}/{name}/{open_clip.WEIGHTS}"
        return node | {"model": model, "weights": weights, "model_config": f"{HERE}/{name}"}
    if kind is HfText and (include_named or Path(node["model"]).expanduser().is_dir()):
        with durable.new_directory(root / name) as folder:
            build(node).save(folder)
        return {key: value for key, value in node.items() if key != "tokenizer"} | {"model": f"{HERE}/{name}"}
    return node


def _notes(conditioner: Mapping) -> list[str]:
    notes = []
    for node in conditioner.get("parts", {"": conditioner}).values():
        named = {OpenClipText: "weights", HfText: "model"}.get(_kind(node))
        if named is not None and not str(node[named]).startswith(f"{HERE}/"):
            notes.append(
                f"its text encoder '{node['model']}' is no part of the folder: it is downloaded where that is used "
                "(--with-text-encoder puts it in)"
            )
    return notes


def _kind(node: Mapping) -> object:
    return allowlist.resolve(node["_target_"]) if "_target_" in node else None
