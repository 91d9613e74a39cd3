from __future__ import annotations

from pathlib import Path

import pytest

from latentdiff.app import schema

FILES = {
    "train.yaml": """
defaults: [train_schema, _self_, data: shapes, sampler: ddim, task: plain, trainer: cpu, hydra: plain, experiment: null]
max_batches: 10
global_batch: 4
""",
    "hydra/plain.yaml": "# @package hydra\nrun: {dir: .}\nsweep: {dir: ., subdir: .}\noutput_subdir: null\n",
    "data/shapes.yaml": "train: null\nsize: 64\n",
    "sampler/ddim.yaml": "solver: {_target_: torch.nn.Dropout, p: 0.5}\nsteps: 5\n",
    "sampler/euler.yaml": "solver: {_target_: torch.nn.Identity}\nsteps: 5\n",
    "sampler/fast/heun.yaml": "solver: {_target_: torch.nn.Identity}\nsteps: 2\n",
    "trainer/cpu.yaml": "devices: 1\n",
    "task/plain.yaml": "_target_: torch.nn.Dropout\np: 0.25\n",
    "experiment/tiny.yaml": "# @package _global_\nmax_batches: 7\n",
    "experiment/typo.yaml": "# @package _global_\nmax_batchs: 7\n",
    "experiment/mistyped.yaml": "# @package _global_\nmax_batches: ture\n",
    "experiment/wrong_group.yaml": "# @package _global_\ndefaults:\n  - override /sampler: eular\n",
    "experiment/broken.yaml": "# @package _global_\nmax_batches: [1\n",
    "experiment/dangling.yaml": "# @package _global_\nseed: ${nowhere}\n",
    "experiment/wrong_part.yaml": "# @package _global_\ntask:\n  p: high\n  inplase: true\n",
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A small tree of configurations that uses the real schema."""
    schema.register()
    for name, text in FILES.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "configs"
