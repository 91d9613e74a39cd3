"""Faulty train.py commands: refused with exit code 2 and one message that names the key or the file, before any work.

``p`` holds the files that the commands name, see conftest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Overrides = Callable[..., list[str]]

STAGE_ONE: dict[str, tuple[Overrides, str]] = {
    "mistyped key": (lambda p: ["max_batchs=3"], "key max_batchs: there is no such key.*did you mean max_batches"),
    "mistyped nested key": (
        lambda p: ["autoencoder.chanels=8"],
        "autoencoder.chanels.*did you mean autoencoder.channel",
    ),
    "unknown argument of a part": (lambda p: ["+autoencoder.depth=3"], "key autoencoder.depth: .* takes no 'depth'"),
    "mistyped experiment": (lambda p: ["experiment=ae_lk"], "key experiment: .*'experiment/ae_lk'; did you mean ae_kl"),
    "mistyped option": (lambda p: ["trainer=cpuu"], "key trainer: .*'trainer/cpuu'; did you mean cpu"),
    "mistyped group": (lambda p: ["optimm=adamw"], "key optimm: .*did you mean optim"),
    "text for a number": (lambda p: ["max_batches=many"], "key max_batches: expected int, got 'many'"),
    "fraction for a number": (lambda p: ["global_batch=2.5"], "key global_batch: expected int"),
    "text for a part's number": (lambda p: ["autoencoder.channels=wide"], "key autoencoder.channels: expected int"),
    "text for a learning rate": (lambda p: ["optim.lr=fast"], "key optim.lr: expected float, got 'fast'"),
    "text for AdamW's learning rate": (
        lambda p: ["optim=adamw_cosine", "optim.lr=fast"],
        "optim.optimizer: torch.optim.AdamW refuses lr='fast'",
    ),
    "negative learning rate": (lambda p: ["optim.lr=-1"], "Muon: expected lr >= 0.* got lr=-1"),
    "Muon for the discriminator": (
        lambda p: ["adversarial=patch", "adversarial.discriminator.channels=8"],
        "adversarial.optimizer: expected another optimiser than Muon",
    ),
    "no batches": (lambda p: ["max_batches=0"], "max_batches: expected a whole number of at least 1, got 0"),
    "negative batch": (lambda p: ["global_batch=-8"], "global_batch: expected a whole number of at least 1, got -8"),
    "no size": (lambda p: ["data.size=0"], "data.size: expected a whole number of at least 1, got 0"),
    "odd size": (lambda p: ["data.size=17"], "data.size: 17 is not divisible by the autoencoder's factor = 2; 16 is"),
    "uneven batch": (
        lambda p: ["global_batch=7", "trainer=ddp_cpu"],
        "global_batch: 7 cannot be split evenly over 2 processes; 8 can",
    ),
    "no GPU": (lambda p: ["trainer=gpu"], "trainer or logger: .*gpu"),
    "unknown precision": (lambda p: ["trainer.precision=float7"], "float7"),
    "target off the list": (
        lambda p: ["autoencoder._target_=os.system"],
        "key autoencoder._target_: 'os.system' may not",
    ),
    "target that is not there": (
        lambda p: ["autoencoder._target_=latentdiff.models.autoencoder.autoencoder.Autoencodr"],
        "did you mean Autoencoder",
    ),
    "sweep without -m": (lambda p: ["seed=1,2"], "key seed: .*add -m"),
    "unwritable run_dir": (lambda p: [f"run_dir={p.home}/file/run"], "run_dir: '.*file/run' cannot be written"),
    "unwritable outputs": (
        lambda p: [f"paths.outputs={p.home}/file", "run_dir=null"],
        "run_dir: '.*/file/ae_kl/.*' cannot",
    ),
    "unwritable data": (lambda p: [f"paths.data={p.home}/file"], "paths.data: .*/file"),
    "no such shard": (
        lambda p: ["data=webdataset", "data.train=/no/{0..3}.tar"],
        "data.train: shard /no/0.tar does not",
    ),
    "no shard named": (lambda p: ["data=webdataset"], "key data.train: has no value yet; set it with data.train=VALUE"),
    "empty list of shards": (lambda p: ["data=webdataset", "data.train=[]"], "data.train: no shards were named"),
    "folder without shards": (
        lambda p: ["data=webdataset", f"data.train={p.home}/empty"],
        "data.train: .*/empty holds no",
    ),
    "damaged shard": (lambda p: ["data=webdataset", f"data.train={p.home}/damaged.tar"], "data.train: .*damaged.tar"),
    "no such validation shard": (
        lambda p: ["data=webdataset", f"data.train={p.home}/uncaptioned", "data.val=/no/val.tar"],
        "data.val: shard /no/val.tar does not exist",
    ),
    "no such checkpoint to resume": (lambda p: ["resume=/no/such/run"], "no checkpoint found under '/no/such/run'"),
    "no last to resume": (lambda p: ["resume=last"], "no checkpoint found under '.*/checkpoints/last'"),
    "resume of another stage": (lambda p: [f"resume={p.ldm}"], "kind diffusion .*one of kind autoencoder"),
    "resume of a damaged one": (lambda p: [f"resume={p.home}/truncated"], "ema.safetensors: [0-9]+ bytes expected"),
    "resume with other channels": (
        lambda p: [f"resume={p.autoencoder}", "autoencoder.latent_channels=3"],
        "autoencoder.latent_channels: 4 in the checkpoint, 3 now",
    ),
    "overwriting": (
        lambda p: [f"run_dir={p.autoencoder}", "resume=never"],
        "run_dir: '.*' already holds checkpoints and resume=never would overwrite them",
    ),
    "overwriting with another architecture": (
        lambda p: [f"run_dir={p.autoencoder}", "autoencoder.channels=16"],
        "autoencoder.channels: 8 in the checkpoint, 16 now",
    ),
}

STAGE_TWO: dict[str, tuple[Overrides, str]] = {
    "no such first stage": (lambda p: ["first_stage.checkpoint=/no/ae"], "first_stage.checkpoint: .*'/no/ae'"),
    "a file as first stage": (
        lambda p: [f"first_stage.checkpoint={p.home}/file"],
        "first_stage.checkpoint: .*is a file",
    ),
    "stage two as first stage": (
        lambda p: [f"first_stage.checkpoint={p.ldm}"],
        "first_stage.checkpoint: .*kind diffusion",
    ),
    "truncated first stage": (
        lambda p: [f"first_stage.checkpoint={p.home}/truncated"],
        "first_stage.checkpoint: .*ema.safetensors: [0-9]+ bytes expected",
    ),
    "mistyped first stage": (
        lambda p: ["first_stage.checkpoint=auto", "first_stage.experiment=ae_lk"],
        "first_stage.*'experiment/ae_lk'; did you mean ae_kl",
    ),
    "stage two to be trained as first stage": (
        lambda p: ["first_stage.checkpoint=auto", "first_stage.experiment=ldm_txt2img"],
        "first_stage.experiment: 'ldm_txt2img' does not train a first stage",
    ),
    "faulty overrides of the first stage": (
        lambda p: ["first_stage.checkpoint=auto", "first_stage.overrides=[max_batchs=3]"],
        "first_stage.*max_batchs",
    ),
    "odd size for the backbone": (
        lambda p: (
            [
                "backbone.channel_multipliers=[1,1]",
                "data.size=18",
                "first_stage.checkpoint=auto",
                "first_stage.overrides=[autoencoder=kl_f8,autoencoder.channel_multipliers=[1,2]]",
            ]
        ),
        r"data.size: 18 is not divisible by 2 \(the autoencoder's factor\) x 2 \(the backbone's\) = 4; 16 is",
    ),
    "uneven batch before a first stage": (
        lambda p: ["global_batch=7", "trainer=ddp_cpu", "first_stage.checkpoint=auto"],
        "global_batch: 7 cannot be split evenly over 2 processes",
    ),
    "no captions": (
        lambda p: ["data=webdataset", f"data.train={p.home}/uncaptioned"],
        "samples have no caption .*, first 00000/",
    ),
    "another first stage at a resume": (
        lambda p: [f"resume={p.ldm}", f"first_stage.checkpoint={p.home}/other"],
        "first_stage.checkpoint: '.*' was trained on the first stage [0-9a-f]{12}, '.*other.*' is [0-9a-f]{12}",
    ),
    "sampler without steps": (lambda p: ["sampler.steps=0"], "sampler.steps: expected a whole number .* got 0"),
    "grid for another path": (lambda p: ["sampler=plms_leading"], "sampler: .*RectifiedFlow has no table"),
    "unknown spacing": (lambda p: ["sampler=dimm"], "key sampler: .*'sampler/dimm'; did you mean ddim"),
    "refused pair": (
        lambda p: [
            "diffusion=ddpm_epsilon",
            "diffusion.parameterization._target_=latentdiff.diffusion.parameterization.Velocity",
        ],
        "diffusion: Velocity on ScaledLinearDDPM: .*; use V",
    ),
    "guidance without condition dropout": (
        lambda p: ["conditioner.module.drop=0"],
        "guidance: ClassifierFree compares with the null condition.*choose guidance=none",
    ),
    "guidance of another checkpoint": (
        lambda p: ["guidance=autoguidance", f"guidance.checkpoint={p.ldm}"],
        "guidance: CheckpointAutoguidance reads a second checkpoint",
    ),
    "context width": (
        lambda p: ["backbone.context_dim=48"],
        "backbone.context_dim: the backbone reads tokens of width 48, the conditioner gives width 32",
    ),
    "unknown compilation": (lambda p: ["task.compile=all"], "key task.compile: expected 'none' or 'blocks', got 'all'"),
    "negative offset noise": (lambda p: ["task.offset_noise=-0.1"], "task.offset_noise: expected .* got -0.1"),
    "one power average": (
        lambda p: [POWER_EMA.replace("}", ", lengths: [0.1]}")],
        "power_ema.lengths: expected at least two different ones, got",
    ),
    "power averages that join": (
        lambda p: [f"resume={p.ldm}", POWER_EMA],
        "another architecture.*task.power_ema: None in the checkpoint",
    ),
    "no such weights": (lambda p: ["init_backbone=/no/unet"], "init_backbone: '/no/unet' does not exist"),
    "weights of a first stage": (
        lambda p: [f"init_backbone={p.autoencoder}"],
        "init_backbone: .*kind autoencoder .*one of kind diffusion",
    ),
    "weights of another backbone": (
        lambda p: [f"init_backbone={p.ldm}", "backbone.channels=64"],
        "init_backbone: .*'.*ldm",
    ),
}

POWER_EMA = "task.power_ema={_target_: latentdiff.training.power_ema.PowerEma, _partial_: true}"

SLOW = {
    "a file as first stage",
    "folder without shards",
    "fraction for a number",
    "guidance of another checkpoint",
    "mistyped group",
    "negative batch",
    "negative learning rate",
    "negative offset noise",
    "no last to resume",
    "no shard named",
    "no size",
    "no such validation shard",
    "no such weights",
    "one power average",
    "resume of another stage",
    "sampler without steps",
    "stage two to be trained as first stage",
    "target that is not there",
    "unknown spacing",
    "text for a part's number",
    "uneven batch before a first stage",
    "unknown compilation",
    "unwritable outputs",
}
"""Left out of the default suite: others are refused at the same place."""


def cases(table: dict[str, tuple]) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in table]


@pytest.mark.parametrize("case", cases(STAGE_ONE))
def test_training_stage_one_is_refused(programs, place, refused, tmp_path: Path, case: str) -> None:
    overrides, message = STAGE_ONE[case]
    refused("train", [*programs.stage_one, f"run_dir={tmp_path}", *overrides(place)], message)


@pytest.mark.parametrize("case", cases(STAGE_TWO))
def test_training_stage_two_is_refused(programs, place, refused, tmp_path: Path, case: str) -> None:
    overrides, message = STAGE_TWO[case]
    first = f"first_stage.checkpoint={place.autoencoder}"
    refused("train", [*programs.stage_two, first, f"run_dir={tmp_path}", *overrides(place)], message)


def test_several_faults_are_told_at_once(programs, tmp_path: Path) -> None:
    faults = ["max_batchs=1", "seed=x", "autoencoder.chanels=1", f"run_dir={tmp_path}"]
    outcome = programs("train", *programs.stage_one, *faults)
    assert outcome.code == 2
    keys = {line.split(":")[1].strip() for line in outcome.err.splitlines() if line.startswith("error: ")}
    assert keys == {"key max_batchs", "key seed", "key autoencoder.chanels"}
