"""What a resumed run must share with its checkpoint, and what it may change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.run.resume_check import check_config, check_data, check_kind
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

LAWS = "latentdiff.diffusion.timesteps."
CURRICULUM = {
    "_target_": LAWS + "Curriculum",
    "first": {"_target_": LAWS + "LogitNormal"},
    "then": {"_target_": LAWS + "Uniform"},
    "batches": 100,
}
POWER = {"_target_": "latentdiff.training.power_ema.PowerEma", "_partial_": True}
GAME = {
    "adversarial__discriminator": {"layers": 2},
    "adversarial__lecam": {"_target_": "LeCam", "weight": 1.0},
    "adversarial__optimizer": {"_target_": "AdamW", "lr": 2.0},
}
NOW = {"fingerprint": "ab12", "seed": 0, "global_batch": 8}


def config(**changes: object) -> DictConfig:
    """As a run of stage two has it; ``task__optimizer`` stands for the key ``task.optimizer``."""
    source = {"_target_": "latentdiff.data.sources.ShardSource", "train": "${data.train}", "held_back": 0.05}
    cfg = OmegaConf.create(
        {
            "seed": 0,
            "global_batch": 8,
            "run_dir": "somewhere",
            "resume": "auto",
            "resume_with_changed_data": False,
            "backbone": {"channels": 8},
            "optim": {"lr": 1e-3, "optimizer": {"lr": "${optim.lr}"}},
            "data": {"train": "a.tar", "workers": 2, "module": {"source": source, "flip": True, "seed": "${seed}"}},
            "task": {
                "_target_": "latentdiff.training.diffusion_module.DiffusionModule",
                "optimizer": "${optim.optimizer}",
            },
        }
    )
    OmegaConf.update(cfg, "data.module.num_workers", "${data.workers}", force_add=True)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


@pytest.fixture
def saved(tmp_path: Path):
    """``saved(cfg)``: a checkpoint of a run with that configuration."""

    def save(cfg: DictConfig | None = None, **changes: object) -> Path:
        about = {
            "kind": "diffusion",
            "model": {"a": torch.zeros(1)},
            "config": OmegaConf.to_yaml(config() if cfg is None else cfg, resolve=True),
            "counters": {"batches_seen": 5, "images_seen": 40},
            "train_state": {},
            "data": {**NOW, "batches_seen": 5},
        }
        store.save(tmp_path / "last", **{**about, **changes})
        return tmp_path / "last"

    return save


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"global_batch": 16}, "global_batch: 8 in the checkpoint, 16 now"),
        ({"data__module__flip": False}, r"data\.module\.flip: True in the checkpoint, False now"),
        ({"data__module__source__held_back": 0.1}, r"data\.module\.source\.held_back: 0\.05 in the checkpoint, 0\.1"),
        ({"data__module__label_field": "class"}, r"data\.module\.label_field: None in the checkpoint, 'class' now"),
    ],
)
def test_other_samples_or_another_order_must_be_acknowledged(saved, capsys, changes: dict, line: str) -> None:
    checkpoint = saved()
    with pytest.raises(InputError, match=rf"by resume_with_changed_data=true\n  {line}[^\n]*\Z"):
        check_config(config(**changes), checkpoint)
    check_config(config(**changes, resume_with_changed_data=True), checkpoint)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_samples_themselves_are_compared(saved, capsys) -> None:
    checkpoint = saved()
    check_data(config(), checkpoint, NOW)
    other = {**NOW, "fingerprint": "cd34"}
    with pytest.raises(InputError, match="training samples: fingerprint ab12 in the checkpoint, cd34 now"):
        check_data(config(), checkpoint, other)
    check_data(config(resume_with_changed_data=True), checkpoint, other)
    assert "fingerprint ab12" in capsys.readouterr().out
    check_data(config(), saved(data=None), other)


def test_what_may_change_is_said_once_and_by_its_own_key(saved, capsys) -> None:
    """The optimiser's and the task's ``lr`` only refer to ``optim.lr``."""
    changed = config(optim__lr=5e-4, data__workers=0, data__train="b.tar", run_dir="elsewhere", resume="last")
    check_config(changed, saved())
    assert capsys.readouterr().out.splitlines() == [
        "resuming with optim.lr: 0.001 -> 0.0005",
        "resuming with data.train: 'a.tar' -> 'b.tar'",
        "resuming with data.workers: 2 -> 0",
    ]


def test_nothing_is_said_where_nothing_has_changed(saved, capsys) -> None:
    check_config(config(), saved())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"backbone__channels": 16}, r"backbone\.channels: 8 in the checkpoint, 16 now"),
        ({"task__power_ema": POWER}, r"task\.power_ema: None in the checkpoint"),
        ({"adversarial__discriminator__layers": 3}, r"adversarial\.discriminator\.layers: 2 in the checkpoint, 3 now"),
        ({"adversarial__discriminator": None}, r"adversarial\.discriminator: \{"),
        ({"reconstruction__learn_logvar": True}, r"reconstruction\.learn_logvar: None in the checkpoint, True now"),
        ({"adversarial__lecam": None}, r"adversarial\.lecam\._target_: 'LeCam' in the checkpoint, None now"),
        ({"optim__optimizer___target_": "SGD"}, r"optim\.optimizer\._target_: 'Muon' in the checkpoint, 'SGD' now"),
        ({"optim__optimizer__adamw": ["*out*"]}, r"optim\.optimizer\.adamw: \['\*in\*'\] in the checkpoint"),
        ({"adversarial__optimizer": {"_target_": "SGD"}}, r"adversarial\.optimizer\._target_: 'AdamW' in the checkp"),
    ],
)
def test_another_architecture_or_optimizer_is_refused_whatever_is_acknowledged(saved, changes: dict, line: str) -> None:
    before = {**GAME, "optim__optimizer": {"_target_": "Muon", "lr": 1e-3, "adamw": ["*in*"]}}
    checkpoint = saved(config(**before))
    with pytest.raises(InputError, match=f"another architecture or optimiser(?s:.*){line}"):
        check_config(config(**{**before, **changes}, resume_with_changed_data=True), checkpoint)
    check_config(config(**before, adversarial__lecam__weight=2.0, adversarial__optimizer__lr=1.0), checkpoint)


def test_where_data_are_copied_to_and_who_reads_them_may_change(saved) -> None:
    cache = {"_target_": "ShardCache", "folder": None, "max_bytes": 10}
    checkpoint = saved(config(data__module__source__cache=cache, data__module__source__damaged="stop"))
    moved = {"data__module__source__cache": {**cache, "folder": "/x", "max_bytes": 20}}
    check_config(config(**moved, data__module__source__damaged="skip", data__workers=7), checkpoint)


def test_a_stranger_s_configuration_reads_nothing(saved) -> None:
    with pytest.raises(InputError, match=r"optim\.lr.*\$\{"):
        check_config(config(), saved(config="optim:\n  lr: ${oc.env:HOME}\n"))


def test_averages_that_are_off_are_no_change(saved) -> None:
    check_config(config(task__power_ema=None), saved())


@pytest.mark.parametrize(("seen", "batches", "goes_on"), [(99, 200, True), (100, 200, False), (300, 200, True)])
def test_a_resumed_run_does_not_go_back_to_the_first_law(saved, seen: int, batches: int, goes_on: bool) -> None:
    before = config(task__loss={"timesteps": CURRICULUM})
    checkpoint = saved(before, counters={"batches_seen": seen, "images_seen": 2})
    now = config(task__loss={"timesteps": {**CURRICULUM, "batches": batches}})
    if goes_on:
        check_config(now, checkpoint)
    else:
        with pytest.raises(InputError, match=r"set diffusion\.timesteps\.batches=100"):
            check_config(now, checkpoint)


def test_a_checkpoint_without_training_state_or_of_another_kind_is_refused(saved) -> None:
    with pytest.raises(InputError, match="saved without training state and cannot be resumed"):
        check_kind(config(), saved(train_state=None))
    cfg = config(task___target_="latentdiff.training.autoencoder_module.AutoencoderModule")
    with pytest.raises(InputError, match=r"kind diffusion .*one of kind autoencoder"):
        check_kind(cfg, saved())
