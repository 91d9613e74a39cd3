"""Loading through transformers: from a folder, the Hugging Face hub's cache or the hub, without minutes of retries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from safetensors import SafetensorError

from latentdiff.config.errors import InputError

T = TypeVar("T")
PROBE_SECONDS = 5.0
"""How long the hub may take to answer before a download begins; without asking, transformers retries for 23 seconds."""
FAULTS = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises on missing, broken or unfitting files and on packages that are not installed."""


def transformers_module() -> ModuleType:
    """transformers, which only the ``hf`` extra installs; InputError where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"this needs transformers ({error}): pip install 'latentdiff[hf]'; the conditioners text_transformer and "
            "open_clip_text and the features of open_clip do without"
        ) from error
    return transformers


def load_pretrained(load: Callable[..., T], name: str) -> T:
    """``load(name, local_files_only=...)``, which is tried on local files first.

    A cached model is taken as it is, without asking the hub for a newer one. Code in a model's repository is never
    executed: ``load`` must refuse it.

    Args:
        load: such as ``AutoTokenizer.from_pretrained``.
        name: a folder, or a model id of the hub (``owner/name``).

    Raises:
        InputError: neither; a folder or model that ``load`` cannot read; or one not in the cache while the hub does not
            answer within seconds.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load(load, str(folder), local=True)
    _check_id(name)
    try:
        return load(name, local_files_only=True)
    except FAULTS:  # not in the cache, or not all of it
        _check_hub(
            name,
            f"'{name}' is no folder either; fetch it where there is a network (hf download {name} --local-dir FOLDER), "
            "copy the folder here and give its path",
        )
    return _load(load, name, local=False)


def check_within_reach(model: str) -> None:
    """Raises InputError unless files of ``model`` (an id of the hub) are in the cache or the hub answers for it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    if not (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")).is_dir():
        _check_hub(model, "load it once where there is a network")


def _load(load: Callable[..., T], name: str, *, local: bool) -> T:
    try:
        return load(name, local_files_only=local)
    except FAULTS as error:
        raise InputError(
            f"'{name}' could not be loaded through transformers ({error}). Expected config.json, weights as "
            ".safetensors, since pickled ones are not read, and for text the tokenizer's files (tokenizer.json, "
            "vocab.txt or spiece.model)"
        ) from error


def _check_id(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"'{name}' is neither a folder on this machine nor a model id of the Hugging Face hub (owner/name)"
        ) from error


def _check_hub(name: str, remedy: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=PROBE_SECONDS)
    except RepositoryNotFoundError as error:
        raise InputError(
            f"the Hugging Face hub has no model '{name}' that can be read from here; check its id, or log in"
        ) from error
    except Exception as error:  # of which class depends on the HTTP client that the hub's package uses
        raise InputError(
            f"'{name}' is not in the Hugging Face cache, and the hub cannot be reached ({error}); {remedy}"
        ) from error
