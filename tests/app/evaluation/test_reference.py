"""latentdiff reference on a handful of photographs that nobody took."""

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.app.cli import main
from latentdiff.data.shards import write_shards
from latentdiff.evaluation.baselines import RealImages
from latentdiff.evaluation.reference_file import ReferenceFile
from latentdiff.metrics.features.random_conv import RandomConvFeatures

REPOSITORY = Path(__file__).resolve().parents[3]


def photographs(n, seed, height=20, width=24):
    samples = []
    for picture in np.random.default_rng(seed).integers(0, 256, (n, 5, 6, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
        samples.append({"png": file.getvalue()})
    return samples


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(photographs(24, 0), folder / "train")
    write_shards(photographs(7, 1), folder / "val")
    return folder


@pytest.fixture
def arguments(shards, tmp_path):
    def of(*changes, name="r.npz"):
        data = [f"data.train={shards / 'train'}", f"data.val={shards / 'val'}", "data.size=16", "data.workers=0"]
        return ["reference", str(tmp_path / name), "data=webdataset", *data, "metrics=frechet", "trainer=cpu", *changes]

    return of


def test_the_file_is_of_the_images_that_evaluation_sees(arguments, tmp_path):
    """The photographs cut to their centre and resized as ``CoverCrop`` does, by hand."""
    assert main(arguments("batch_size=5")) == 0
    reference = ReferenceFile(tmp_path / "r.npz").of(RandomConvFeatures())
    cut = []
    for sample in photographs(24, 0):
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))[:, 2:22]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        cut.append(torch.nn.functional.interpolate(image, size=(16, 16), mode="bicubic", antialias=True))
    features = RandomConvFeatures()(torch.cat(cut), None)["pool"]
    torch.testing.assert_close(reference.features("pool"), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference.moments("pool").mean, features.double().mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reference.moments("pool").covariance, features.double().T.cov(), atol=1e-5, rtol=1e-5)


def test_the_record_says_what_the_images_are(arguments, tmp_path, capsys):
    assert main(arguments("split=val", "num_images=6", "features=3")) == 0
    record = ReferenceFile(tmp_path / "r.npz").record
    assert (record["count"], record["features"], record["duplicates"]) == (6, 3, 0)
    assert record["dataset"]["split"] == "val"
    assert record["images"]["size"] == 16
    assert record["images"]["background"] == [255, 255, 255]
    assert list(record["extractors"]) == ["randconv-v1"]
    assert record["made_with"]["torch"] == version("torch")
    assert len(ReferenceFile(tmp_path / "r.npz").of(RandomConvFeatures()).features("pool")) == 3
    assert "6 images of 16 pixels by randconv-v1" in capsys.readouterr().out


def test_an_interrupted_command_goes_on_and_ends_with_the_same_bytes(arguments, tmp_path, monkeypatch):
    made, whole = [], RealImages.__call__

    def interrupted(self, batch, seeds):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(batch.start)
        return whole(self, batch, seeds)

    monkeypatch.setattr(RealImages, "__call__", interrupted)
    assert main(arguments("batch_size=5")) == 130
    assert not (tmp_path / "r.npz").exists()
    assert main(arguments("batch_size=5", "data.size=32")) == 2
    made[:] = [None]
    assert main(arguments("batch_size=5")) == 0
    assert made == [None, 15, 20]
    made[:] = [None] * 10
    assert main(arguments("batch_size=5", name="s.npz")) == 0
    assert (tmp_path / "r.npz").read_bytes() == (tmp_path / "s.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.npz", "s.npz"]


IGNORED = {
    "seed": 3,
    "num_reference": 4,
    "prompts": "p.txt",
    "++reference": "r.npz",
    "sampler": "heun",
    "weights": "ema",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["num_images=25"], "25 are wanted, the split has 24 usable samples"),
        (["num_images=1"], "num_images: expected a whole number of at least 2, got '1'"),
        (["features=-1"], "features: expected a whole number of at least 0, got '-1'"),
        (["split=test"], "split: expected train or val, got 'test'"),
        (["metrics=reconstruction"], "none of these compares with real images"),
        (["metrics"], "metrics: choose those of the evaluation"),
        (["data"], "data: choose some"),
        (["metrics=inceptoin"], "inceptoin"),
        *(([f"{key}={value}"], f"{key}: a reference does not depend on it") for key, value in IGNORED.items()),
        (["checkpoint=x"], "checkpoint: its data are not looked at where others are given"),
        (["metrics=small", "features=3"], "features: those of 3 images would be kept; keep more"),
        (["metrics=small", "features=2000"], "features: those of 24 images would be kept; keep more"),
    ],
)
def test_faults_are_found_before_any_work(arguments, tmp_path, changes, said, monkeypatch, capsys):
    """``changes`` without a value: those settings are left out."""
    monkeypatch.setattr("latentdiff.checkpoint.lookup.resolve", Path)  # as if it were there
    changed = tuple(change.partition("=")[0] for change in changes)
    given = [each for each in arguments() if not each.startswith(changed)]
    assert main([*given, *(change for change in changes if "=" in change)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_left_alone(arguments, tmp_path, capsys):
    (tmp_path / "r.npz").write_text("mine")
    assert main(arguments()) == 2
    assert (tmp_path / "r.npz").read_text() == "mine"
    assert main(arguments(name="r.zip")) == 2
    assert "ends in .npz" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(arguments, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import sys\nfrom latentdiff.app.cli import main\nsys.exit(main())\n")
    for name, trainer in (("one.npz", "cpu"), ("two.npz", "ddp_cpu")):
        given = [each for each in arguments("batch_size=5", name=name) if each != "trainer=cpu"]
        command = [sys.executable, str(program), *given, f"trainer={trainer}"]
        subprocess.run(command, check=True, cwd=REPOSITORY, timeout=200)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_one_process_at_a_time_makes_a_file(arguments, tmp_path, capsys):
    beside = tmp_path / ".r.npz.making"
    beside.mkdir()
    holder = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(beside / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert main(arguments()) == 2
        process.communicate()
    assert "another process is making" in capsys.readouterr().err
    assert beside.is_dir()
