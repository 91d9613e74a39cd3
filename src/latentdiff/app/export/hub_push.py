"""An exported folder into a repository of the Hugging Face hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType

from latentdiff.config.errors import InputError, RunError


def check_hub(repo: str) -> None:
    """Asks the hub who is calling. Raises InputError where huggingface_hub or a token is missing, the token is not
    taken, the hub does not answer, or ``repo`` is no name of a repository (owner/name)."""
    hub = _hub()
    try:
        hub.utils.validate_repo_id(repo)
    except hub.errors.HFValidationError as error:
        raise InputError(f"--push: '{repo}' is no repository of the Hugging Face hub (owner/name): {error}") from error
    if hub.get_token() is None:
        raise InputError(
            "--push: there is no token of the Hugging Face hub here; log in with `hf auth login`, or set HF_TOKEN to "
            "one that may write"
        )
    try:
        hub.HfApi().whoami()
    except Exception as error:  # of which class depends on the HTTP client that the hub's package uses
        raise InputError(
            f"--push: the Hugging Face hub takes no token from here, or is out of reach ({error})"
        ) from error


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Uploads ``folder`` as one commit to ``repo``, which is made where there is none; returns its address.

    Raises RunError where the hub refuses, and where it has a public repository of that name and a ``private`` one is
    wanted: the folder stands.
    """
    again = shlex.join(["hf", "upload", repo, str(folder), *(["--private"] if private else [])])
    api = _hub().HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        is_open = private and not api.repo_info(repo).private
        if not is_open:
            api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Export of latentdiff")
    except Exception as error:  # as above
        raise RunError(
            f"--push: '{folder}' is written, but not uploaded to '{repo}' ({error}); try again with: {again}"
        ) from error
    if is_open:
        raise RunError(
            f"--private: '{repo}' is a public repository, nothing was uploaded; '{folder}' is written. Make the "
            f"repository private on the hub, or choose another, and upload it with: {again}"
        )
    return str(address)


def _hub() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError(f"--push needs huggingface_hub ({error}): pip install 'latentdiff[hub]'") from error
    return huggingface_hub
