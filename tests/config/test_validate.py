from __future__ import annotations

import collections.abc
import re
import typing
from typing import Any, Literal, Protocol

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff import types as parts
from latentdiff.config.annotations import Part, fits
from latentdiff.config.validate import validate

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


def faults(tree: dict, **known: Any) -> dict[str, str]:
    return {fault.key: fault.message for fault in validate(OmegaConf.create(tree), **known)}


@pytest.mark.parametrize(
    ("tree", "key", "message"),
    [
        ({"a": {**LINEAR, "in_featurs": 1}}, "a.in_featurs", "did you mean in_features"),
        ({"a": {**LINEAR, "zzz": 1}}, "a.zzz", "it takes in_features, out_features"),
        ({"a": {"_target_": "torch.nn.Linear", "in_features": 2}}, "a.out_features", "needs it"),
        ({"a": {**LINEAR, "in_features": 2.5}}, "a.in_features", r"expected int, got 2.5 \(float\)"),
        ({"a": {**LINEAR, "in_features": True}}, "a.in_features", "expected int, got True"),
        ({"a": {**LINEAR, "in_features": "4"}}, "a.in_features", "expected int, got '4'"),
        ({"a": {**LINEAR, "in_features": None}}, "a.in_features", "got null"),
        ({"a": {**LINEAR, "bias": "ture"}}, "a.bias", r"expected bool, got 'ture' \(str\)"),
        ({"a": {"_target_": "torch.nn.Dropout", "p": "high"}}, "a.p", "expected float"),
        ({"a": {**LINEAR, "in_features": LINEAR}}, "a.in_features", "got the part torch.nn.Linear"),
        ({"a": {**LINEAR, "in_features": [1]}}, "a.in_features", "expected int"),
        ({"a": {**LINEAR, "in_features": {"b": 1}}}, "a.in_features", "a mapping without _target_"),
        ({"a": {"_target_": "torch.nn.Linaer"}}, "a._target_", "did you mean Linear"),
        ({"a": {"_target_": "torch.nnn.Linear"}}, "a._target_", "may not be built"),
        ({"a": {"_target_": "torch.load", "f": "x"}}, "a._target_", "may not be built"),
        ({"a": {"_target_": 3}}, "a._target_", "module.Name"),
        ({"a": {**LINEAR, "_args_": [1]}}, "a._args_", "takes no '_args_'"),
        ({"a": {**LINEAR, "_partial_": "yes"}}, "a._partial_", "expected true or false"),
        ({"a": {"b": "???"}}, "a.b", "set it with a.b=VALUE"),
        ({"a": "${b.c}"}, "a", r"'\$\{b.c\}' cannot be resolved"),
        ({"a": {**LINEAR, "in_features": "${gone}"}}, "a.in_features", "cannot be resolved"),
        ({"a": ["${oc.nothing:1}"]}, "a.0", "cannot be resolved"),
        ({"a": [{"b": {**LINEAR, "bias": 1}}]}, "a.0.b.bias", "expected bool, got 1"),
    ],
)
def test_each_fault_is_named_by_its_key(tree: dict, key: str, message: str) -> None:
    found = faults(tree)
    assert list(found) == [key]
    assert re.search(message, found[key]), found


@pytest.mark.parametrize(
    "tree",
    [
        {"a": LINEAR, "b": None, "c": [LINEAR], "d": {"e": 1.5}},
        {"a": {"_target_": "torch.nn.Dropout", "p": 1}},
        {"a": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1, "betas": [0.9, 0.99]}},
        {"rate": 0.1, "a": {"_target_": "torch.nn.Dropout", "p": "${rate}"}},
        {"a": {"_target_": "torch.nn.Linear", "in_features": 1, "_partial_": True}},
    ],
)
def test_what_is_right_passes(tree: dict) -> None:
    assert faults(tree) == {}


def test_all_faults_come_at_once() -> None:
    tree = {"a": {**LINEAR, "bias": "ture", "wat": 1}, "b": "???", "c": {"_target_": "torch.nn.Liner"}, "d": "${x}"}
    assert set(faults(tree)) == {"a.bias", "a.wat", "b", "c._target_", "d"}


def test_a_part_reached_by_interpolation_is_reported_where_it_stands() -> None:
    tree = {"part": {**LINEAR, "bias": "ture"}, "user": {"_target_": "torch.nn.Dropout", "p": "${part}"}}
    assert set(faults(tree)) == {"part.bias", "user.p"}


def test_injected_arguments_are_not_missed_and_not_configured() -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": 1}
    assert faults({"task": node}, injected={"task": ["out_features"]}) == {}
    assert faults({"c": {"x": node}}, injected={"c.*": ["out_features"]}) == {}
    found = faults({"task": LINEAR}, injected={"task": ["out_features"]})
    assert "put in by the program" in found["task.out_features"]


@pytest.mark.parametrize("value", [None, "auto", "???"])
def test_values_that_the_program_fills_are_stood_in_for(value: object) -> None:
    tree = {"latent": {"channels": value}, "a": {**LINEAR, "in_features": "${latent.channels}"}}
    assert faults(tree, runtime={"latent.channels": 4}) == {}
    assert "latent.channels" in str(faults(tree, runtime={})) or "a.in_features" in faults(tree)
    tree["latent"]["channels"] = "four"
    tree["b"] = {**LINEAR, "in_features": "${a.in_features}"}
    assert set(faults(tree, runtime={"latent.channels": 4})) == {"latent.channels"}  # once, where it was written


class Shaped(Protocol):
    def shape(self) -> int: ...


MODULE = Part("torch.nn.Linear", torch.nn.Linear, False)
DROPOUT = Part("torch.nn.Dropout", torch.nn.Dropout, False)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (1, int, True),
        (1, float, True),
        (1.0, int, False),
        (True, int, False),
        (True, float, False),
        (1, bool, False),
        ("a", str, True),
        (1, str, False),
        (None, int, False),
        (None, int | None, True),
        (None, typing.Optional[int], True),  # noqa: UP045
        ("a", int | str, True),
        (1.5, int | str, False),
        ([1, 2], list[int], True),
        ([1, 2.5], list[int], False),
        ([1, 2.5], collections.abc.Sequence[float], True),
        ("ab", collections.abc.Sequence[str], False),
        ([1, 2], tuple[int, int], True),
        ([1, 2, 3], tuple[int, int], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([1, "a"], tuple[int, ...], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, dict[str, int], False),
        ([], dict, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Any, True),
        (MODULE, Any, True),
        (MODULE, torch.nn.Module, True),
        (MODULE, torch.nn.Module | None, True),
        (DROPOUT, torch.nn.Linear, False),
        ("name", torch.nn.Module, False),
        ({"a": 1}, torch.nn.Module, False),
        (MODULE, parts.Path, False),
        (MODULE, parts.Backbone, True),
        (Part("x", torch.nn.Linear, True), collections.abc.Callable, True),
        ("x", collections.abc.Callable, False),
        ([MODULE], list[torch.nn.Module], True),
        ({"a": MODULE}, dict[str, torch.nn.Module], True),
        (MODULE, list[torch.nn.Module], False),
    ],
)
def test_values_against_annotations(value: object, wanted: Any, expected: bool) -> None:
    assert fits(value, wanted) is expected
