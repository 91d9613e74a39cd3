from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

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


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package of the working directory, trusted."""
    package = tmp_path / "own_parts"
    package.mkdir()
    (package / "heun.py").write_text(
        "import os\nfrom collections import OrderedDict\nimport torch\nfrom torch.nn import Linear\n\n\n"
        "class Heun:\n    pass\n\n\ndef run():\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(allowlist.PLUGINS, "other_parts, own_parts")
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_parts"]:
        del sys.modules[name]


def test_a_trusted_package_s_classes_are_parts(plugin) -> None:
    found = allowlist.resolve("own_parts.heun.Heun")
    assert found.__name__ == "Heun"
    assert found.__module__ == "own_parts.heun"


@pytest.mark.parametrize(
    "target",
    [
        "own_parts.heun.run",
        "own_parts.heun.os",
        "own_parts.heun.os.system",
        "own_parts.heun.OrderedDict",
        "own_parts.heun.torch.load",
        "own_parts.heun.Heun.__init__",
        "own_parts2.heun.Heun",
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "latentdiff.app.launch.launch",
    ],
)
def test_a_trusted_package_opens_nothing_else(plugin, target: str) -> None:
    with pytest.raises(InputError):
        allowlist.resolve(target)


def test_what_is_not_trusted_is_not_imported_and_the_variable_is_named(plugin, monkeypatch) -> None:
    monkeypatch.setenv(allowlist.PLUGINS, "other_parts")
    with pytest.raises(InputError, match=r"trust the code of 'own_parts'.* LATENTDIFF_PLUGINS=other_parts,own_parts$"):
        allowlist.resolve("own_parts.heun.Heun")
    assert "own_parts" not in sys.modules


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.load", "latentdiff.app.launch.launch", "hydra.x.Y", "numpy.x.Y"]
)
def test_what_can_never_be_trusted_is_not_offered(target: str) -> None:
    with pytest.raises(InputError, match="may not be built") as caught:
        allowlist.resolve(target)
    assert allowlist.PLUGINS not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        "os",
        "subprocess",
        "builtins",
        "os.path",
        "own_parts,importlib",
        "torch",
        "torch.hub",
        "latentdiff.app",
        "*",
        "own parts",
        "pytorch_lightning",
        "../own_parts",
        "own_parts.",
        "numpy",
        "hydra.core",
        "own_parts,torchmetrics",
        "pip",
        "test",
    ],
)
def test_names_that_cannot_be_plugins_are_refused(plugin, monkeypatch, names: str) -> None:
    monkeypatch.setenv(allowlist.PLUGINS, names)
    with pytest.raises(InputError, match=f"{allowlist.PLUGINS}: expected names of packages or modules of your own"):
        allowlist.resolve("own_parts.heun.Heun")
    assert "own_parts" not in sys.modules


def test_a_module_alone_can_be_trusted(plugin, monkeypatch) -> None:
    (plugin / "euler.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv(allowlist.PLUGINS, "own_parts.heun")
    assert allowlist.resolve("own_parts.heun.Heun").__name__ == "Heun"
    with pytest.raises(InputError, match="may not be built"):
        allowlist.resolve("own_parts.euler.Euler")


def test_the_working_directory_is_searched_for_what_is_only_there(plugin) -> None:
    before = list(sys.path)
    for absent in ("other_parts.heun.Heun", "own_parts.haun.Heun"):
        with pytest.raises(InputError, match="there is no module"):
            allowlist.resolve(absent)
        assert (sys.path == before) == absent.startswith("other")
    assert sys.path == [*before, str(plugin.parent)]


def test_what_latentdiff_requires_is_no_plugin() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    groups = dict(re.findall(r"^(\w+) = \[\n?(.*?)\n?\]$", text, re.MULTILINE | re.DOTALL))
    named = "\n".join(group for name, group in groups.items() if name not in ("dev", "docs", "browser"))
    required = set(re.findall(r'"([\w-]+)(?:[<>=\[;]|")', named[named.index("torch") :])) - {"latentdiff"}
    homes: dict[str, set[str]] = {}
    for package, owners in metadata.packages_distributions().items():
        for owner in owners:
            homes.setdefault(owner.lower().replace("_", "-"), set()).add(package)
    installed = {name: homes[name.replace("_", "-")] for name in required if name.replace("_", "-") in homes}
    assert {"numpy", "pillow", "hydra-core", "torchmetrics", "wandb"} <= installed.keys()
    assert [name for name, packages in installed.items() if all(map(allowlist._trustable, packages))] == []


def test_an_installed_package_is_not_hidden_by_the_working_directory(plugin, tmp_path, monkeypatch) -> None:
    (tmp_path / "installed" / "own_parts").mkdir(parents=True)
    (tmp_path / "installed" / "own_parts" / "heun.py").write_text("class Installed:\n    pass\n")
    (tmp_path / "installed" / "own_parts" / "__init__.py").write_text("")
    (plugin / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    assert allowlist.resolve("own_parts.heun.Installed").__name__ == "Installed"


def test_a_trusted_package_that_is_not_there_says_where_it_is_looked_for(plugin) -> None:
    with pytest.raises(InputError, match="no module 'other_parts'; install it, put its folder on PYTHONPATH"):
        allowlist.resolve("other_parts.heun.Heun")
    with pytest.raises(InputError, match=r"no module 'own_parts\.huen'; did you mean heun"):
        allowlist.resolve("own_parts.huen.Heun")
