"""Path, prediction and grid, from diffusers' configurations and LDM's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentdiff.checkpoint.foreign.pipeline import schedule as schedules
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.diffusion.discrete_path import LinearDDPM, ScaledLinearDDPM

SD = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def written(folder: Path, **config) -> Path:
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return folder / "scheduler_config.json"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear", "beta_end": 0.02},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"set_alpha_to_one": True, "steps_offset": 0},
    ],
)
def test_table_and_times_are_those_of_diffusers(tmp_path: Path, changes: dict) -> None:
    ddim = pytest.importorskip("diffusers").DDIMScheduler
    config = SD | changes
    peer = ddim.from_config(config)
    peer.set_timesteps(10)
    schedule, _ = schedules.read(written(tmp_path, **config))
    path = build(schedule.path)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(path.alpha_sigma(t)[0] ** 2, peer.alphas_cumprod.double(), rtol=2e-5, atol=1e-6)
    times = build(schedule.grid)(path, 10)
    assert path.network_time(times[:-1]).round().int().tolist() == peer.timesteps.tolist()
    assert (times[-1] == 0) == (peer.config.set_alpha_to_one or schedule.grid["_target_"].endswith("Trailing"))
    again, _ = schedules.read(written(tmp_path, **schedules.describe(schedule)))
    assert again == schedule
    assert schedules.of_nodes(schedule.path, schedule.parameterization, schedule.grid) == schedule


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler; the default here is DDIM"),
        ({"clip_sample": True}, "clips x0"),
        ({"steps_offset": 0}, "stops at the table's first entry"),
        ({"timestep_spacing": "trailing"}, "stops at the table's first entry"),
    ],
)
def test_what_is_done_otherwise_is_said(tmp_path: Path, changes: dict, note: str) -> None:
    (said,) = schedules.read(written(tmp_path, **(SD | changes)))[1]
    assert note in said
    assert not schedules.read(written(tmp_path, **SD))[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "expected one of DDIMScheduler"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule: expected linear or scaled_linear"),
        ({"trained_betas": [0.1]}, "trained_betas: expected none"),
        ({"prediction_type": "flow"}, "prediction_type: expected epsilon"),
        ({"timestep_spacing": "other"}, "timestep_spacing"),
        ({"beta_end": 2}, "beta_start: expected above 0"),
        ({"beta_end": "x"}, "expected a number"),
        ({"num_train_timesteps": 1.5}, "num_train_timesteps"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"rescale_betas_zero_snr": None}, "true or false"),
    ],
)
def test_other_diffusions_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedules.read(written(tmp_path, **(SD | changes)))
    with pytest.raises(InputError, match="no readable JSON"):
        schedules.read(tmp_path / "nothing.json")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (ScaledLinearDDPM, {}),
        (ScaledLinearDDPM, {"beta_start": 0.0015, "beta_end": 0.0195}),
        (LinearDDPM, {"beta_start": 0.0015, "beta_end": 0.0155}),
        (ScaledLinearDDPM, {"zero_terminal_snr": True}),
    ],
)
def test_tables_of_ldm_are_recognised(cls: type, settings: dict, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and "beta_start" in settings:
        settings = settings | {"beta_start": float(torch.tensor(settings["beta_start"], dtype=dtype))}
        settings |= {"beta_end": float(torch.tensor(settings["beta_end"], dtype=dtype))}
    path = cls(**settings)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    table = path.alpha_sigma(t)[0] ** 2
    betas = 1 - table / torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    found = schedules.from_betas(betas.to(dtype), table.to(dtype), "epsilon", Path("file"))
    assert build(found.path).alpha_sigma(t)[0].sub(path.alpha_sigma(t)[0]).abs().max() < 1e-5
    assert found.path["_target_"].endswith(cls.__name__)
    assert found.zero_terminal_snr == settings.get("zero_terminal_snr", False)


def test_other_tables_are_refused() -> None:
    betas = torch.linspace(0.01, 0.1, 1000) ** 3
    with pytest.raises(InputError, match="neither linear nor linear in their square roots"):
        schedules.from_betas(betas, torch.cumprod(1 - betas, 0), "epsilon", Path("file"))


def test_a_path_that_diffusers_has_not_is_none() -> None:
    flow = {"_target_": "latentdiff.diffusion.path.RectifiedFlow"}
    table = {"_target_": "latentdiff.diffusion.path.ScaledLinearDDPM"}
    epsilon = {"_target_": "latentdiff.diffusion.parameterization.Epsilon"}
    assert schedules.of_nodes(flow, epsilon, {}) is None
    assert schedules.of_nodes(table, {"_target_": "latentdiff.diffusion.parameterization.Karras"}, {}) is None
    assert schedules.of_nodes(table, epsilon, {}).beta_end == 0.012
