"""A training run from a cache: what it must share with it, and the conditioner without its frozen text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import first_stage_record
from latentdiff.conditioning.cached_text import CachedText
from latentdiff.conditioning.compose import Composite
from latentdiff.conditioning.hf_text import HfText
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config import allowlist
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.cached import EMPTY_TEXT, CachedReaders, CacheManifest, load_text, read_manifest
from latentdiff.data.shard_files import sha256_of

FROZEN = (OpenClipText, HfText)
"""Text encoders whose answers can be cached: they are not trained."""
_AGAIN = "make a cache for it with latentdiff cache"


@dataclass(frozen=True)
class Cache:
    """A cache that a run is to train from."""

    folder: Path
    manifest: CacheManifest

    def check(self, cfg: DictConfig, path: Path, statistics: Statistics | None) -> None:
        """Raises InputError where the first stage at ``path``, the size of the images or the text encoder is another
        than the cache was made with."""
        made, wanted = self.manifest.first_stage["hash"], first_stage_record(path, statistics)["hash"]
        self._same("first_stage.checkpoint", "the latents of the first stage", made[:12], wanted[:12])
        self._same("data.size", "images of size", self.manifest.image_size, cfg.data.size)
        if (encoder := frozen_encoder(cfg)) is not None:
            made, wanted = self.manifest.text, identity(encoder)
            differing = [key for key in {**(made or {}), **wanted} if (made or {}).get(key) != wanted.get(key)]
            for key in differing[:1]:
                self._same(f"conditioner.module.{key}", f"text with {key}", made and made.get(key), wanted.get(key))
        if cfg.data.module.get("flip") and not self.manifest.mirrored:
            raise InputError(
                f"data.flip: '{self.folder}' has no mirrored copies; make it with data.flip=true, or set false"
            )

    def _same(self, key: str, what: str, made: object, wanted: object) -> None:
        if made != wanted:
            raise InputError(f"{key}: the cache '{self.folder}' holds {what} {made!r}, expected {wanted!r}; {_AGAIN}")

    def conditioner(self, node: DictConfig | Mapping) -> nn.Module:
        """The conditioner of a node with ``CachedText`` in the place of its frozen text encoder."""
        node = _plain(node)
        kind = allowlist.resolve(node["_target_"])
        if kind in FROZEN:
            empty = load_text((self.folder / EMPTY_TEXT).read_bytes())
            return CachedText(empty=empty, **{key: node[key] for key in ("drop",) if key in node})
        if kind is Composite:
            parts = {name: self.conditioner(part) for name, part in node.pop("parts").items()}
            return build(node, inject={"parts": parts})
        return build(node)

    def build_task(self, task: DictConfig, inject: Mapping[str, object]) -> nn.Module:
        """The task without a frozen text encoder; weights are drawn in the order that ``build`` draws them in."""
        node = _plain(task)
        made = {"denoiser": build, "conditioner": self.conditioner}
        parts = {name: make(node.pop(name)) for name, make in made.items() if name in node}
        return build(node, inject={**inject, **parts})


def opened(cfg: DictConfig) -> Cache | None:
    """The cache that ``data`` names, None where it names images. Lets ``first_stage.checkpoint=auto`` stand for the
    first stage of the cache.

    Raises InputError for a stage that needs images.
    """
    readers = cfg.data.module.get("readers")
    if readers is None or allowlist.resolve(readers._target_) is not CachedReaders:
        return None
    if cfg.first_stage is None:
        raise InputError("data: a first stage is trained on images, not on cached latents; choose data=webdataset")
    refuse_conditions(cfg)
    manifest = read_manifest(cfg.data.train)
    if cfg.first_stage.checkpoint == "auto":
        if not Path(manifest.first_stage["path"]).exists():
            raise InputError(
                f"first_stage.checkpoint: that of the cache is no longer at '{manifest.first_stage['path']}'; name its "
                "present place with first_stage.checkpoint=PATH"
            )
        cfg.first_stage.checkpoint = manifest.first_stage["path"]
    return Cache(Path(cfg.data.train), manifest)


def refuse_conditions(cfg: DictConfig) -> None:
    """InputError where the conditioner reads more of an image than its latent."""
    conditions = (cfg.get("conditioner") or {}).get("conditions")
    if conditions:
        raise InputError(
            f"conditioner.conditions: {', '.join(conditions)} are made from the images, which a cache does not hold; "
            "train with data=webdataset or data=shapes"
        )


def frozen_encoder(cfg: DictConfig) -> dict[str, Any] | None:
    """The node of the conditioner's frozen text encoder. Raises InputError where there are several."""
    conditioner = cfg.get("conditioner")
    if conditioner is None:
        return None
    node = _plain(conditioner.module)
    nodes = node.get("parts", {}).values() if allowlist.resolve(node["_target_"]) is Composite else [node]
    found = [each for each in nodes if allowlist.resolve(each["_target_"]) in FROZEN]
    if len(found) > 1:
        raise InputError(f"conditioner.parts: a cache holds the text of one frozen encoder, there are {len(found)}")
    return found[0] if found else None


def identity(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an encoder's answers: its settings, with the sha256 of files and folders for their paths."""
    return {key: _identified(value) for key, value in encoder.items() if key != "drop" and value is not None}


def _identified(value: object) -> object:
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.exists():
        return value
    if path.is_file():
        return f"sha256:{sha256_of(path)}"
    files = sorted(each for each in path.rglob("*") if each.is_file())
    listed = "\n".join(f"{each.relative_to(path)} {sha256_of(each)}" for each in files)
    return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"


def _plain(node: DictConfig | Mapping) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
