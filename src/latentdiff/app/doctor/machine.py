"""What a machine has: versions, extras, devices, memory, disk, weights."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

import latentdiff
from latentdiff.app.doctor.findings import NOTE, OK, PROBLEM, Finding
from latentdiff.app.doctor.memory import available_memory, total_memory
from latentdiff.app.told import counted
from latentdiff.checkpoint.space import free_bytes, readable
from latentdiff.data.worker import available_cores
from latentdiff.evaluation.card import source_revision
from latentdiff.nn.precision import computes_in_bf16

EXTRAS = {
    "eval": (("torch_fidelity",), "FID and its kin by the published Inception"),
    "hf": (("transformers", "sentencepiece"), "BERT, T5 and DINOv2"),
    "remote": (("fsspec", "s3fs", "gcsfs", "huggingface_hub"), "shards behind s3://, gs:// and hf://"),
    "shards": (("pyarrow", "datasets"), "shards from Parquet and HuggingFace sets"),
    "sweep": (("optuna", "hydra_plugins.hydra_joblib_launcher"), "latentdiff sweep, jobs beside each other"),
    "slurm": (("hydra_plugins.hydra_submitit_launcher",), "jobs of a multirun through SLURM"),
    "completion": (("shtab",), "latentdiff completion"),
    "demo": (("gradio",), "latentdiff page"),
    "hub": (("huggingface_hub",), "latentdiff export --push"),
    "diffusers": (("diffusers", "transformers"), "evaluate.py pipeline=FOLDER"),
}
"""Extra -> the modules that it installs, and what they give."""

WEIGHTS = {
    "LPIPS (VGG16)": ("vgg16-397923af.pth", "reconstruction.perceptual.weights=FILE"),
    "Inception": ("weights-inception-2015-12-05-6726825d.pth", "the option weights of metrics=inception"),
}
"""Files in torch's cache, by what they are for, and how others are named."""
ROOMY = 10 * 2**30
"""Bytes of free disk below which a note is due."""


def examine_machine(*, outputs: str, data: str) -> Iterator[Finding]:
    """``outputs`` and ``data``: folders whose disks are looked at."""
    revision = source_revision(Path(latentdiff.__file__).parent) or "no repository"
    yield Finding(OK, "latentdiff", f"{latentdiff.__version__} ({revision[:10]}), Python {platform.python_version()}")
    lightning, hydra = version("pytorch-lightning"), version("hydra-core")
    yield Finding(OK, "torch", f"{torch.__version__}, Lightning {lightning}, Hydra {hydra}")
    yield from _gpus()
    bf16 = "bfloat16" if computes_in_bf16("cpu") else "no bfloat16: trains in float32"
    memory = total_memory()
    held = "" if memory is None else f", {readable(memory)} of memory, {readable(available_memory())} of it available"
    cores, threads = counted(available_cores(), "core"), counted(torch.get_num_threads(), "thread")
    yield Finding(OK, "CPU", f"{cores}, {bf16}{held}; torch uses {threads}")
    for key, folder in (("paths.outputs", outputs), ("paths.data", data)):
        yield _disk(key, Path(folder))
    yield from _extras()
    yield from _weights()


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding(NOTE, "GPU", f"none that torch can use ({built}); trainer=auto takes the CPU")
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
    yield Finding(OK, "CUDA", f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}")
    for index in range(torch.cuda.device_count()):
        properties, (free, total) = torch.cuda.get_device_properties(index), torch.cuda.mem_get_info(index)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16: trains in float32"
        tf32 = "TF32" if properties.major >= 8 else "no TF32"
        text = f"{properties.name}, {readable(total)}, {readable(free)} of it free, {bf16}, {tf32}"
        busy = free < total / 2
        note = "; another process holds more than half of its memory" if busy else ""
        yield Finding(NOTE if busy else OK, f"GPU {index}", text + note)


def _disk(key: str, folder: Path) -> Finding:
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(parent, os.W_OK):
        return Finding(PROBLEM, "disk", f"'{folder}' cannot be written; name another folder with {key}=DIR")
    free = free_bytes(folder)
    return Finding(OK if free >= ROOMY else NOTE, "disk", f"{readable(free)} free for '{folder}' ({key})")


def _extras() -> Iterator[Finding]:
    present, missing = [], []
    for extra, (modules, gives) in EXTRAS.items():
        absent = [module for module in modules if not _is_installed(module)]
        if absent:
            missing.append(Finding(NOTE, f"extra {extra}", f"{gives}: pip install 'latentdiff[{extra}]'"))
        else:
            present.append(extra)
    yield Finding(OK, "extras", ", ".join(present) or "none")
    yield from missing


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package of a module within one
        return False


def _weights() -> Iterator[Finding]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for what, (name, option) in WEIGHTS.items():
        path = folder / name
        found = f"'{path}'" if path.is_file() else f"not in '{folder}': downloaded on first use, or give {option}"
        yield Finding(OK if path.is_file() else NOTE, "weights", f"{what}: {found}")
    cached = _hub_cache()
    models = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cached.glob("models--*"))
    text = ", ".join(models) if models else "no models; CLIP, BERT, T5 and DINOv2 are downloaded on first use, or named"
    yield Finding(OK if models else NOTE, "weights", f"Hugging Face cache '{cached}': {text}")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE  # open_clip brings it

    return Path(HF_HUB_CACHE)
