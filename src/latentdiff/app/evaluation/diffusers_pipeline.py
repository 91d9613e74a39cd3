"""Text-to-image pipelines of diffusers, as folders, called like our own."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from latentdiff import durable
from latentdiff.checkpoint.foreign.json_file import load_json
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.types import Batch

TAKES = ("prompt", "num_inference_steps", "guidance_scale", "generator", "height")
"""What a pipeline from text to image is called with."""
INDEX, LIBRARIES = "model_index.json", ("diffusers", "transformers")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that make no image from a caption; a safety checker would blacken some."""


class DiffusersPipeline:
    """Images of a pipeline by captions. The noise of image i, at the start and on the way, is drawn on the CPU from
    ``seeds[i]`` alone.

    Loading runs no program of the folder: weights are safetensors, parts are diffusers' and transformers' own classes.

    Args:
        folder: with a ``model_index.json``.
        precision: of the network's autocast, None for float32. Text encoder and decoder run in float32.
        steps: sampling steps, None: the pipeline's own default; likewise ``scale``, of guidance.
        size: pixels of a side, None: the pipeline's own.

    Raises:
        InputError: diffusers is not installed; the folder is no pipeline, a part is missing, is of another library or
            has pickled weights alone, or it makes no images of captions.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: torch.device,
        precision: torch.dtype | None = None,
        steps: int | None = None,
        scale: float | None = None,
        size: int | None = None,
    ):
        self.folder, self.device, self.precision = Path(folder), device, precision
        self._parts = _parts(self.folder)
        self._left_out = [name for name in LEFT_OUT if name in self._parts]
        self._pipeline = _loaded(self.folder, self._left_out).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        known = inspect.signature(self._pipeline.__call__).parameters
        if missing := [name for name in TAKES if name not in known]:
            raise InputError(
                f"pipeline: a {type(self._pipeline).__name__} takes no '{missing[0]}'; expected one from text to image"
            )
        given = {"num_inference_steps": steps, "guidance_scale": scale}
        self._settings = {name: known[name].default if value is None else value for name, value in given.items()}
        network = getattr(self._pipeline, "unet", None) or getattr(self._pipeline, "transformer", None)
        if precision is not None:
            network.forward = torch.autocast(device.type, dtype=precision)(network.forward)
        self.size = (_side(size, network.config.get("sample_size"), self._pipeline.vae_scale_factor),) * 2

    @torch.inference_mode()
    def __call__(self, batch: Batch, seeds: list[int]) -> Tensor:
        """uint8 (B, 3, H, W) on the device. Raises InputError where a sample has no caption."""
        if batch.caption is None or not all(batch.caption):
            raise InputError("pipeline: every image needs a caption; give prompts=FILE, or data that have some")
        generators = [keyed_generator(seed, "diffusers") for seed in seeds]
        made = self._pipeline(
            prompt=batch.caption,
            generator=generators,
            height=self.size[0],
            width=self.size[1],
            output_type="pt",
            **self._settings,
        )
        return (made.images.float().clamp(0, 1) * 255).round().to(torch.uint8)

    def describe(self) -> dict[str, object]:
        """For the protocol card."""
        scheduler = self._pipeline.scheduler
        return {
            "pipeline": type(self._pipeline).__name__,
            "scheduler": {"name": type(scheduler).__name__, **_plain(dict(scheduler.config))},
            **self._settings,
            "left_out": self._left_out,
            "noise": "per image, CPU generator keyed by its seed",
            "precision": str(self.precision or torch.float32).removeprefix("torch."),
            "decoder_precision": "float32",
            "to_uint8": "round(clamp(x, 0, 1) * 255)",
            "library": f"diffusers {version('diffusers')}",
        }

    def sha256(self) -> str:
        """Of all the files of the parts that are used, with their names."""
        used = [name for name in self._parts if name not in self._left_out]
        files = sorted(path for name in used for path in (self.folder / name).rglob("*") if path.is_file())
        listed = "".join(f"{file.relative_to(self.folder).as_posix()} {durable.sha256(file)}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()


def _parts(folder: Path) -> list[str]:
    """Names of the pipeline's parts. Raises InputError for those whose classes are of neither library."""
    if not (folder / INDEX).is_file():
        raise InputError(f"pipeline: '{folder}' has no {INDEX}; expected the folder of a diffusers pipeline")
    index = load_json(folder / INDEX)
    listed = {name: value for name, value in index.items() if isinstance(value, list)}
    for name, value in {"the pipeline": ["diffusers", index.get("_class_name")], **listed}.items():
        kinds_known = len(value) == 2 and isinstance(value[1], str) and value[0] in LIBRARIES
        if value != [None, None] and not kinds_known and name not in LEFT_OUT:
            raise InputError(
                f"pipeline: '{folder / INDEX}': {name} is {value}; programs of the folder's own are not run, expected "
                f"classes of {' and '.join(LIBRARIES)}"
            )
    return [name for name, value in listed.items() if value != [None, None]]


def _loaded(folder: Path, left_out: list[str]):
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise InputError("pipeline: it needs diffusers: pip install 'latentdiff[diffusers]'") from error
    without = dict.fromkeys(left_out) | ({"requires_safety_checker": False} if "safety_checker" in left_out else {})
    try:
        return DiffusionPipeline.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            low_cpu_mem_usage=False,  # else it asks for accelerate
            **without,
        )
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise InputError(
            f"pipeline: diffusers cannot load '{folder}' ({error}); expected a whole pipeline with .safetensors weights"
        ) from error


def _side(wanted: int | None, latent: object, factor: int) -> int:
    """Pixels: those that are wanted, else those of the network's latents."""
    if wanted is None:
        if not isinstance(latent, int):
            raise InputError("pipeline: it does not say the size of its images; give data=... with data.size")
        return latent * factor
    if wanted % factor:
        raise InputError(f"data.size: the pipeline makes images of multiples of {factor} pixels, not of {wanted}")
    return wanted


def _plain(config: dict) -> dict[str, object]:
    """Without diffusers' own notes, which begin with an underscore."""
    kinds = (bool, int, float, str, type(None))
    return {key: value for key, value in config.items() if isinstance(value, kinds) and not key.startswith("_")}
