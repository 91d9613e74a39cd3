"""``latentdiff export --push``, against a hub that stands in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from latentdiff.app import cli
from latentdiff.app.export.hub_push import push
from latentdiff.checkpoint import store
from latentdiff.config.errors import RunError
from latentdiff.config.instantiate import build

hub = pytest.importorskip("huggingface_hub")
AUTOENCODER = {
    "_target_": "latentdiff.models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": "latentdiff.models.autoencoder.bottlenecks.kl.KL"},
    "channels": 32,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "latent_channels": 3,
}


class Hub:
    """In the place of ``HfApi``: keeps what it is asked for; ``fault`` is raised by the named call."""

    fault: str | None = None
    private = True
    """Of the repository, once it is there."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []

    def __call__(self) -> Hub:
        return self

    def whoami(self) -> dict:
        return self._called("whoami", {})

    def create_repo(self, repo: str, **settings: object) -> str:
        self._called("create_repo", {"repo": repo, **settings})
        return f"https://hub.example/{repo}"

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        files = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()}
        self._called("upload_folder", {"repo": repo_id, "files": files})

    def _called(self, name: str, settings: dict) -> dict:
        if self.fault == name:
            raise RuntimeError("403 Forbidden")
        self.calls.append((name, settings))
        return settings


@pytest.fixture
def api(monkeypatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(hub, "HfApi", made)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return made


@pytest.fixture
def export(tmp_path: Path):
    """``export(*options)``: exit code of the export of a first stage to ``tmp_path / "model"``."""
    weights = build(AUTOENCODER).state_dict()
    store.save(
        tmp_path / "run",
        kind="autoencoder",
        model={"latent_mean": torch.zeros(3), "latent_std": torch.ones(3)},
        ema={f"ema.model.{name}": value for name, value in weights.items()},
        config=yaml.safe_dump({"autoencoder": AUTOENCODER, "data": {"size": 16}}),
        counters={"batches_seen": 1, "images_seen": 2},
    )
    return lambda *options, form="latentdiff": cli.main(
        ["export", str(tmp_path / "run"), str(tmp_path / "model"), "--format", form, *options]
    )


def test_the_whole_folder_is_uploaded(api: Hub, export, tmp_path: Path, capsys) -> None:
    assert export("--push", "me/model", "--private") == 0
    names = [name for name, _ in api.calls]
    assert names == ["whoami", "create_repo", "upload_folder"]
    assert api.calls[1][1] == {"repo": "me/model", "private": True, "exist_ok": True}
    files = {str(p.relative_to(tmp_path / "model")) for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert api.calls[2][1] == {"repo": "me/model", "files": files}
    assert {"README.md", "checkpoints/last/ema.safetensors"} <= files
    assert "uploaded: https://hub.example/me/model" in capsys.readouterr().out


def test_nothing_is_done_without_a_token(api: Hub, export, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert export("--push", "me/model") == 2
    assert "there is no token of the Hugging Face hub" in capsys.readouterr().err
    assert (api.calls, (tmp_path / "model").exists()) == ([], False)


@pytest.mark.parametrize(
    ("options", "form", "fault", "message"),
    [
        (("--push", "me/model"), "latentdiff", "whoami", "takes no token from here, or is out of reach"),
        (("--push", "a/b/c"), "latentdiff", None, "'a/b/c' is no repository of the Hugging Face hub"),
        (("--push", "me/model"), "ldm", None, "--push uploads folders"),
        (("--private",), "latentdiff", None, "--private is for --push REPO"),
    ],
)
def test_faults_are_told_before_any_work(api: Hub, export, tmp_path, capsys, options, form, fault, message) -> None:
    api.fault = fault
    assert export(*options, form=form) == 2
    assert message in capsys.readouterr().err
    assert (api.calls, (tmp_path / "model").exists()) == ([], False)


def test_a_refused_upload_leaves_the_folder(api: Hub, export, tmp_path: Path, capsys) -> None:
    api.fault = "upload_folder"
    assert export("--push", "me/model") == 1
    said = capsys.readouterr().err
    assert "is written, but not uploaded to 'me/model' (403 Forbidden)" in said
    assert f"hf upload me/model {tmp_path / 'model'}\n" in said
    assert (tmp_path / "model/README.md").is_file()


def test_a_private_model_never_goes_to_a_public_repository(api: Hub, export, tmp_path: Path, capsys) -> None:
    api.private = False
    assert export("--push", "me/model", "--private") == 1
    assert [name for name, _ in api.calls] == ["whoami", "create_repo"]
    said = capsys.readouterr().err
    assert "'me/model' is a public repository, nothing was uploaded" in said
    assert (tmp_path / "model/README.md").is_file()


def test_the_command_that_tries_again_can_be_typed(api: Hub, tmp_path: Path) -> None:
    api.fault = "upload_folder"
    with pytest.raises(RunError, match=r"try again with: hf upload me/model '.*/a model' --private$"):
        push(tmp_path / "a model", "me/model", private=True)
