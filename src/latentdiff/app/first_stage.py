"""The first stage of a diffusion run: named by the user, found from an earlier run, or trained now."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError

SHARED = ("data", "trainer", "logger", "paths", "seed")
"""Keys of the command line that the first stage's run takes over."""

DEFINING = ("task", "autoencoder", "reconstruction", "adversarial", "optim", "max_batches", "global_batch", "seed")
"""Parts of its configuration that make a first stage what it is."""


def locate(cfg: DictConfig, data_fingerprint: str) -> Path:
    """The stage-one checkpoint for this run, trained first where ``first_stage.checkpoint=auto`` finds none.

    One trained earlier fits when its data and every part of its configuration that matters are the same; its folder
    is named by their hash.
    """
    choice = cfg.first_stage.checkpoint
    if choice != "auto":
        path = store.resolve(choice, prefer=("last", "best"))
        store.read_manifest(path, expect_kind="autoencoder")
        return path
    overrides = [f"experiment={cfg.first_stage.experiment}", *_shared_overrides(), *cfg.first_stage.overrides]
    wanted = compose("train", overrides=overrides)
    if wanted.autoencoder is None:
        raise InputError(f"first_stage.experiment: '{cfg.first_stage.experiment}' does not train a first stage")
    run_dir = Path(cfg.paths.first_stages) / f"{cfg.first_stage.experiment}-{_key(wanted, data_fingerprint)}"
    if _complete(run_dir, wanted.max_batches):
        print(f"first stage: using {run_dir}", flush=True)
    else:
        print(f"first stage: none for this data yet, training '{cfg.first_stage.experiment}' in {run_dir}", flush=True)
        _train([*overrides, f"run_dir='{run_dir}'", "resume=auto"])
    return store.resolve(run_dir, prefer=("last",))


def _shared_overrides() -> list[str]:
    given = HydraConfig.get().overrides.task
    return [o for o in given if o.lstrip("+~").replace("=", ".", 1).split(".", 1)[0] in SHARED]


def _key(wanted: DictConfig, data_fingerprint: str) -> str:
    wanted = OmegaConf.create(OmegaConf.to_container(wanted, resolve=False))
    parts = {name: OmegaConf.to_container(wanted, resolve=True)[name] for name in DEFINING}
    text = json.dumps([parts, data_fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _complete(run_dir: Path, max_batches: int) -> bool:
    last = run_dir / "checkpoints" / "last"
    return (last / store.MANIFEST).is_file() and store.read_manifest(last).counters["batches_seen"] >= max_batches


def _train(overrides: list[str]) -> None:
    """A process of its own: its memory is free again when stage two starts, and DDP starts afresh."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "first_stage.checkpoint: 'auto' cannot train a first stage under an external launcher; train it first "
            "(experiment=ae_kl) and name it with first_stage.checkpoint=PATH"
        )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LATENTDIFF_", "LOCAL_RANK", "MASTER_"))}
    code = _wait(subprocess.Popen([sys.executable, sys.argv[0], *overrides], env=environment))
    if code == 2:
        raise InputError("the first stage was refused; see the message above")
    if code in (130, 143):
        sys.exit(code)
    if code:
        raise RuntimeError(f"training the first stage ended with exit code {code}; see its message above")


def _wait(child: subprocess.Popen) -> int:
    """Leaves Ctrl-C, which the terminal sends to the child too, and SIGTERM to the child, which saves its state."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number)),
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
