"""Which first stage a configuration asks for, where it names one that another program wrote, and how one is trained in
a process of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from latentdiff.app.run import first_stage
from latentdiff.app.run.first_stage import Automatic, planned
from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers, reading
from latentdiff.checkpoint.foreign.architecture import Architecture
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import first_stage_record
from latentdiff.config.errors import InputError, RunError

ARCHITECTURE = Architecture(
    image_channels=3, channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, z_channels=4, embed_dim=4
)
SAID = Statistics((0.5,) * 4, (2.0,) * 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder that says the scale 0.5 and the shift 0.5."""
    torch.manual_seed(0)
    autoencoder = ARCHITECTURE.on_meta().to_empty(device="cpu")
    for p in autoencoder.parameters():
        torch.nn.init.normal_(p)
    diffusers.write(autoencoder, SAID, tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def ckpt(folder: Path) -> Path:
    """The same weights in LDM's layout, without a scale."""
    torch.save({"state_dict": reading.read(folder).weights}, folder.parent / "model.ckpt")
    return folder.parent / "model.ckpt"


@pytest.fixture
def resumed(tmp_path: Path):
    """``resumed(first, statistics)``: a stage-two checkpoint that was trained on them."""

    def make(first: Path, statistics: Statistics) -> Path:
        store.save(
            tmp_path / "ldm",
            kind="diffusion",
            model={"x": torch.zeros(1)},
            config="{}",
            counters={"batches_seen": 1, "images_seen": 2},
            first_stage=first_stage_record(first, statistics),
        )
        return tmp_path / "ldm"

    return make


def config(checkpoint: object = "auto", **given: object):
    return OmegaConf.create({"first_stage": {"checkpoint": str(checkpoint), "scale": None, "shift": None, **given}})


def test_a_folder_says_its_scale(folder: Path) -> None:
    found = planned(config(folder), None)
    assert (found.path, found.latent) == (folder, {"channels": 4, "factor": 4})
    assert found.statistics == SAID
    assert planned(config(folder, scale=0.25), None).statistics == Statistics((0.5,) * 4, (4.0,) * 4)
    assert planned(config(folder.parent), None).path == folder.parent  # a pipeline's folder


def test_a_file_needs_a_scale(ckpt: Path) -> None:
    with pytest.raises(InputError, match=r"does not say how its latents are scaled; give first_stage\.scale=NUMBER"):
        planned(config(ckpt), None)
    found = planned(config(ckpt, scale=0.5, shift=0.5), None)
    assert (found.latent, found.statistics) == ({"channels": 4, "factor": 4}, SAID)


def test_a_resumed_run_keeps_its_first_stage_and_its_scale(ckpt: Path, folder: Path, resumed) -> None:
    before = resumed(ckpt, SAID)
    for cfg in (config(), config(ckpt), config(ckpt, scale=0.5, shift=0.5), config("auto", scale=0.5, shift=0.5)):
        found = planned(cfg, before)
        assert (found.path, found.statistics) == (ckpt, SAID)
    with pytest.raises(InputError, match=r"first_stage\.scale and first_stage\.shift: '.*ldm' was trained on latents"):
        planned(config(ckpt, scale=0.25), before)
    with pytest.raises(InputError, match=r"'.*ldm' was trained on the first stage [0-9a-f]{12}, '.*vae' is [0-9a-f]"):
        planned(config(folder), before)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("vae", {"scale": "none"}, r"\(first_stage\.scale\) must be a number above 0, got 'none'"),
        ("vae", {"shift": "x"}, r"\(first_stage\.shift\) must be a number, got 'x'"),
        ("missing.ckpt", {"scale": 1.0}, r"first_stage\.checkpoint: .*1 missing \(decoder\.conv_in\.bias\)"),
        ("notes.txt", {}, r"first_stage\.checkpoint: .*is a file of no known kind"),
    ],
)
def test_faults_name_the_key(ckpt: Path, folder: Path, name: str, given: dict, message: str) -> None:
    home = ckpt.parent
    content = torch.load(ckpt, weights_only=True)["state_dict"]
    del content["decoder.conv_in.bias"]
    torch.save(content, home / "missing.ckpt")
    (home / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=message):
        planned(config(home / name, **given), None)


def test_a_scale_is_for_other_programs_files(tmp_path: Path) -> None:
    for checkpoint in ("auto", tmp_path):
        with pytest.raises(InputError, match=r"first_stage\.shift: it is for autoencoders of other programs"):
            planned(config(checkpoint, shift=0.0), None)


def automatic(folder: Path, **trainer: object) -> Automatic:
    parts = dict.fromkeys((*first_stage.DEFINING, "experiment"), 0)
    return Automatic(OmegaConf.create({**parts, "max_batches": 6, "trainer": trainer}), [], folder, {})


def save(run_dir: str, name: str, batches_seen: int) -> Path:
    place = Path(run_dir) / "checkpoints" / name
    counters = {"batches_seen": batches_seen, "images_seen": 2}
    store.save(place, kind="autoencoder", model={"x": torch.zeros(1)}, config="{}", counters=counters)
    return place


@pytest.mark.parametrize("name", ["last", "best", "batch-00000006"])
def test_the_newest_whole_checkpoint_says_whether_a_first_stage_is_complete(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    """Found after it was trained, and before when the same is asked for again."""
    trained = []

    def train(overrides: list[str]) -> None:
        trained.append(save(overrides[0].partition("=")[2].strip("'"), name, 6))

    monkeypatch.setattr(first_stage, "_train", train)
    for _ in range(2):
        assert automatic(tmp_path).locate("abc") == trained[0]
    assert len(trained) == 1
    (trained[0] / "model.safetensors").write_bytes(b"")
    automatic(tmp_path).locate("abc")
    assert len(trained) == 2


def test_a_first_stage_that_ends_too_early_is_a_fault_unless_its_time_was_up(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(first_stage, "_train", lambda overrides: None)
    with pytest.raises(RunError, match="has ended before batch 6"):
        automatic(tmp_path).locate("abc")
    with pytest.raises(SystemExit) as stopped:
        automatic(tmp_path, max_time="00:00:00:01").locate("abc")
    assert stopped.value.code == 0
    assert "trainer.max_time was up in the first stage; give the same command again" in capsys.readouterr().out


CHILD = """
import json, os, signal, sys, time
got = []
number = getattr(signal, sys.argv[1]) if sys.argv[1] else None
if number:
    signal.signal(number, lambda *_: got.append(number))
with open("child.json.tmp", "w") as file:
    json.dump({"environment": dict(os.environ), "group": os.getpgrp()}, file)
os.rename("child.json.tmp", "child.json")
while number and not got:
    time.sleep(0.01)
code = 128 + got[0] if got else int(os.environ["EXIT_CODE"])
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch) -> Path:
    """A program in the place of train.py; where it writes what it was given."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["child.py"])
    return tmp_path / "child.json"


def test_the_first_stage_keeps_the_cache_but_not_the_run_directory(child: Path, monkeypatch) -> None:
    for name in ("LATENTDIFF_CACHE", "LATENTDIFF_RUN_DIR", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("EXIT_CODE", "0")
    first_stage._train([""])
    given = json.loads(child.read_text())
    assert given["environment"]["LATENTDIFF_CACHE"] == "7"
    assert {"LATENTDIFF_RUN_DIR", "LOCAL_RANK", "MASTER_PORT"} & set(given["environment"]) == set()
    assert given["group"] != os.getpgrp()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [(1, RunError, "exit code 1"), (2, InputError, "was refused"), (-9, RunError, "ended by SIGKILL")],
)
def test_a_first_stage_that_fails(child: Path, monkeypatch, code: int, error: type[Exception], message: str) -> None:
    monkeypatch.setenv("EXIT_CODE", str(code))
    with pytest.raises(error, match=f"the first stage .*{message}"):
        first_stage._train([""])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_to_the_program_alone_reaches_the_first_stage(child: Path, capsys, name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def send() -> None:
        while not child.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(SystemExit) as stopped:
        first_stage._train([name])
    thread.join()
    assert stopped.value.code == 128 + number
    assert "stopped in the first stage; give the same command again" in capsys.readouterr().out
    assert signal.getsignal(number) == before
