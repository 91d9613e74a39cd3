"""The first stage of a diffusion run: named by the user, found from an earlier run, or trained now."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentdiff.app.exit_codes import SIGNALLED
from latentdiff.app.processes import FIRST_STAGE, launched, say
from latentdiff.app.run.run_dir import CHILD_RUN_DIR
from latentdiff.checkpoint import shelf, store
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.foreign.unet import reading as unet
from latentdiff.checkpoint.models import recorded_statistics
from latentdiff.checkpoint.places import first_stage_in, moved
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.faults import did_you_mean
from latentdiff.config.instantiate import build

SHARED = ("data", "trainer", "logger", "paths", "seed")
"""Keys of the command line that the first stage's run takes over."""

DEFINING = ("task", "autoencoder", "reconstruction", "adversarial", "optim", "max_batches", "global_batch", "seed")
"""Parts of its configuration that make a first stage what it is."""


FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""To the process that trains the first stage."""

_AGAIN = "give the same command again to go on there"


IMAGE_CHANNELS = 3
"""Of the data: RGB."""


@dataclass(frozen=True)
class Named:
    """A checkpoint that exists, or another program's autoencoder with the ``statistics`` to use it with."""

    path: Path
    latent: dict[str, int]
    statistics: Statistics | None = None

    def locate(self, data_fingerprint: str) -> Path:
        return self.path


@dataclass(frozen=True)
class Automatic:
    """One trained earlier, or now: it fits when its data and every part of its configuration that matters are the
    same; its folder is named by their hash."""

    config: DictConfig
    overrides: list[str]
    folder: Path
    latent: dict[str, int]
    statistics: None = None
    """They are in the checkpoint."""

    def locate(self, data_fingerprint: str) -> Path:
        """The stage-one checkpoint, trained first where there is none. Raises InputError where it is refused."""
        name, run_dir = self.config.experiment, self._run_dir(data_fingerprint)
        if found := self.found(data_fingerprint):
            say(f"first stage: using {run_dir}")
            return found
        say(f"first stage: none for this data yet, training '{name}' in {run_dir}")
        _train([*self.overrides, f"run_dir='{run_dir}'", "resume=auto"])
        if found := self.found(data_fingerprint):
            return found
        if self.config.trainer.get("max_time") is None:
            raise RunError(
                f"first_stage.checkpoint: the first stage in '{run_dir}' has ended before batch "
                f"{self.config.max_batches}; see what it said above, and what is in its folder checkpoints"
            )
        say(f"trainer.max_time was up in the first stage; {_AGAIN}")
        sys.exit(0)

    def found(self, data_fingerprint: str) -> Path | None:
        """The checkpoint, if it has been trained to its end."""
        return _complete(self._run_dir(data_fingerprint), self.config.max_batches)

    def _run_dir(self, data_fingerprint: str) -> Path:
        return self.folder / f"{self.config.experiment}-{_key(self.config, data_fingerprint)}"


def planned(cfg: DictConfig, resumed: Path | None) -> Named | Automatic:
    """The first stage that ``first_stage.checkpoint`` asks for, checked as far as it exists; nothing is trained yet.

    A run that goes on from the checkpoint ``resumed``, of the kind that is trained, or starts from the backbone of a
    checkpoint of ours, keeps its first stage: ``auto`` stands for that one, and another one is refused.
    """
    choice, before = cfg.first_stage.checkpoint, None
    resumed = resumed or _beginning(cfg.get("init_backbone"))
    if resumed is not None:
        manifest = store.read_manifest(resumed)
        before = manifest.first_stage
        choice = moved(before["path"], manifest, resumed) if choice == "auto" else choice
    if choice != "auto" and foreign.recognises(choice):
        return _foreign(cfg, Path(choice), resumed, before)
    if given := [name for name in ("scale", "shift") if cfg.first_stage.get(name) is not None]:
        raise InputError(
            f"first_stage.{given[0]}: it is for autoencoders of other programs; a first stage that was trained here "
            "carries the statistics of its latents. Leave it null, or name such a file with first_stage.checkpoint=PATH"
        )
    if choice == "auto":
        return _automatic(cfg)
    try:
        path = store.resolve(first_stage_in(choice), prefer=("last", "best"))
        manifest = store.read_manifest(path, expect_kind="autoencoder")
        store.verify(path)
    except InputError as error:
        raise InputError(f"first_stage.checkpoint: {error}") from error
    _refuse_another(path, manifest.digest, resumed, before)
    return Named(path, manifest.latent)


def _beginning(init_backbone: str | None) -> Path | None:
    """The stage-two checkpoint of ours that a backbone is to start from, if it is one."""
    if init_backbone is None or unet.recognises(init_backbone) or not Path(init_backbone).exists():
        return None
    try:
        path = store.resolve(init_backbone, prefer=("last", "best"))
        store.read_manifest(path, expect_kind="diffusion")
    except InputError as error:
        raise InputError(f"init_backbone: {error}") from error
    return path


def _foreign(cfg: DictConfig, path: Path, resumed: Path | None, before: dict | None) -> Named:
    """Read here as a whole: a file that does not fit is refused before any work."""
    recorded = None if before is None else recorded_statistics(before)
    scale, shift = cfg.first_stage.get("scale"), cfg.first_stage.get("shift")
    try:
        found = foreign.read(path)
        found.autoencoder()
        digest = foreign.digest(path)
    except InputError as error:
        raise InputError(f"first_stage.checkpoint: {error}") from error
    if (channels := found.architecture.image_channels) != IMAGE_CHANNELS:
        raise InputError(
            f"first_stage.checkpoint: '{path}' reads images of {channels} channels, the data has {IMAGE_CHANNELS}"
        )
    _refuse_another(path, digest, resumed, before)
    if recorded is not None and scale is None and shift is None:
        return Named(path, found.architecture.latent, recorded)
    statistics = found.chosen_statistics(scale=scale, shift=shift)
    if recorded is not None and not statistics.is_near(recorded):
        raise InputError(
            f"first_stage.scale and first_stage.shift: '{resumed}' was trained on latents of mean {recorded.mean} and "
            f"standard deviation {recorded.std}, these say {statistics.mean} and {statistics.std}; leave them out to "
            "go on, or start in a new run_dir"
        )
    return Named(path, found.architecture.latent, statistics)


def _refuse_another(path: Path, digest: str, resumed: Path | None, before: dict | None) -> None:
    if before is not None and digest != before["hash"]:
        raise InputError(
            f"first_stage.checkpoint: '{resumed}' was trained on the first stage {before['hash'][:12]}, '{path}' is "
            f"{digest[:12]}; name the right one, or start in a new run_dir"
        )


def latent_shape(autoencoder: DictConfig) -> dict[str, int]:
    """Channels and down-factor of the latents that an autoencoder's configuration stands for."""
    with torch.device("meta"):
        built = build(autoencoder)
    return {"channels": built.latent_channels, "factor": built.factor}


def _automatic(cfg: DictConfig) -> Automatic:
    name = cfg.first_stage.experiment
    overrides = [f"experiment={name}", *_shared_overrides(), *cfg.first_stage.overrides]
    try:
        wanted = compose("train", overrides=overrides)
    except MissingConfigException as error:
        near = did_you_mean((error.missing_cfg_file or "").rpartition("/")[2], error.options or [])
        raise InputError(f"first_stage: there is no '{error.missing_cfg_file}'{near}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"first_stage.experiment or first_stage.overrides: {error}") from error
    if wanted.autoencoder is None:
        raise InputError(f"first_stage.experiment: '{name}' does not train a first stage")
    return Automatic(wanted, overrides, Path(cfg.paths.first_stages), latent_shape(wanted.autoencoder))


def _shared_overrides() -> list[str]:
    given = HydraConfig.get().overrides.task
    return [o for o in given if o.lstrip("+~").replace("=", ".", 1).split(".", 1)[0] in SHARED]


def _key(wanted: DictConfig, data_fingerprint: str) -> str:
    wanted = OmegaConf.create(OmegaConf.to_container(wanted, resolve=False))
    parts = {name: OmegaConf.to_container(wanted, resolve=True)[name] for name in DEFINING}
    text = json.dumps([parts, data_fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _complete(run_dir: Path, max_batches: int) -> Path | None:
    """The newest whole checkpoint, from which its training would go on, if nothing is left to train."""
    found, _ = shelf.first_whole(shelf.standing(run_dir / "checkpoints"))
    complete = found is not None and store.read_manifest(found).counters["batches_seen"] >= max_batches
    return found if complete else None


def _train(overrides: list[str]) -> None:
    """A process of its own: its memory is free again when stage two starts, and DDP starts afresh."""
    if (launched() or 1) > 1:
        raise InputError(
            "first_stage.checkpoint: 'auto' cannot train a first stage under an external launcher; train it first "
            "(experiment=ae_kl) and name it with first_stage.checkpoint=PATH"
        )
    environment = {k: v for k, v in os.environ.items() if not k.startswith((CHILD_RUN_DIR, "LOCAL_RANK", "MASTER_"))}
    environment[FIRST_STAGE] = "1"
    command = [sys.executable, sys.argv[0], *_searched(), *overrides]
    code = _wait(subprocess.Popen(command, env=environment, start_new_session=True))
    if code == 2:
        raise InputError("the first stage was refused; see the message above")
    if code < 0:
        raise RunError(f"training the first stage was ended by {signal.Signals(-code).name}; {_AGAIN}")
    if code > SIGNALLED:
        say(f"stopped in the first stage; {_AGAIN}")
        sys.exit(code)
    if code:
        raise RunError(f"training the first stage ended with exit code {code}; see its message above")


def _searched() -> list[str]:
    """The folders of configurations that the command line adds (--config-dir), as an override."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    folders = [f"'{each.schema}://{each.path}'" for each in sources if each.provider.endswith("command-line")]
    return [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []


def _wait(child: subprocess.Popen) -> int:
    """Leaves signals to the child, which saves its state. It is in a session of its own: those that the terminal sends
    reach it through this process alone, once."""
    before = {number: signal.signal(number, lambda number, frame: child.send_signal(number)) for number in FORWARDED}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
