"""An evaluation repeated from its card: what the configuration becomes, and what is refused before any work."""

import copy
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app import schema
from latentdiff.app.evaluation.repeat import check_identity, check_protocol, config_record, repeated, verdict
from latentdiff.checkpoint import store
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.quoting import quote_overrides
from latentdiff.evaluation.card import checkpoint_identity

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
PROTOCOL = {"generation": {"precision": "bfloat16"}, "seeds": {"base": 4}, "samples": {"count": 6}}


def composed(*overrides):
    schema.register()
    cfg, faults = compose(CONFIGS, "evaluate", list(overrides))
    assert faults == []
    return cfg


def checkpoint(path, fill=0.0, first_stage="cd"):
    store.save(
        path,
        kind="diffusion",
        model={"w": torch.full((2,), fill)},
        config="",
        counters={"batches_seen": 3, "images_seen": 24},
        first_stage={"path": "ae", "hash": first_stage},
    )
    return path


@pytest.fixture
def card(tmp_path):
    """``card(*overrides, model=, results=)``: a results.json of an evaluation that was asked for with these."""
    default = checkpoint(tmp_path / "run" / "checkpoints" / "last")

    def write(*overrides, name="results.json", results=None, change=lambda card: None):
        cfg = composed(f"checkpoint={tmp_path / 'run'}", f"run_dir={tmp_path / 'before'}", *overrides)
        told = {
            "schema": 2,
            "model": checkpoint_identity(default, weights="ema"),
            "protocol": {**PROTOCOL, "reference": {"f": {"count": 6}}},
            "observed": {"duplicates": 0},
            "environment": {"machine": "x"},
            "config": config_record(cfg),
        }
        change(told)
        found = {"results": results or {"f": {"fd": 1.5, "curve": [1, 2]}}, "card": told}
        (tmp_path / name).write_text(json.dumps(found))
        return str(tmp_path / name)

    return write


OVERRIDES = ("num_images=6", "seed=4", "sampler=heun", "guidance.scale=2.5", "metrics=small", "controls=false")


def test_the_configuration_is_the_card_s_but_for_where_things_are(card, tmp_path):
    path = card(*OVERRIDES)
    before = composed(f"checkpoint={tmp_path / 'run'}", *OVERRIDES)
    again = repeated(composed(f"card={path}", f"run_dir={tmp_path / 'after'}"))
    same, expected = (OmegaConf.to_container(each, resolve=True) for each in (again, before))
    assert same["run_dir"] == str(tmp_path / "after")
    assert same["card"] == path
    assert same["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "last"), (
        "a run may have another last one by now"
    )
    assert again.trainer.precision == "bf16-mixed", "as it was, whatever this device would choose"
    same["trainer"]["precision"] = expected["trainer"]["precision"]
    for key in ("run_dir", "card", "checkpoint"):
        del same[key], expected[key]
    assert same == expected
    assert config_record(again)["values"]["card"] is None, "a card says nothing of another"


def test_the_record_names_the_overrides_as_they_were_typed(card):
    typed = (*OVERRIDES, "prompts=null", "sweep.sampler=[a,b]")
    told = json.loads(Path(card(*quote_overrides([*typed, "paths.outputs=a,b/it's"]))).read_text())["card"]["config"]
    assert {*typed, "paths.outputs=a,b/it's"} <= set(told["overrides"]), "launch quotes paths, nobody types the quotes"


def test_the_model_may_have_moved_and_the_trainer_is_another(card, tmp_path):
    path = card("num_images=6", "trainer=cpu")
    moved = (tmp_path / "run" / "checkpoints" / "last").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="no checkpoint found"):
        repeated(composed(f"card={path}"))
    again = repeated(composed(f"card={path}", f"checkpoint={moved}", "trainer=ddp_cpu", "trainer.devices=3"))
    assert (again.checkpoint, again.trainer.devices, again.num_images) == (str(moved), 3, 6)
    assert again.trainer.precision == "bf16-mixed"
    assert repeated(composed(f"card={path}", f"checkpoint={moved}", "trainer.precision=32-true")).trainer.precision == (
        "32-true"
    )


@pytest.mark.parametrize("override", ["num_images=7", "seed=1", "guidance.scale=2", "sweep.steps=[3]", "lossy=true"])
def test_what_the_card_says_cannot_be_given_too(card, override):
    with pytest.raises(InputError, match=rf"{override.partition('=')[0]}: .* repeated as its card says"):
        repeated(composed(f"card={card('num_images=6')}", override))


def test_another_model_is_refused(card, tmp_path):
    path = card("num_images=6")
    other = checkpoint(tmp_path / "other", fill=1.0)
    with pytest.raises(InputError, match=r"those of the model .* name the right one with checkpoint=PATH"):
        repeated(composed(f"card={path}", f"checkpoint={other}"))
    other = checkpoint(tmp_path / "first", first_stage="ef")
    with pytest.raises(InputError, match=r"those of the first stage cd, .* has ef"):
        repeated(composed(f"card={path}", f"checkpoint={other}"))


def test_another_file_of_prompts_is_refused(card, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    path = card("num_images=2", f"prompts={tmp_path / 'prompts.txt'}")
    assert repeated(composed(f"card={path}")).prompts == str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").rename(tmp_path / "moved.txt")
    with pytest.raises(InputError, match=r"prompts: there is no file .*prompts=PATH"):
        repeated(composed(f"card={path}"))
    repeated(composed(f"card={path}", f"prompts={tmp_path / 'moved.txt'}"))
    (tmp_path / "moved.txt").write_text("a\nc\n")
    with pytest.raises(InputError, match=r"prompts: .* has the sha256"):
        repeated(composed(f"card={path}", f"prompts={tmp_path / 'moved.txt'}"))


def put(where, value):
    def change(told):
        *owners, last = where.split(".")
        owner = told
        for name in owners:
            owner = owner[name]
        owner[last] = value

    return change


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("config.values", None, "holds no configuration"),
        ("config.values.prompts", "${oc.env:HOME}", "holds interpolations"),
        ("config.values.unheard_of", 1, "of another version"),
        ("config.values.metrics", {"f": {"_target_": "os.system", "command": "true"}}, "_target_"),
        ("config", None, "a whole one of schema 2"),
        ("config.values.trainer", None, "no trainer as"),
        ("config.values.trainer", {"devices": 1}, "no trainer as"),
        ("config.values.first_stage", None, "no first_stage as"),
        ("config.values.data", "x", "no data as"),
        ("config.files", ["prompts"], r"no config\.files as"),
        ("config.files", {"prompts": None}, r"no config\.files as"),
        ("config.files", {"passwd": "ab"}, r"no config\.files as"),
        ("config.files", {"prompts": "ab"}, "prompts: the card names one"),
        ("model", {"digest": "ab"}, r"no model\.checkpoint as"),
        ("model.first_stage", "x", r"no model\.first_stage as"),
        ("protocol.generation", "x", r"no protocol\.generation as"),
        ("protocol.generation", {"precision": [1]}, r"no protocol\.generation as"),
    ],
)
def test_a_stranger_s_card_is_checked_like_a_command_line(card, where, value, message):
    path = card("num_images=6", change=put(where, value))
    with pytest.raises(InputError, match=message):
        repeated(composed(f"card={path}"))


def test_a_logger_is_used_again_when_it_is_asked_for_alone(card):
    path = card("num_images=6", "logger=wandb")
    assert repeated(composed(f"card={path}")).logger is None
    assert repeated(composed(f"card={path}", "logger=wandb")).logger is not None


def test_a_repetition_does_not_replace_what_it_is_held_against(card, tmp_path):
    path = card("num_images=6")
    with pytest.raises(InputError, match=r"run_dir: .* holds the evaluation that is repeated"):
        repeated(composed(f"card={path}", f"run_dir={tmp_path}"))


def test_another_protocol_is_refused_before_the_first_image(card):
    path = card("num_images=6")
    check_protocol(path, PROTOCOL)
    other = copy.deepcopy(PROTOCOL)
    other["seeds"]["base"] = 5
    with pytest.raises(InputError, match=r"protocol\.seeds\.base: 4 \| 5"):
        check_protocol(path, other)


def test_the_verdict(card):
    path, same = card("num_images=6"), card("num_images=6", name="same.json")
    assert "all 2 numbers are those of" in verdict(path, same)
    other = card(
        "num_images=6",
        name="other.json",
        results={"f": {"fd": 1.5001, "more": 1}},
        change=put("environment.machine", "y"),
    )
    with pytest.raises(RunError) as differing:
        verdict(path, other)
    near = json.loads(Path(path).read_text())
    near["results"]["f"]["fd"] = 1.5000001
    rounded = Path(path).with_name("rounded.json")
    rounded.write_text(json.dumps(near))
    assert "1 numbers are those of" in (said := verdict(path, rounded))
    assert "1 but for rounding:\n  f.fd: 1.5 | 1.5000001" in said
    for text in ("3 of 3 numbers", "f.fd: 1.5 | 1.5001", "f.more: None | 1", 'environment.machine: "x" | "y"'):
        assert text in str(differing.value)


@pytest.mark.parametrize(("what", "mark"), [("pipeline", "sha256"), ("images", "listing")])
def test_other_files_are_refused_before_the_first_image(card, what, mark):
    path = card("num_images=6", change=lambda told: told.update(model={what: "there", mark: "ab", "stamp": "1"}))
    check_identity(path, {what: "here", mark: "ab", "stamp": "2"})
    with pytest.raises(InputError, match=rf"{what}: .* not those of .* lay in 'there'; .* with {what}=PATH"):
        check_identity(path, {what: "here", mark: "cd", "stamp": "1"})
