"""The root keys of the three programs. With these in the defaults list a mistyped root key in a YAML is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# OmegaConf reads these annotations; Any is a node that a configuration group fills.


@dataclass
class LatentConfig:
    """Shape of the latents; the program fills it from the first stage."""

    channels: Optional[int] = None  # noqa: UP045
    factor: Optional[int] = None  # noqa: UP045


@dataclass
class RunConfig:
    """What every program has."""

    run_dir: Optional[str] = None  # noqa: UP045
    print_config: bool = False
    trainer: Any = None
    sampler: Any = None
    guidance: Any = None
    first_stage: Any = None
    paths: Any = None


@dataclass
class TrainConfig(RunConfig):
    """train.py: counts are training batches and images, over all processes."""

    experiment: Optional[str] = None  # noqa: UP045
    debug: Any = None
    seed: int = 0
    max_batches: int = MISSING
    global_batch: int = MISSING
    validate_every: int = 500
    resume: str = "auto"
    resume_with_changed_data: bool = False
    latent: LatentConfig = field(default_factory=LatentConfig)
    data: Any = None
    metrics: Any = None
    task: Any = None
    logger: Any = None
    callbacks: Any = None
    optim: Any = None
    ema: Any = None
    autoencoder: Any = None
    reconstruction: Any = None
    adversarial: Any = None
    backbone: Any = None
    init_backbone: Optional[str] = None  # noqa: UP045  weights that the backbone starts from
    diffusion: Any = None
    conditioner: Any = None
    classifier: Any = None


@dataclass
class SweepConfig:
    """The values of a grid of evaluations; None: the one that the configuration has."""

    guidance: Optional[list[float]] = None  # noqa: UP045
    steps: Optional[list[int]] = None  # noqa: UP045
    sampler: Optional[list[str]] = None  # noqa: UP045
    ema_length: Optional[list[float]] = None  # noqa: UP045


@dataclass
class EvaluateConfig(RunConfig):
    """evaluate.py: one of ``checkpoint``, ``images``, ``pipeline`` and ``card``; ``sampler`` and ``guidance`` left null
    are the checkpoint's own. What the keys mean stands in configs/evaluate.yaml."""

    checkpoint: Optional[str] = None  # noqa: UP045
    images: Optional[str] = None  # noqa: UP045
    pipeline: Optional[str] = None  # noqa: UP045
    card: Optional[str] = None  # noqa: UP045
    weights: str = "ema"
    data: Any = None
    metrics: Any = None
    seed: int = 0
    num_images: int = MISSING
    batch_size: int = MISSING
    repeats: int = 1
    conditions: str = "data"
    prompts: Optional[str] = None  # noqa: UP045
    reference: Optional[str] = None  # noqa: UP045
    num_reference: Optional[int] = None  # noqa: UP045
    controls: bool = True
    bound: bool = False
    save_samples: Optional[str] = None  # noqa: UP045
    neighbours: int = 8
    neighbour_images: int = 1000
    lossy: bool = False
    max_duplicates: float = 0.01
    sweep: SweepConfig = field(default_factory=SweepConfig)
    logger: Any = None


@dataclass
class SampleConfig(RunConfig):
    """sample.py: what images are made from (``prompt`` to ``map``) is one value for all, or a list of one per image;
    ``seeds`` are drawn of each. One of ``checkpoint`` and ``card`` is needed. See configs/sample.yaml."""

    checkpoint: Optional[str] = None  # noqa: UP045
    weights: str = "ema"
    card: Optional[str] = None  # noqa: UP045
    prompts: Optional[str] = None  # noqa: UP045
    prompt: Any = None
    negative_prompt: Any = None
    label: Any = None
    numbers: Any = None
    image: Any = None
    mask: Any = None
    map: Any = None
    size: Any = None
    strength: Optional[float] = None  # noqa: UP045
    repaint: Any = None
    paste: bool = True
    trajectory: bool = False
    seeds: Any = None
    batch_size: int = 16


@dataclass(frozen=True)
class Root:
    """One program's schema, and what its configuration cannot know before the program runs (see ``validate``)."""

    schema: type
    injected: Mapping[str, Collection[str]]
    runtime: Mapping[str, object]
    subjects: tuple[str, ...] = ()
    """Keys of which one says what the program works on."""


_TRAINER_ARGUMENTS = ("callbacks", "logger", "plugins", "enable_progress_bar", "default_root_dir")

EVALUATED = ("checkpoint", "images", "pipeline", "card")

_RUNTIME = {"run_dir": "outputs/run", "trainer.precision": "32-true"}

ROOTS: Mapping[str, Root] = {
    "train": Root(
        TrainConfig,
        injected={"task": ("codec",), "trainer": _TRAINER_ARGUMENTS},
        runtime={"latent.channels": 4, "latent.factor": 8, "experiment": "experiment", **_RUNTIME},
    ),
    "evaluate": Root(
        EvaluateConfig,
        injected={"trainer": _TRAINER_ARGUMENTS},
        runtime=_RUNTIME,
        subjects=EVALUATED,
    ),
    "sample": Root(
        SampleConfig,
        injected={"trainer": _TRAINER_ARGUMENTS},
        runtime=_RUNTIME,
        subjects=("checkpoint", "card"),
    ),
}


def register() -> None:
    """Make ``train_schema``, ``evaluate_schema`` and ``sample_schema`` known to Hydra's defaults lists."""
    store = ConfigStore.instance()
    for name, root in ROOTS.items():
        store.store(name=f"{name}_schema", node=root.schema)
