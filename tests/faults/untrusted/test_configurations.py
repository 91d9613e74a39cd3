"""Configurations of a stranger: in a checkpoint, on the command line, in a folder of experiments."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app import launch
from latentdiff.checkpoint.models import load_classifier, load_codec, load_denoiser
from latentdiff.config.instantiate import build
from latentdiff.config.validate import validate

REPOSITORY = Path(__file__).resolve().parents[3]
CANARY, EVIL = "canary", "evil.pt"
TOUCH = f"touch {CANARY}"
PYTHON = f"open('{CANARY}', 'w')"
TARGETS: dict[str, dict] = {
    "os.system": {"command": TOUCH},
    "os.popen": {"cmd": TOUCH},
    "os.mkdir": {"path": CANARY},
    "posix.system": {"command": TOUCH},
    "subprocess.run": {"args": ["touch", CANARY]},
    "subprocess.Popen": {"args": ["touch", CANARY]},
    "subprocess.call": {"args": ["touch", CANARY]},
    "subprocess.check_output": {"args": ["touch", CANARY]},
    "subprocess.getoutput": {"cmd": TOUCH},
    "asyncio.create_subprocess_shell": {"cmd": TOUCH},
    "pty.spawn": {"argv": ["touch", CANARY]},
    "multiprocessing.Process": {"target": "os.system", "args": [TOUCH]},
    "builtins.eval": {"source": PYTHON},
    "builtins.exec": {"source": PYTHON},
    "builtins.compile": {"source": PYTHON, "filename": "x", "mode": "exec"},
    "builtins.open": {"file": CANARY, "mode": "w"},
    "builtins.getattr": {"object": {"_target_": "builtins.__import__", "name": "os"}, "name": "system"},
    "builtins.__import__": {"name": "hostile_module"},
    "io.open": {"file": CANARY, "mode": "w"},
    "functools.partial": {"func": {"_target_": "os.system", "_partial_": True}, "command": TOUCH},
    "functools.reduce": {"function": "os.system", "sequence": [TOUCH]},
    "operator.methodcaller": {"name": "system"},
    "importlib.import_module": {"name": "hostile_module"},
    "hostile_module.Thing": {},
    "runpy.run_path": {"path_name": "hostile_module.py"},
    "pathlib.Path.touch": {"self": CANARY},
    "shutil.copy": {"src": EVIL, "dst": CANARY},
    "shutil.rmtree": {"path": "."},
    "webbrowser.open": {"url": f"file://{CANARY}"},
    "pickle.load": {"file": EVIL},
    "pickle.loads": {"data": "cos\nsystem\n"},
    "joblib.load": {"filename": EVIL},
    "yaml.unsafe_load": {"stream": f"!!python/object/apply:os.system ['{TOUCH}']"},
    "numpy.load": {"file": "evil.npy", "allow_pickle": True},
    "pandas.read_pickle": {"filepath_or_buffer": EVIL},
    "torch.load": {"f": EVIL, "weights_only": False},
    "torch.jit.load": {"f": EVIL},
    "torch.hub.load": {"repo_or_dir": ".", "model": "thing", "source": "local"},
    "torch.hub.load_state_dict_from_url": {"url": f"file://{EVIL}"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": "int x;"},
    "torch.package.PackageImporter": {"file_or_buffer": EVIL},
    "torch.nn.modules.module.functools.partial": {"func": "os.system"},
    "torch.nn.modules.module.torch.load": {"f": EVIL, "weights_only": False},
    "torch.nn.Module.load_state_dict": {},
    "torch.optim.optimizer.torch.load": {"f": EVIL, "weights_only": False},
    "pytorch_lightning.LightningModule.load_from_checkpoint": {"checkpoint_path": EVIL, "weights_only": False},
    "pytorch_lightning.Trainer.fit": {"ckpt_path": EVIL},
    "pytorch_lightning.core.saving.load_from_checkpoint": {"checkpoint_path": EVIL},
    "pytorch_lightning.cli.LightningCLI": {},
    "pytorch_lightning.callbacks.model_checkpoint.os.system": {"command": TOUCH},
    "pytorch_lightning.plugins.io.TorchCheckpointIO.load_checkpoint": {"path": EVIL},
    "pytorch_lightning.utilities.migration.pl_legacy_patch": {},
    "lightning_fabric.utilities.cloud_io._load": {"path_or_url": EVIL},
    "torchmetrics.image.fid.FrechetInceptionDistance": {"feature": 64, "feature_extractor_weights_path": EVIL},
    "torchmetrics.image.FrechetInceptionDistance": {"feature": 64, "feature_extractor_weights_path": EVIL},
    "transformers.AutoModel.from_pretrained": {"pretrained_model_name_or_path": ".", "trust_remote_code": True},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": TOUCH}},
    "hydra.utils.get_method": {"path": "os.system"},
    "webdataset.WebDataset": {"urls": f"pipe:{TOUCH}"},
    "webdataset.gopen.gopen": {"url": f"pipe:{TOUCH}"},
    "fsspec.open": {"urlpath": CANARY, "mode": "w"},
    "latentdiff": {},
    "latentdiff_hostile.Thing": {},
    "latentdiff.app.run.run_dir.os.system": {"command": TOUCH},
    "latentdiff.app.run.first_stage.subprocess.Popen": {"args": ["touch", CANARY]},
    "latentdiff.app.launch.launch": {},
    "latentdiff.app.cli.main": {"argv": ["ema", ".", CANARY]},
    "latentdiff.app.demo.subprocess.run": {"args": ["touch", CANARY]},
    "latentdiff.evaluation.card.subprocess.run": {"args": ["touch", CANARY]},
    "latentdiff.config.instantiate.build": {"node": {"_target_": "os.system", "command": TOUCH}},
    "latentdiff.config.allowlist.importlib.import_module": {"name": "hostile_module"},
    "latentdiff.config.instantiate.instantiate": {"config": {"_target_": "os.system", "command": TOUCH}},
    "latentdiff.types.torch.load": {"f": EVIL, "weights_only": False},
    "latentdiff.metrics.features.torch.load": {"f": EVIL, "weights_only": False},
    "latentdiff.data.shards.os.system": {"command": TOUCH},
    "latentdiff.data.shards.write_shards": {"samples": [{"txt": "x"}], "dest": CANARY},
    "latentdiff.data.shapes_set.prepare_shapes": {"folder": CANARY, "image_size": 8, "seed": 0},
    "latentdiff.data.shapes_set.shutil.rmtree": {"path": "."},
    "latentdiff.checkpoint.store.save": {"path": CANARY, "kind": "diffusion"},
    "latentdiff.durable.new_file": {"path": CANARY},
    "latentdiff.checkpoint.foreign.weights.torch.load": {"f": EVIL, "weights_only": False},
    "latentdiff.checkpoint.foreign.weights.open_weights": {"path": EVIL},
    "latentdiff.training.slurm.requeue": {},
    "latentdiff.training.slurm.subprocess.run": {"args": ["touch", CANARY]},
    "latentdiff.types.Batch.__init__.__globals__": {},
    "latentdiff.types.Batch.__class__": {},
    "latentdiff..types.Batch": {},
    "latentdiff.types.Batch\n": {},
    "LATENTDIFF.types.os.system": {},
}


@pytest.fixture
def hostile(place, payload, monkeypatch: pytest.MonkeyPatch):
    """Where modules, hub folders and arrays lie that the targets name."""
    for name in ("hostile_module.py", "latentdiff_hostile.py", "hubconf.py"):
        (place.folder / name).write_text(f"open({str(place.canary)!r}, 'w')\ndef thing(): pass\nclass Thing: pass\n")
    np.save(place.folder / "evil.npy", np.array([payload(place.canary)], dtype=object), allow_pickle=True)
    monkeypatch.syspath_prepend(str(place.folder))
    return place


LOADS = (("autoencoder", load_codec), ("diffusion", load_denoiser), ("classifier", load_classifier))


@pytest.mark.parametrize("target", TARGETS)
def test_targets(hostile, stranger, target: str) -> None:
    """In a stranger's checkpoint: as what it is, inside an honest part, and as a part to be called later."""
    node = {"_target_": target, **TARGETS[target]}
    inside = {"_target_": "torch.nn.Sequential", "args": [{"_target_": "torch.nn.ModuleList", "modules": [node]}]}
    for number, config in enumerate((node, inside, {**node, "_partial_": True}, {"a": [{"b": node}]})):
        kind, load = LOADS[number % len(LOADS)]
        task = {"denoiser": config, "conditioner": config, "classifier": config}
        path = stranger(hostile.folder / f"{number}", {"autoencoder": config, "task": task}, kind=kind)
        with hostile.attempt(f"{target} in a {kind} checkpoint"):
            load(path)
        with hostile.attempt(f"{target} built"):
            build(config)
        assert validate(OmegaConf.create({"part": config})), "the command line's check has nothing against it"


def test_targets_on_the_command_line(hostile, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    named = [target for target in TARGETS if target.isprintable() and "__" not in target]
    lines = [f"+callbacks.x{i}._target_={target}" for i, target in enumerate(named)]
    argv = [str(REPOSITORY / "train.py"), "experiment=ldm_txt2img", f"run_dir={hostile.folder / 'run'}", *lines]
    monkeypatch.setattr(sys, "argv", argv)
    with hostile.attempt("the command line", harmless=True):
        assert launch.run(lambda cfg: pytest.fail("the job was begun"), "train") == launch.REFUSED
    said = capsys.readouterr().err
    hostile.tried += named
    assert [target for i, target in enumerate(named) if f"callbacks.x{i}._target_" not in said] == []
    assert not (hostile.folder / "run").exists()


@pytest.mark.parametrize(
    "text",
    [
        "autoencoder: {_target_: '${oc.env:LATENTDIFF_SECRET}'}",
        "autoencoder: {_target_: torch.nn.Linear, in_features: '${oc.env:LATENTDIFF_SECRET}', out_features: 1}",
        "autoencoder: {_target_: torch.nn.Linear, in_features: '${oc.decode:${oc.env:LATENTDIFF_SECRET}}'}",
        "autoencoder: {_target_: torch.nn.Linear, in_features: '${add:1,2}', out_features: 1}",
        "autoencoder: {_target_: torch.nn.Linear, in_features: '${hydra:runtime.cwd}', out_features: 1}",
        "autoencoder: ${other}\nother: {_target_: os.system}",
        f"autoencoder: !!python/object/apply:os.system ['{TOUCH}']",
        f"autoencoder: !!python/object/new:os.system ['{TOUCH}']",
        "autoencoder: !!python/name:os.system ''",
        "autoencoder: !!python/module:os ''",
        "autoencoder: &a {_target_: torch.nn.Identity}\nagain: *a",
        "autoencoder: {_target_: torch.nn.Identity, _args_: [1]}",
        "autoencoder: {_target_: torch.nn.Identity, _recursive_: false}",
        "autoencoder: {_target_: [os.system]}",
        "autoencoder: {_target_: {_target_: os.system}}",
    ],
)
def test_stored_configurations(place, stranger, text: str) -> None:
    path = stranger(place.folder / "checkpoint", text)
    with place.attempt(text):
        load_codec(path)


@pytest.mark.parametrize("tag", ["apply:os.system", "new:os.system", "name:os.system"])
def test_tags_in_an_experiment(place, tag: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    shutil.copytree(REPOSITORY / "configs", place.folder / "configs")
    file = place.folder / "configs" / "experiment" / "evil.yaml"
    file.write_text(f"# @package _global_\nseed: !!python/object/{tag} ['{TOUCH}']\n")
    monkeypatch.setattr(sys, "argv", [str(place.folder / "train.py"), "experiment=evil"])
    with place.attempt(f"!!python/object/{tag} in an experiment", harmless=True):
        assert launch.run(lambda cfg: pytest.fail("the job was begun"), "train") == launch.REFUSED
    assert "could not determine a constructor for the tag" in capsys.readouterr().err


@pytest.mark.faults
def test_no_secret_is_in_what_a_run_writes(server, stage_one, place) -> None:
    run_dir, key = place.folder / "run", "0123456789abcdef" * 2 + "01234567"
    command = (*stage_one, "max_batches=2", "logger=wandb")
    server.done(
        run_dir, command, WANDB_API_KEY=key, WANDB_MODE="offline", WANDB_SILENT="true", AWS_SECRET_ACCESS_KEY=key
    )
    files = [path for path in run_dir.parent.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if key.encode() in path.read_bytes()] == []
    place.tried.append("secrets")


def test_checks_find_an_execution(place) -> None:
    """The canary sings where something does run."""
    with pytest.raises(AssertionError, match="unguarded"), place.attempt("unguarded", harmless=True):
        torch.load(place.folder / EVIL, weights_only=False)
    assert place.executed.pop() == place.tried.pop() == "unguarded"
    assert place.canary.exists()
