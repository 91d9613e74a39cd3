"""Path, prediction and grid of a whole model: in diffusers' ``scheduler_config.json`` and in LDM's tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.checkpoint.foreign.json_file import load_json
from latentdiff.config.errors import InputError
from latentdiff.diffusion.discrete_path import LinearDDPM, ScaledLinearDDPM

PATHS = {"linear": LinearDDPM, "scaled_linear": ScaledLinearDDPM}
"""By diffusers' ``beta_schedule``."""
PREDICTIONS = {"epsilon": "Epsilon", "v_prediction": "V", "sample": "Sample"}
"""diffusers' ``prediction_type`` -> class in ``diffusion.parameterization``."""

SPACINGS = {"leading": "Leading", "trailing": "Trailing", "linspace": "Linspace"}
"""diffusers' ``timestep_spacing`` -> class in ``diffusion.grids``."""

SCHEDULER = "scheduler_config.json"
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
"""Of LDM's text-to-image model and all of Stable Diffusion, scaled linear."""

_MULTISTEP = {"timestep_spacing": "linspace", "set_alpha_to_one": True}
_OWN_DEFAULTS: dict[str, dict[str, object]] = {
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "DDPMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "PNDMScheduler": {"set_alpha_to_one": False},
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"), _MULTISTEP),
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"), _MULTISTEP),
}
"""What the classes of diffusers differ in; those of the second half end at the data always."""

_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "clip_sample": False,
    "thresholding": False,
}
_SWITCHES = ("rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample", "thresholding")
_GRIDS = "latentdiff.diffusion.grids."


@dataclass(frozen=True)
class Schedule:
    """``kind``: key of ``PATHS``; ``prediction``: key of ``PREDICTIONS``; ``grid``: node of the sampling grid."""

    kind: str
    beta_start: float
    beta_end: float
    steps: int
    zero_terminal_snr: bool
    prediction: str
    grid: Mapping[str, object]

    @property
    def path(self) -> dict[str, object]:
        """Node of the path."""
        return {
            "_target_": f"latentdiff.diffusion.path.{PATHS[self.kind].__name__}",
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "steps": self.steps,
            "zero_terminal_snr": self.zero_terminal_snr,
        }

    @property
    def parameterization(self) -> dict[str, object]:
        """Node of the parameterization."""
        return {"_target_": f"latentdiff.diffusion.parameterization.{PREDICTIONS[self.prediction]}"}

    @property
    def spacing(self) -> str:
        """The grid's name, in small letters; diffusers knows those of ``SPACINGS``."""
        return str(self.grid.get("_target_", "")).rpartition(".")[2].lower()

    @property
    def is_leading(self) -> bool:
        return self.spacing == "leading"

    def tables(self) -> tuple[Tensor, Tensor]:
        """betas and alphas_cumprod (N,), float32, as LDM keeps them; alphas_cumprod[i] is alpha^2 at entry i."""
        settings = {name: value for name, value in self.path.items() if name != "_target_"}
        t = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        table = PATHS[self.kind](**settings).alpha_sigma(t)[0] ** 2
        return (1 - table / torch.cat([table.new_ones(1), table[:-1]])).float(), table.float()


def published(prediction: str, betas: Mapping[str, float] = SD_BETAS) -> Schedule:
    """Stable Diffusion's, with the grid of its own program."""
    return Schedule(
        "scaled_linear", **betas, steps=1000, zero_terminal_snr=False, prediction=prediction, grid=_leading()
    )


def read(path: Path) -> tuple[Schedule, list[str]]:
    """From diffusers' file, with notes on what is done otherwise here.

    Raises InputError where the path, the prediction or the grid cannot be that of the file.
    """
    given = load_json(path)
    name = given.get("_class_name")
    if name not in _OWN_DEFAULTS:
        raise InputError(f"'{path}' is of the scheduler {name!r}; expected one of {', '.join(_OWN_DEFAULTS)}")
    config = _DEFAULTS | _OWN_DEFAULTS[name] | given
    _check(config, path)
    schedule = Schedule(
        kind=config["beta_schedule"],
        beta_start=float(config["beta_start"]),
        beta_end=float(config["beta_end"]),
        steps=config["num_train_timesteps"],
        zero_terminal_snr=config["rescale_betas_zero_snr"],
        prediction=config["prediction_type"],
        grid=_grid(config),
    )
    return schedule, _notes(config)


def from_betas(betas: Tensor, alphas_cumprod: Tensor, prediction: str, path: Path) -> Schedule:
    """From the tables (N,) that LDM keeps in its files, in half precision too.

    Raises InputError where they are neither linear nor scaled linear.
    """
    betas, table = betas.double().flatten(), alphas_cumprod.double().flatten()
    if 3 <= len(betas) == len(table) and bool(torch.isfinite(table).all()):
        for start, end in (tuple(SD_BETAS.values()), tuple(float(f"{b:.6g}") for b in (betas[0], betas[-1]))):
            for kind in PATHS if 0 < start <= end < 1 else ():
                found = Schedule(kind, start, end, len(betas), bool(table[-1] == 0), prediction, _leading())
                if torch.allclose(found.tables()[1].double(), table, rtol=1e-3, atol=1e-6):
                    return found
    raise InputError(
        f"'{path}': its betas ({len(betas)} of them) are neither linear nor linear in their square roots, which are "
        "the tables known here"
    )


def of_nodes(path: Mapping, parameterization: Mapping, grid: Mapping) -> Schedule | None:
    """Of one of our configurations; None where its path or prediction is none that diffusers has."""
    kinds = {f"{cls.__name__}": kind for kind, cls in PATHS.items()}
    predictions = {cls: name for name, cls in PREDICTIONS.items()}
    kind = kinds.get(path["_target_"].rpartition(".")[2])
    prediction = predictions.get(parameterization["_target_"].rpartition(".")[2])
    if kind is None or prediction is None:
        return None
    signature = inspect.signature(PATHS[kind]).parameters
    settings = {name: path.get(name, parameter.default) for name, parameter in signature.items()}
    return Schedule(kind=kind, prediction=prediction, grid=dict(grid), **settings)


def describe(schedule: Schedule) -> dict[str, object]:
    """``scheduler_config.json`` of diffusers' DDIM."""
    grid, is_leading = schedule.grid, schedule.is_leading
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.kind,
        "clip_sample": False,
        "num_train_timesteps": schedule.steps,
        "prediction_type": schedule.prediction,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "set_alpha_to_one": grid.get("end_at_data", True) if is_leading else True,
        "steps_offset": grid.get("steps_offset", 1) if is_leading else 0,
        "timestep_spacing": schedule.spacing if schedule.spacing in SPACINGS else "trailing",
    }


def _leading(steps_offset: int = 1, end_at_data: bool = False) -> dict[str, object]:
    return {"_target_": f"{_GRIDS}Leading", "steps_offset": steps_offset, "end_at_data": end_at_data}


def _grid(config: dict) -> dict[str, object]:
    if config["timestep_spacing"] != "leading":
        return {"_target_": _GRIDS + SPACINGS[config["timestep_spacing"]]}
    # from entry 0 to itself DDIM does not move: there the grid goes on to the data
    return _leading(config["steps_offset"], bool(config["set_alpha_to_one"]) or config["steps_offset"] == 0)


def _notes(config: dict) -> list[str]:
    notes = []
    if config["_class_name"] != "DDIMScheduler":
        notes.append(
            f"the pipeline's scheduler is {config['_class_name']}; the default here is DDIM on its table and grid, "
            "sampler=NAME chooses another"
        )
    if config["clip_sample"] or config["thresholding"]:
        notes.append("the pipeline clips x0 in sampling (clip_sample, thresholding); here nothing is clipped")
    if not config["set_alpha_to_one"] and (config["timestep_spacing"] != "leading" or config["steps_offset"] == 0):
        notes.append("the pipeline stops at the table's first entry (set_alpha_to_one: false), here at the data")
    return notes


def _check(config: dict, path: Path) -> None:
    faults = []
    if config["beta_schedule"] not in list(PATHS):
        faults.append(("beta_schedule", " or ".join(PATHS)))
    if config["trained_betas"] is not None:
        faults.append(("trained_betas", "none"))
    if config["prediction_type"] not in list(PREDICTIONS):
        faults.append(("prediction_type", " or ".join(PREDICTIONS)))
    if config["timestep_spacing"] not in list(SPACINGS):
        faults.append(("timestep_spacing", "leading, trailing or linspace"))
    if type(config["num_train_timesteps"]) is not int or config["num_train_timesteps"] < 3:
        faults.append(("num_train_timesteps", "a whole number of at least 3"))
    if type(config["steps_offset"]) is not int or config["steps_offset"] < 0:
        faults.append(("steps_offset", "a whole number of at least 0"))
    if not all(isinstance(config[k], int | float) for k in SD_BETAS):
        faults.append(("beta_start", "a number, as beta_end"))
    elif not 0 < config["beta_start"] <= config["beta_end"] < 1:
        faults.append(("beta_start", "above 0 and at most beta_end, which is below 1"))
    faults += [(key, "true or false") for key in _SWITCHES if not isinstance(config[key], bool)]
    if faults:
        told = "; ".join(f"{key}: expected {wanted}, got {config[key]!r}" for key, wanted in faults)
        raise InputError(f"'{path}' describes a diffusion that cannot be had here: {told}")
