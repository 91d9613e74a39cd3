from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app.run.cached_run import Cache, frozen_encoder, identity
from latentdiff.conditioning.cached_text import CachedText
from latentdiff.conditioning.class_label import ClassVector
from latentdiff.config.errors import InputError
from latentdiff.data.cached import dump_text

HF = {"_target_": "latentdiff.conditioning.hf_text.HfText", "model": "owner/name", "drop": 0.2}
CLASS = {"_target_": "latentdiff.conditioning.class_label.ClassVector", "classes": 3, "width": 4, "drop": 0.1}


def composite(**parts) -> dict:
    return {"_target_": "latentdiff.conditioning.compose.Composite", "drop": 0.05, "parts": parts}


def config(module: dict):
    return OmegaConf.create({"conditioner": {"module": module}})


def test_an_encoder_is_its_settings_and_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "weights").write_bytes(b"weights")
    one, two = ({**HF, "model": str(tmp_path / name)} for name in ("one", "two"))
    assert identity(one) == identity({**two, "drop": 0.7, "tokenizer": None})
    assert identity(one)["model"].startswith("sha256:")
    (tmp_path / "two" / "sub" / "weights").write_bytes(b"Weights")
    assert identity(one) != identity(two)
    assert identity({**one, "block": 2}) != identity(one)
    assert identity(HF) == {"_target_": HF["_target_"], "model": "owner/name"}


def test_the_frozen_encoder_is_found(tmp_path: Path) -> None:
    assert frozen_encoder(config(HF)) == HF
    assert frozen_encoder(config(composite(kind=CLASS, words=HF))) == HF
    assert frozen_encoder(config(CLASS)) is None
    assert frozen_encoder(OmegaConf.create({"classifier": {}})) is None
    with pytest.raises(InputError, match="one frozen encoder, there are 2"):
        frozen_encoder(config(composite(a=HF, b=HF)))


def test_only_the_frozen_part_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty_text.npz").write_bytes(dump_text({"tokens": torch.zeros(2, 4)}))
    cache = Cache(tmp_path, None)
    made = cache.conditioner(composite(kind=CLASS, words=HF))
    assert {name: type(part) for name, part in made.members.items()} == {"kind": ClassVector, "words": CachedText}
    assert (made.together, made.members["words"].drop) == (0.05, 0.2)
    assert isinstance(cache.conditioner(CLASS), ClassVector)
