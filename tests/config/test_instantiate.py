from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build, load_config

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


def test_nested_parts_are_built_with_plain_containers() -> None:
    tree = {"size": 4, "up": {"_target_": "torch.nn.Upsample", "size": ["${size}", 8]}}
    up = build(OmegaConf.create(tree).up)
    assert up.size == [4, 8]
    assert type(up.size) is list


def test_a_partial_node_becomes_a_factory() -> None:
    optimizer = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.25})
    assert optimizer(torch.nn.Linear(1, 1).parameters()).defaults["lr"] == 0.25


def test_injected_objects_arrive_as_they_are() -> None:
    parameters = list(torch.nn.Linear(2, 2).parameters())
    optimizer = build({"_target_": "torch.optim.SGD", "lr": 1.0}, inject={"params": parameters})
    assert optimizer.param_groups[0]["params"][0] is parameters[0]
    factory = build({"_target_": "torch.optim.SGD", "_partial_": True}, inject={"params": parameters})
    assert factory(lr=2.0).param_groups[0]["params"][1] is parameters[1]


def test_dicts_and_lists_of_parts() -> None:
    built = build({"a": LINEAR, "b": [LINEAR, None], "c": 3})
    assert built["a"].weight.shape == (3, 2)
    assert isinstance(built["b"], list)
    assert built["b"][1] is None
    assert built["c"] == 3


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch canary"},
        {"_target_": "torch.nn.ModuleList", "modules": [{"_target_": "os.getcwd"}]},
        {"part": {"deep": [{"_target_": "torch.hub.load"}]}},
        {**LINEAR, "_args_": [1]},
        {**LINEAR, "_recursive_": False},
        {**LINEAR, "in_features": "${oc.env:HOME}"},
        {"_target_": "${oc.env:HOME}"},
        None,
        "torch.nn.Linear",
    ],
)
def test_what_is_off_the_list_is_refused_before_anything_is_built(node: object) -> None:
    with pytest.raises(InputError):
        build(node)


def test_a_target_that_hides_behind_an_interpolation_is_refused() -> None:
    root = OmegaConf.create({"name": "os.getcwd", "part": {"_target_": "${name}"}})
    with pytest.raises(InputError, match=r"os\.getcwd"):
        build(root.part)


@pytest.mark.parametrize("nested", [False, True])
def test_a_constructor_that_objects_is_an_input_error(nested: bool) -> None:
    node = {"_target_": "torch.nn.Dropout", "p": 2.0}
    with pytest.raises(InputError, match="between 0 and 1"):
        build({"_target_": "torch.nn.ModuleList", "modules": [node]} if nested else node)


def test_a_nested_input_error_keeps_its_words_and_not_those_of_its_cause() -> None:
    """Here a missing vocabulary, which is an InputError raised from the library's own error."""
    node = {"_target_": "latentdiff.conditioning.hf_tokenizer.HfTokenizer", "model": "/no/such/folder", "max_length": 4}
    with pytest.raises(InputError) as alone:
        build(node)
    with pytest.raises(InputError) as nested:
        build({"_target_": "latentdiff.conditioning.compose.Composite", "parts": {"text": node}})
    assert str(alone.value).partition(": ")[2] in str(nested.value)


def test_a_stored_configuration_comes_back(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"lr": 1e-4, "names": ["a", "b"], "part": LINEAR, "none": None, "text": "5"})
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert isinstance(loaded, DictConfig)
    assert loaded == cfg
    assert build(loaded.part).in_features == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: ${oc.env:HOME}", "interpolations are not resolved"),
        ("a: {b: ['x ${oc.decode:1}']}", "a.b.0"),
        ("a: 1\nb: ${a}", "key b"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("a: !!python/object/apply:os.system ['touch canary']", "not a configuration"),
        ("- 1\n- 2", "expected a mapping"),
        ("a: [1", "not a configuration"),
        ("a: 1\na: 2", "not a configuration"),
        ("a: " + "x" * (1 << 20), "larger than"),
    ],
)
def test_a_stranger_s_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
