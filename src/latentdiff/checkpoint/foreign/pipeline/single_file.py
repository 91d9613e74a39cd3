"""Whole models as single files of Stable Diffusion 1 and 2: everything under LDM's names, without a configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from latentdiff.checkpoint.foreign import ldm
from latentdiff.checkpoint.foreign import reading as first_stages
from latentdiff.checkpoint.foreign.architecture import Foreign
from latentdiff.checkpoint.foreign.pipeline import schedule as schedules
from latentdiff.checkpoint.foreign.pipeline.schedule import Schedule
from latentdiff.checkpoint.foreign.pipeline.whole import Told, Whole
from latentdiff.checkpoint.foreign.statistics import Statistics, statistics_of
from latentdiff.checkpoint.foreign.text import hf, single_file, tokenizer
from latentdiff.checkpoint.foreign.text.architecture import ForeignText
from latentdiff.checkpoint.foreign.unet import ldm as unet_ldm
from latentdiff.checkpoint.foreign.unet.architecture import ForeignUNet
from latentdiff.checkpoint.foreign.weights import Contents, WeightsFile
from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.models.backbones.unet import UNet

SD_SCALE = 0.18215
"""Of Stable Diffusion 1's and 2's latents."""
SD_WIDTH, SD1_HEADS, SD2_HEAD_WIDTH = 320, 8, 64
"""Of the UNets: width of the first level, heads of SD 1, width of SD 2's heads."""

BETAS, TABLE = "betas", "alphas_cumprod"
"""Tensors (N,) of LDM's schedule."""
PREDICTION, SIZE = "prediction", "image_size"
"""Keys of the metadata of files that we write."""


def read(file: WeightsFile, told: Told) -> Whole:
    """The model in ``file``.

    Raises InputError where the UNet, the first stage or the text encoder is missing in it and not named, or where
    neither the file nor the user says what is needed.
    """
    _check_parts(file, told)
    unet = _with_heads(unet_ldm.read(file), told)
    notes: list[str] = []
    first_stage = ldm.read(file) if told.first_stage is None else first_stages.read(told.first_stage)
    prediction = _prediction(file, unet, told)
    return Whole(
        path=file.path,
        unet=unet,
        first_stage=first_stage,
        statistics=_statistics(first_stage, told, notes),
        text=_text(file, told),
        schedule=_schedule(file, prediction, notes),
        size=told.size or _size(file, unet, prediction),
        notes=notes,
    )


def _check_parts(file: WeightsFile, told: Told) -> None:
    faults = []
    if not any(name.startswith(unet_ldm.PREFIX) for name in file.names):
        faults.append(f"no UNet ({unet_ldm.PREFIX}*)")
    if told.first_stage is None and not any(name.startswith(ldm.PREFIX) for name in file.names):
        faults.append(f"no first stage ({ldm.PREFIX}*): name one with --first-stage PATH")
    if told.text_encoder is None and not single_file.holds(file):
        faults.append(
            f"no text encoder ({' or '.join(p + '*' for p in single_file.PREFIXES)}): name a folder of one and its "
            "tokenizer with --text-encoder PATH"
        )
    if faults:
        raise InputError(f"'{file.path}' is no whole model of Stable Diffusion 1 or 2; it has {'; '.join(faults)}")


def _with_heads(unet: ForeignUNet, told: Told) -> ForeignUNet:
    """The number of heads per level: the file's own, the user's, or those published for these sizes."""
    found = unet.architecture
    readers = [2**i in found.attention_factors for i in range(len(found.widths) - 1)] + [True]
    if told.unet_heads is not None:
        if wrong := [w for w, reads in zip(found.widths, readers) if reads and w % told.unet_heads]:
            raise InputError(f"--unet-heads: {told.unet_heads} heads do not divide the UNet's width {wrong[0]}")
        heads = tuple(told.unet_heads if reads else 0 for reads in readers)
    elif found.heads is not None:
        return unet
    elif found.channels == SD_WIDTH and found.context_dim in (768, 1024):
        each = [w // SD2_HEAD_WIDTH if found.use_linear else SD1_HEADS for w in found.widths]
        heads = tuple(n if reads else 0 for n, reads in zip(each, readers))
    else:
        raise InputError(
            f"'{unet.path}': its UNet has width {found.channels} and reads tokens of width {found.context_dim}, which "
            "is none of Stable Diffusion's, and such a file does not say the number of heads; give --unet-heads N"
        )
    return replace(unet, architecture=replace(found, heads=heads))


def _prediction(file: WeightsFile, unet: ForeignUNet, told: Told) -> str:
    """In diffusers' words."""
    if told.prediction is not None:
        return {"epsilon": "epsilon", "v": "v_prediction"}[told.prediction]
    if (said := file.metadata.get(PREDICTION)) in schedules.PREDICTIONS:
        return said
    if unet.architecture.use_linear:
        raise InputError(
            f"'{file.path}' looks like Stable Diffusion 2, whose files do not say what the UNet predicts; give "
            "--prediction epsilon (the base models, 512 px) or --prediction v (768 px)"
        )
    return "epsilon"


def _size(file: WeightsFile, unet: ForeignUNet, prediction: str) -> int:
    if (said := file.metadata.get(SIZE, "")).isdigit():
        return int(said)
    if unet.architecture.channels != SD_WIDTH:
        raise InputError(f"'{file.path}' does not say the size of its images; give --size PX")
    return 768 if unet.architecture.use_linear and prediction == "v_prediction" else 512


def _statistics(first_stage: Foreign, told: Told, notes: list[str]) -> Statistics:
    if first_stage.statistics is None and told.scale is None:
        notes.append(f"the file does not say how its latents are scaled: Stable Diffusion's factor {SD_SCALE} is taken")
        return first_stage.chosen_statistics(scale=SD_SCALE, shift=told.shift)
    return first_stage.chosen_statistics(scale=told.scale, shift=told.shift)


def _schedule(file: WeightsFile, prediction: str, notes: list[str]) -> Schedule:
    if {BETAS, TABLE} <= file.names:
        tables = file.load([BETAS, TABLE])
        return schedules.from_betas(tables[BETAS], tables[TABLE], prediction, file.path)
    notes.append("the file holds no betas: Stable Diffusion's are taken (scaled linear, 0.00085 to 0.012, 1000 steps)")
    return schedules.published(prediction)


def _text(file: WeightsFile, told: Told) -> ForeignText:
    if told.text_encoder is None:
        return single_file.read(file, heads=told.text_heads)
    folder = Path(told.text_encoder)
    model = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    return hf.read(model, pad_with_end=tokenizer.pads_with_end(words))


def contents(unet: UNet, codec: LatentCodec, text: ForeignText, schedule: Schedule, *, size: int | None) -> Contents:
    """A whole model of ours in this layout; the metadata say what the layout does not.

    Raises InputError where LDM has no such UNet or first stage.
    """
    parts = [unet_ldm.contents(unet, prefix=unet_ldm.PREFIX)]
    parts.append(ldm.contents(codec.autoencoder, statistics_of(codec), prefix=ldm.PREFIX))
    parts.append(single_file.contents(text))
    betas, table = schedule.tables()
    said = {PREDICTION: schedule.prediction} | ({} if size is None else {SIZE: str(size)})
    parts.append(Contents({BETAS: betas, TABLE: table}, said, []))
    return Contents(
        tensors={name: value for part in parts for name, value in part.tensors.items()},
        metadata={key: value for part in parts for key, value in part.metadata.items()},
        notes=[note for part in parts for note in part.notes],
    )
