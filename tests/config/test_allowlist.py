from __future__ import annotations

import sys

import pytest
import torch

from latentdiff.config import allowlist
from latentdiff.config.errors import InputError


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("torch.nn.Linear", torch.nn.Linear),
        ("torch.optim.AdamW", torch.optim.AdamW),
        ("torch.optim.lr_scheduler.LambdaLR", torch.optim.lr_scheduler.LambdaLR),
    ],
)
def test_parts_resolve_to_what_they_name(target: str, expected: object) -> None:
    assert allowlist.resolve(target) is expected


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load_inline",
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.open",
        "functools.partial",
        "numpy.load",
        "webbrowser.open",
        "hydra.utils.instantiate",
        "latentdiff",
        "latentdiff_evil.run",
        "torch.nnx.Thing",
        "torchmetrics.image.FrechetInceptionDistance",
        "latentdiff.app.launch.launch",
        "latentdiff.config.instantiate.build",
        "latentdiff.config.allowlist.importlib.import_module",
        "latentdiff.config.errors.InputError",
        "latentdiff.training.slurm.requeue",
        "latentdiff.diffusion.noise.stable_hash",
        "latentdiff.types.torch.load",
        "latentdiff.types.torch",
        "latentdiff.types.Callable",
        "latentdiff.types.dataclass",
        "latentdiff.types.replace",
        "latentdiff.types.Tensor",
        "latentdiff.types.Batch.__init__.__globals__",
        "torch.nn.modules.module.functools.partial",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.torch",
        "torch.optim.optimizer.functools.partial",
        "torch.nn.Module.load_state_dict",
        "torch.nn.Linear.__init__",
        "torch.nn.functional.relu",
        "torch.nn.init.normal_",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "pytorch_lightning.cli.LightningCLI",
        "pytorch_lightning.core.saving.load_hparams_from_yaml",
        "pytorch_lightning.callbacks.model_checkpoint.os.system",
        "pytorch_lightning.loggers.csv_logs.os",
        "torch..nn.Linear",
        "torch.nn.Linear ",
        "torch.nn.Linear\n",
        "",
        None,
        3,
        ["torch.nn.Linear"],
    ],
)
def test_attacks_are_refused(target: object) -> None:
    with pytest.raises(InputError):
        allowlist.resolve(target)


def test_a_name_off_the_list_is_not_even_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "canary_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="may not be built"):
        allowlist.resolve("canary_module.Thing")
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize(
    ("target", "near"),
    [
        ("torch.nn.Linaer", "did you mean Linear"),
        ("torch.optim.Adamw", "did you mean AdamW"),
        ("latentdiff.difusion.path.RectifiedFlow", "did you mean diffusion"),
    ],
)
def test_the_nearest_name_is_offered(target: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        allowlist.resolve(target)
