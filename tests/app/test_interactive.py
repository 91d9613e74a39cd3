from __future__ import annotations

import sys

import pytest
import torch

from latentdiff.app.interactive import load, run, show
from latentdiff.config.errors import InputError, RunError


def test_a_program_that_refuses_says_why_and_raises(tmp_path, capsys):
    before = list(sys.argv)
    with pytest.raises(RunError, match=r"'python train\.py' ended with exit code 2"):
        run(f"python train.py experiment=ldm_txt2imq run_dir={tmp_path / 'run'}", quiet=True)
    assert "did you mean ldm_txt2img" in capsys.readouterr().err
    assert sys.argv == before
    assert not (tmp_path / "run").exists()


def test_verbs_run_and_quiet_hides_what_they_say(tmp_path, capsys):
    with pytest.raises(RunError, match="'latentdiff shards' ended with exit code 2"):
        run(f"latentdiff shards verify '{tmp_path}/not there'")
    assert "not there" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rm -r runs", "python other.py", "train.py experiment=ae_kl", "", "python"])
def test_nothing_else_is_run(command):
    with pytest.raises(
        InputError, match=r"expected 'python train\.py\|evaluate\.py\|sample\.py \.\.\.' or 'latentdiff"
    ):
        run(command)


def test_loads_what_sample_would_load(tmp_path):
    with pytest.raises(InputError, match=r"guidance\.scal"):
        load(str(tmp_path), "guidance.scal=2")
    with pytest.raises(InputError, match="checkpoint"):
        load(str(tmp_path))


def test_draws_every_image_under_its_caption(monkeypatch):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    show(images, ["a", "b", "c", "d", "a very long caption that is broken"], columns=3)
    axes = shown[0].axes
    assert [axis.get_title().replace("\n", " ") for axis in axes[:5]][3:] == ["d", "a very long caption that is broken"]
    assert [axis.images[0].get_array().max() for axis in axes[:5]] == [0, 1, 2, 3, 4]
    assert len(axes) == 6
    assert not axes[5].images
    plt.close(shown[0])
