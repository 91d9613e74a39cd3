"""Nested results combined over several evaluations."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
from omegaconf import OmegaConf

from latentdiff.app.evaluation.diffusers_pipeline import DiffusersPipeline
from latentdiff.app.evaluation.repeats import check_repeats, over
from latentdiff.app.evaluation.subject import Subject
from latentdiff.config.errors import InputError
from latentdiff.evaluation.given_images import GivenImages

EACH = [
    {"frechet": {"fd": 1.0}, "latents": {"mean": [0.0, 2.0], "name": "vq"}, "count": 5, "only_here": 1.0},
    {"frechet": {"fd": 3.0}, "latents": {"mean": [1.0, 4.0], "name": "vq"}, "count": 5},
]


def test_numbers_are_combined_where_all_have_them() -> None:
    assert over(EACH, fmean) == {"frechet": {"fd": 2.0}, "latents": {"mean": [0.5, 3.0]}, "count": 5}
    assert over(EACH, min)["latents"] == {"mean": [0.0, 2.0]}
    assert over(EACH, stdev)["frechet"] == {"fd": 2**0.5}


def test_lists_of_several_lengths_and_texts_are_left_out() -> None:
    assert over([{"a": [1.0], "b": "x", "c": True}, {"a": [1.0, 2.0], "b": "y", "c": True}], fmean) == {}


def test_what_no_seed_changes_is_not_repeated() -> None:
    cfg, given = OmegaConf.create({"repeats": 2}), GivenImages.__new__(GivenImages)
    own = {"identity": {}, "name": "x", "data": None, "config": None, "given": (16, 16)}
    with pytest.raises(InputError, match="nothing here depends on a seed"):
        check_repeats(cfg, Subject(generate=given, **own))
    check_repeats(cfg, Subject(generate=DiffusersPipeline.__new__(DiffusersPipeline), **own))
