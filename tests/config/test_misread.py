"""Guesses at what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from latentdiff.app import schema
from latentdiff.config.compose import compose
from latentdiff.config.misread import ELSEWHERE, misread

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHOICES = {"experiment": ["ldm_txt2img", "paper/sd1"], "sampler": ["none", "ddim"], "guidance": ["none"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ldm_txt2img"], "did you mean experiment=ldm_txt2img?"),
        (["experiment", "=", "ldm_txt2img"], "cannot read 'experiment' '=' 'ldm_txt2img': "),
        (["experiment", "ldm_txt2imgg"], "did you mean experiment=ldm_txt2img?"),
        (["none"], "did you mean sampler=none or guidance=none?"),
        (["entirely_else"], "without spaces around the ="),
    ],
)
def test_a_word_alone_is_told_what_it_may_mean(words: list[str], message: str) -> None:
    fault = misread(words, CHOICES)
    assert message in str(fault)
    assert ("did you mean" in str(fault)) is (words != ["entirely_else"])


def test_the_keys_that_stand_for_others_names_exist() -> None:
    schema.register()
    lines = {"train": ["experiment=ldm_txt2img"], "sample": []}
    composed = [compose(CONFIGS, program, line)[0] for program, line in lines.items()]
    for name in {name for names in ELSEWHERE.values() for name in names}:
        owner, _, last = name.rpartition(".")
        nodes = [OmegaConf.select(cfg, owner) if owner else cfg for cfg in composed]
        assert any(node is not None and last in node for node in nodes), name
