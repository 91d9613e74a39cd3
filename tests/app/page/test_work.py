"""The demo page's work, without gradio and without a browser: images of forms, previews, and an end to them."""

from __future__ import annotations

import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from latentdiff.app.composed import composed
from latentdiff.app.generate import generator_of
from latentdiff.app.page import progress as page_progress
from latentdiff.app.page.form import HOLE, IMAGE, Form
from latentdiff.app.page.progress import StoppedError, Visitor
from latentdiff.app.page.work import Made, Studio
from latentdiff.app.sampling import record as sample_record
from latentdiff.app.sampling import sample
from latentdiff.checkpoint.models import DiffusionModel
from latentdiff.config.errors import InputError
from latentdiff.diffusion.parameterization import Sample
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.types import Batch, Conditioning

SIZE = 16
NAMES = ["box", "ring"]


class Averaging(nn.Module):
    """A latent is the mean of a block of 2 x 2 pixels in [-1, 1]."""

    channels, factor = 3, 2

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean = nn.functional.avg_pool2d(image, 2)
        return mean, torch.ones_like(mean)

    def draw(self, moments: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        return moments[0] + moments[1] * noise

    def decode(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Gaussian(nn.Module):
    """E[x0 | x_t] of data N(0, 1/4), and the condition's vector; ``wait`` holds up its second call."""

    t_max = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.path, self.parameterization, self.backbone = RectifiedFlow(), Sample(), nn.Identity()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls, self.wait = 0, None

    def denoise(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.calls += 1
        if self.calls == 2 and self.wait is not None:
            self.wait.wait(timeout=30)
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(t))
        return alpha / 4 / (alpha**2 / 4 + sigma**2) * x_t + cond.vector[:, :, None, None]


class Lengths(nn.Module):
    """Conditions on the length of captions; reads 40 letters."""

    drop, parts = 0.1, ("text",)

    def forward(self, batch: Batch, codec: object = None, draws: object = None) -> Conditioning:
        return Conditioning(vector=torch.tensor([[len(one) / 40] for one in batch.caption or [""] * len(batch)]))

    def null(self, batch: Batch, codec: object = None) -> Conditioning:
        return Conditioning(vector=torch.zeros(len(batch), 1))

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        return [(caption, len(caption)) for caption in captions if len(caption) > 40]


CONFIG = {
    "conditioner": {"reads_captions": True},
    "data": {"size": SIZE, "module": {"class_names": NAMES}},
    "sampler": {
        "solver": {"_target_": "latentdiff.diffusion.samplers.euler.Euler"},
        "grid": {"_target_": "latentdiff.diffusion.grids.Uniform"},
        "steps": 6,
    },
    "guidance": {"_target_": "latentdiff.diffusion.guidance.ClassifierFree", "scale": 2.0},
}


@pytest.fixture
def model(studio: Studio) -> DiffusionModel:
    """It reads captions."""
    return studio.model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    path = tmp_path_factory.mktemp("page") / "last"
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    parts = {"denoiser": Gaussian().eval(), "conditioner": Lengths().eval(), "codec": Averaging()}
    model = DiffusionModel(config=OmegaConf.create(CONFIG), manifest=None, path=path, **parts)
    studio = Studio(model=model, path=path, base=[f"checkpoint={path}", "trainer=cpu"])
    yield studio
    studio.close()


@pytest.fixture
def studio(opened: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """As at its opening, and quick to report."""
    monkeypatch.setattr(sample_record, "model_identity", lambda *_: {"digest": "d"})
    monkeypatch.setattr(page_progress, "EVERY", 0.02)
    opened.model.config.guidance = CONFIG["guidance"]
    opened.model.denoiser.calls, opened.model.denoiser.wait = 0, None
    return opened


ASKED = Form(prompt="a ring", steps=6, count=2, seed=7, scales={"guidance.scale": 2.0})


def made_of(studio: Studio, form: Form, folder: Path) -> Made:
    *_, made = studio.follow(form, folder, Visitor())
    return made


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def drawing(folder: Path, *, alpha: int = 180) -> dict[str, object]:
    """A smooth image of 16 x 20 pixels, with 6 x 6 of it painted over."""
    ramp = np.linspace(60, 200, 20).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    layer = np.zeros((16, 20, 4), np.uint8)
    layer[4:10, 6:12] = (255, 0, 255, alpha)
    Image.fromarray(ramp).save(folder / "background.png")
    Image.fromarray(layer).save(folder / "layer.png")
    return {"background": str(folder / "background.png"), "layers": [str(folder / "layer.png")], "composite": None}


FORMS = {
    "text": {"negative_prompt": "a, 'b' ${c}"},
    "an image": {"start": IMAGE, "strength": 0.5, "sampler": "dpmpp_2m"},
    "a hole": {"start": HOLE},
}


@pytest.mark.parametrize("case", FORMS)
def test_sample_py_makes_the_same_files_from_the_command(
    studio: Studio, model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (folder := tmp_path / "page").mkdir()
    painted_over = drawing(tmp_path)
    form = replace(ASKED, **FORMS[case], drawing=painted_over, image=painted_over["background"])
    made = made_of(studio, form, folder)
    assert [path.name for path in made.files] == ["0000-seed7.png", "0001-seed8.png"]
    assert [path.name for path in made.drawn] == (["image.png", "mask.png"] if case == "a hole" else [])

    def loaded(cfg, path, device, precision, weights):
        return generator_of(model, cfg, device, precision)

    python, script, *overrides = shlex.split(made.command)
    assert (python, script) == ("python", "sample.py")
    monkeypatch.setattr(sample.store, "resolve", lambda *_, **__: model.path)
    monkeypatch.setattr(sample.store, "read_manifest", lambda *_: type("Manifest", (), {"kind": "diffusion"}))
    monkeypatch.setattr(sample, "load_generator", loaded)
    monkeypatch.chdir(folder if case == "a hole" else tmp_path)
    sample.run(composed("sample", [*overrides, f"run_dir={tmp_path / 'run'}"]))
    for path in made.files:
        assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes()
    assert str(folder) not in str(made.about), "a visitor sees no place on the server but the checkpoint's"


def test_a_hole_is_filled_and_all_else_stays(studio: Studio, tmp_path: Path) -> None:
    (folder := tmp_path / "page").mkdir()
    made = made_of(studio, replace(ASKED, start=HOLE, drawing=drawing(tmp_path)), folder)
    original, image = pixels(tmp_path / "background.png")[:, 2:18], pixels(made.files[0])
    hole = np.zeros((16, 16), bool)
    hole[4:10, 4:10] = True
    assert np.array_equal(image[~hole], original[~hole])
    assert np.abs(image - original)[hole].mean() > 15
    assert made.about["repaint"] == "jump_length=None, resample=10"


def test_the_seed_the_scale_and_the_negative_prompt_count(studio: Studio, tmp_path: Path) -> None:
    def image(**changed: object) -> np.ndarray:
        return pixels(made_of(studio, replace(ASKED, **changed), tmp_path).files[0])

    same = image()
    for changed in ({"seed": 8}, {"scales": {"guidance.scale": 3.0}}, {"negative_prompt": "longer than it"}):
        assert not np.array_equal(image(**changed), same)


def test_what_the_model_does_not_read_is_said(studio: Studio, tmp_path: Path) -> None:
    long = "a ring " * 7
    note = made_of(studio, replace(ASKED, prompt=long), tmp_path).note
    assert note == f"the model did not read the end of '{long}' (49 tokens)"
    assert made_of(studio, ASKED, tmp_path).note == ""


def test_previews_come_closer_and_closer(studio: Studio, model: DiffusionModel, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(page_progress, "EVERY", 0.0)
    monkeypatch.setattr(page_progress, "SHARE", 1.0)
    told = [one for one in studio.follow(ASKED, tmp_path, Visitor()) if one is not None]
    final = np.stack([pixels(path) for path in told[-1].files])
    errors = [np.abs(one.images.permute(0, 2, 3, 1).numpy() - final).mean() for one in told[:-1]]
    assert [(one.step, one.total) for one in told[:-1]] == [(i, 6) for i in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10
    assert errors[-1] == 0


def test_a_stopped_sampling_makes_no_further_step(studio: Studio, model: DiffusionModel, tmp_path: Path) -> None:
    visitor, other = Visitor(), Visitor()
    model.denoiser.wait = Event()
    running = studio.follow(replace(ASKED, steps=1000), tmp_path, visitor)
    while model.denoiser.calls < 2:  # in which it waits
        next(running)
    waiting = studio.follow(ASKED, tmp_path, other)
    assert next(waiting) is None
    other.stopped = True
    with pytest.raises(StoppedError):
        list(waiting)
    visitor.stopped = True
    model.denoiser.wait.set()
    with pytest.raises(StoppedError):
        list(running)
    assert model.denoiser.calls == 2
    assert not list(tmp_path.glob("*.png"))
    assert len(made_of(studio, ASKED, tmp_path).files) == 2


def test_closing_stops_what_runs(model: DiffusionModel, tmp_path: Path) -> None:
    model.denoiser.wait = Event()
    studio = Studio(model=model, path=model.path, base=["trainer=cpu"])
    running = studio.follow(replace(ASKED, steps=1000), tmp_path, Visitor())
    while model.denoiser.calls < 2:
        next(running)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(studio.close)
        while not studio._served.stopped:
            time.sleep(0.001)
        model.denoiser.wait.set()
        closing.result(timeout=30)
    assert model.denoiser.calls == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler": "dpmpp_2m guidance=none"}, "Sampler: there is no 'dpmpp_2m guidance=none'"),
        ({"negative_prompt": "b", "scales": {"guidance.scale": 1.0}}, "negative_prompt: ClassifierFree as configured"),
        ({"start": IMAGE, "strength": 0.1}, "0.1 of 6 steps is not one step"),
        ({"start": IMAGE, "strength": 0.5, "image": "@text"}, "image: 'text.png' cannot be used"),
    ],
)
def test_a_request_that_the_model_refuses(studio: Studio, tmp_path: Path, changed: dict, message: str) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    image = str(tmp_path / "text.png") if changed.get("image") == "@text" else drawing(tmp_path)["background"]
    with pytest.raises(InputError) as refused:
        made_of(studio, replace(ASKED, **{**changed, "image": image}), tmp_path)
    assert message in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_several_scales(model: DiffusionModel, studio: Studio) -> None:
    assert studio.scales == {"guidance.scale": 2.0}
    assert studio.takes_negative
    several = {"_target_": "latentdiff.diffusion.guidance.Several", "scales": {"text": 3.0}}
    model.config.guidance = several
    assert studio.scales == {"+guidance.scales.text": 3.0}
    assert not studio.takes_negative
    model.config.guidance = {"_target_": "latentdiff.diffusion.guidance.Unguided"}
    assert studio.scales == {}


def test_the_samplers_that_fit_the_path(studio: Studio) -> None:
    assert studio.samplers[Form().sampler] == 6
    assert studio.samplers["heun_karras"] == 18
    assert {"ddim", "euler", "unipc", "plms"} < set(studio.samplers)
    assert not {"ddim_leading", "plms_leading", "checkpoint"} & set(studio.samplers), "grids of a table"
