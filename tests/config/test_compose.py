from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentdiff.config.compose import compose
from latentdiff.config.sweeps import expand_sweeps


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("max_batchs=3", "max_batchs", "did you mean max_batches"),
        ("data.siz=3", "data.siz", "did you mean data.size"),
        ("stepz=3", "stepz", "did you mean sampler.steps"),
        ("datta=shapes", "datta", "did you mean data"),
        ("samplr/fast=heun", "samplr/fast", "no configuration group"),
        ("experiment=tinny", "experiment", "did you mean tiny.*available: broken, dangling, mistyped, tiny"),
        ("sampler=fast/huen", "sampler", "did you mean fast/heun"),
        ("sampler=[ddim,eular]", "sampler", "did you mean euler"),
        ("sampler=5", "sampler", "available: ddim, euler, fast/heun"),
        ("max_batches=ture", "max_batches", r"expected int, got 'ture' \(str\)"),
        ("max_batches=1.5", "max_batches", "expected int, got '1.5'"),
        ("max_batches=true", "max_batches", "expected int"),
        ("max_batches=null", "max_batches", "expected a value, got null"),
        ("+seed=3", "seed", "exists already"),
        ("~nothing", "nothing", "no such key to be removed"),
        ("seed=1,2", "seed", "add -m"),
        ("seed=(1", "seed", "cannot read"),
        ("seed", "", "settings are written key=value"),
        ("euler", "", r"did you mean sampler=euler\?"),
        ("sampler=", "sampler", "choose one"),
        ("sampler=null", "sampler", "choose one\n  available: ddim, euler"),
        ("experiment=typo", "max_batchs", r"typo\.yaml\); did you mean max_batches"),
        ("experiment=mistyped", "max_batches", r"expected int, got 'ture' \(str\) \(in .*mistyped\.yaml"),
        ("experiment=wrong_group", "sampler", r"wrong_group\.yaml\); did you mean euler"),
        ("experiment=broken", "", r"broken\.yaml"),
    ],
)
def test_each_fault_is_named(configs: Path, override: str, key: str, message: str) -> None:
    _, faults = compose(configs, "train", [override])
    assert [fault.key for fault in faults] == [key]
    assert re.search(message, faults[0].message, re.DOTALL), faults[0]


def test_all_faults_of_a_command_come_at_once_and_the_rest_is_composed(configs: Path) -> None:
    line = ["max_batchs=3", "seed=x", "data.siz=1", "global_batch=8", "experiment=tiny", "foo=(", "seed=1,2"]
    cfg, faults = compose(configs, "train", line)
    assert sorted(fault.key for fault in faults) == ["data.siz", "foo", "max_batchs", "seed", "seed"]
    assert (cfg.global_batch, cfg.max_batches, "hydra" in cfg) == (8, 7, False)


def test_a_faultless_command_composes(configs: Path) -> None:
    cfg, faults = compose(configs, "train", ["sampler=fast/heun", "+data.more=1", "~trainer"])
    assert (faults, cfg.sampler.steps, cfg.data.more) == ([], 2, 1)


def test_a_sweep_is_expanded_to_lines_that_name_every_value_once(configs: Path) -> None:
    lines = expand_sweeps(configs, ["seed=1,2,3", "sampler=ddim,euler", "data.size=8", "+x=interval(0,1)"])
    assert lines == [
        ["seed=1", "sampler=ddim", "data.size=8"],
        ["seed=2", "sampler=ddim", "data.size=8"],
        ["seed=3", "sampler=ddim", "data.size=8"],
        ["seed=1", "sampler=euler", "data.size=8"],
    ]
