"""sample.py's modes, with a generator that knows its data and a conditioner that keeps what it is given."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from latentdiff.app import schema
from latentdiff.app.generate import Generator
from latentdiff.app.sampling import images as sample_images
from latentdiff.app.sampling import record as sample_record
from latentdiff.app.sampling import sample
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import ClassifierFree, Unguided
from latentdiff.diffusion.parameterization import Sample
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.types import Batch, Conditioning

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SIZE = 16

MASKS = {"mask": {"_target_": "latentdiff.data.masks.RandomMasks"}}
SMALL = {"low_res": {"_target_": "latentdiff.data.degradations.Degraded", "factor": 4}}
MAPS = {"segmentation": {"_target_": "latentdiff.data.segmentation.SegmentationMaps", "classes": 7}}
EDGES = {"segmentation": {"_target_": "latentdiff.data.segmentation.EdgeMaps"}}
SIZES = {"size": {"_target_": "latentdiff.data.sizes.SizeAndCrop"}}


class Averaging:
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
    """A denoiser that knows E[x0 | x_t] for data N(0, 1/4), and adds the condition's vector to it."""

    t_max = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.path, self.parameterization = RectifiedFlow(), Sample()
        self.backbone = SimpleNamespace(factor=2)
        self.weight = nn.Parameter(torch.zeros(()))

    def denoise(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        alpha, sigma = (c.view(-1, 1, 1, 1) for c in self.path.alpha_sigma(t))
        return alpha / 4 / (alpha**2 / 4 + sigma**2) * x_t + cond.vector[:, :, None, None]


class Keeping:
    """Conditions on the length of captions, and keeps the batches that it is called with."""

    drop, parts = 0.1, ("text",)

    def __init__(self) -> None:
        self.seen: list[Batch] = []
        self.limit: int | None = None

    def __call__(self, batch: Batch, codec: object = None, draws: object = None) -> Conditioning:
        """Raises RuntimeError beyond ``limit`` batches."""
        if len(self.seen) == self.limit:
            raise RuntimeError("no more")
        self.seen.append(batch)
        lengths = [len(caption) / 20 for caption in batch.caption or [""] * len(batch)]
        return Conditioning(vector=torch.tensor(lengths)[:, None])

    def null(self, batch: Batch, codec: object = None) -> Conditioning:
        return Conditioning(vector=torch.zeros(len(batch), 1))

    def cut_captions(self, captions: list[str]) -> list[tuple[str, int]]:
        return [(caption, len(caption)) for caption in captions if len(caption) > 20]


@functools.cache
def composed() -> DictConfig:
    schema.register()
    cfg, faults = compose(CONFIGS, "sample", ["checkpoint=here", "trainer=cpu", "seeds=[0,1]"])
    assert faults == []
    return cfg


class Programme:
    """sample.py on that generator; ``conditioner`` is the checkpoint's configuration of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.home, self.conditioner, self.guidance = home, Keeping(), Unguided()
        self.cfg = composed()
        monkeypatch.setattr(sample.store, "resolve", lambda *_, **__: home)
        monkeypatch.setattr(sample.store, "read_manifest", lambda *_: SimpleNamespace(kind="diffusion"))
        monkeypatch.setattr(sample, "load_generator", lambda *_, **__: self.generator)
        monkeypatch.setattr(sample.run_record, "keep", lambda *_, **__: None)
        monkeypatch.setattr(sample_record, "model_identity", lambda *_: {"digest": "d"})

    def __call__(self, reads: dict, **given: object) -> Path:
        """The run directory."""
        parts = {
            "denoiser": Gaussian().eval(),
            "conditioner": self.conditioner,
            "codec": Averaging(),
            "sampler": DDIM(),
            "grid": Uniform(),
            "steps": 10,
            "guidance": self.guidance,
            "image_size": SIZE,
        }
        own = {"sampler": {"steps": 10}, "guidance": {"scale": 1.0}, "conditioner": reads}
        config = OmegaConf.create({**own, "data": {"module": {"class_names": ["box", "ring"]}}})
        self.generator = Generator(LatentPipeline(**parts), config, None)
        given = {"run_dir": str(self.home / f"run{len(list(self.home.glob('run*')))}"), **given}
        sample.run(OmegaConf.merge(self.cfg, given))
        return Path(given["run_dir"])

    @property
    def batch(self) -> Batch:
        return self.conditioner.seen[-1]


@pytest.fixture
def programme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programme:
    return Programme(monkeypatch, tmp_path)


def picture(where: Path, name: str, values: np.ndarray) -> str:
    path = where / name
    Image.fromarray(values).save(path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A smooth image of 16 x 20 pixels, its mask and its map, and small and large ones."""
    ramp = np.linspace(60, 200, 20).astype(np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    mask = np.zeros((16, 20), np.uint8)
    mask[4:10, 6:12] = 255
    classes = (np.arange(20)[None] // 3).repeat(16, 0).astype(np.uint8)
    strange = classes.copy()
    strange[3, 9:11] = 9
    pictures = {
        "image": ramp,
        "mask": mask,
        "coloured": mask[..., None] * np.array([1, 0, 0], np.uint8),
        "map": classes,
        "strange": strange,
        "narrow": mask[:, :16],
        "empty": mask * 0,
        "edge": np.pad(mask[:, 8:] * 0, ((0, 0), (8, 0)), constant_values=0)
        + (np.arange(20) == 0).astype(np.uint8) * 255,
        "small": ramp[:4, :4],
        "large": np.zeros((40, 17, 3), np.uint8),
        "tiny": ramp[:3, :3],
        "layer": np.stack([mask] * 4, axis=2),
    }
    found = {name: picture(tmp_path, f"{name}.png", values) for name, values in pictures.items()}
    (tmp_path / "broken.png").write_bytes(Path(found["map"]).read_bytes()[:45])
    (tmp_path / "text.png").write_text("not a picture")
    return {**found, **{name: str(tmp_path / f"{name}.png") for name in ("broken", "text")}}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def text(path: Path) -> dict[str, str]:
    return dict(Image.open(path).text)


def test_a_model_without_a_condition_needs_seeds_alone(programme: Programme) -> None:
    out = programme({})
    files = ["0000-seed0.png", "0001-seed1.png", "grid.png", "samples.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert set(text(out / "0000-seed0.png")) == {"seed", "latentdiff"}
    batch = programme.batch
    assert (batch.caption, batch.label, batch.image, batch.mask) == (None,) * 4
    assert np.abs(pixels(out / "0000-seed0.png") - pixels(out / "0001-seed1.png")).max() > 20


def test_prompts_go_with_labels_one_by_one(programme: Programme) -> None:
    reads = {"reads_captions": True, "reads_labels": True, "classes": 2}
    out = programme(reads, prompt=["a", "bb"], label=["ring", 0], seeds=[3])
    assert (programme.batch.caption, programme.batch.label.tolist()) == (["a", "bb"], [1, 0])
    assert [text(out / f"{i:04d}-seed3.png")["label"] for i in range(2)] == ["ring", "0"]
    programme(reads, prompt="a", label=[-1, 0, 1], seeds=[3])
    assert (programme.batch.caption, programme.batch.label.tolist()) == (["a"] * 3, [-1, 0, 1])


def test_a_negative_prompt_keeps_the_other_conditions(programme: Programme, files: dict[str, str]) -> None:
    programme.guidance = ClassifierFree(scale=3.0)
    given = {"image": files["image"], "mask": files["mask"], "prompt": "abc", "negative_prompt": "abcdef"}
    programme({"reads_captions": True, "conditions": MASKS}, **given)
    cond, negative = programme.conditioner.seen[-2:]
    assert (cond.caption, negative.caption) == (["abc"] * 2, ["abcdef"] * 2)
    assert torch.equal(cond.mask, negative.mask)
    assert torch.equal(cond.image, negative.image)


def test_prompts_beyond_the_limit_are_named_once(programme: Programme, capsys) -> None:
    programme({"reads_captions": True}, prompt=["short", "this one is much too long"])
    assert capsys.readouterr().err == (
        "warning: the model does not read the end of prompts that are too long: 'this one is much too long' "
        "(25 tokens)\n"
    )


def test_image_to_image(programme: Programme, files: dict[str, str]) -> None:
    errors = []
    for strength in (0.2, 0.9):
        out = programme({"reads_captions": True}, prompt="", image=files["image"], strength=strength)
        original = pixels(Path(files["image"]))[:, 2:18]
        errors.append(np.abs(pixels(out / "0000-seed0.png") - original).mean())
        about = text(out / "0000-seed0.png")
        assert (about["strength"], about["image"], about["prompt"]) == (str(strength), files["image"], "")
    assert errors[0] < 25 < errors[1]
    assert programme.batch.mask is None


def shown(out: Path, column: int) -> np.ndarray:
    """A cell of the first row of the grid, at the images' size."""
    scale = 128 // SIZE
    left = 4 + column * (128 + 4)
    return pixels(out / "grid.png")[4 : 4 + 128, left : left + 128][::scale, ::scale]


def test_a_model_without_masks_fills_a_hole_by_repaint(programme: Programme, files: dict[str, str]) -> None:
    given = {"image": files["image"], "mask": files["mask"], "repaint": {"resample": 2}}
    out = programme({}, **given, trajectory=True)
    original, made = pixels(Path(files["image"]))[:, 2:18], pixels(out / "0001-seed1.png")
    hole = np.zeros((16, 16), bool)
    hole[4:10, 4:10] = True
    assert np.array_equal(made[~hole], original[~hole])
    assert np.abs(made - original)[hole].mean() > 15
    about = text(out / "0001-seed1.png")
    assert (about["paste"], about["repaint"]) == ("true", "jump_length=None, resample=2")
    assert (about["image"], about["mask"]) == (files["image"], files["mask"])
    assert np.array_equal(shown(out, 0)[~hole], original[~hole])
    assert np.array_equal(shown(out, 2), made)
    moving = Image.open(out / "trajectory-0000.png")
    assert (
        10 < moving.n_frames <= 10 + 9
    )  # a jump of one step from each of 9 places; Pillow drops a frame like the last
    raw = programme({}, **given, paste=False)
    unpasted = pixels(raw / "0001-seed1.png")
    assert 0 < np.abs(unpasted - original)[~hole].max() <= 8  # what averaging over 2 x 2 loses of the ramp
    assert np.array_equal(unpasted[hole], made[hole])
    assert text(raw / "0001-seed1.png")["paste"] == "false"


def test_a_model_of_masks_gets_them(programme: Programme, files: dict[str, str]) -> None:
    out = programme({"conditions": MASKS}, image=files["image"], mask=files["mask"])
    assert programme.batch.mask.sum().item() == 2 * 36
    assert programme.batch.image.shape == (2, 3, 16, 16)
    assert "repaint" not in text(out / "0000-seed0.png")
    assert json.loads(text(out / "0000-seed0.png")["latentdiff"])["steps"] == 10


def test_a_model_of_small_images_gets_them_reduced(programme: Programme, files: dict[str, str]) -> None:
    programme({"conditions": SMALL}, image=[files["small"], files["image"]])
    small = programme.batch.low_res
    assert (programme.batch.image, small.shape) == (None, (4, 3, 4, 4))
    assert torch.equal(small[0], torch.from_numpy(pixels(Path(files["small"]))).permute(2, 0, 1))
    assert bool((small[2].float().mean((0, 1)).diff() > 0).all())


def test_a_model_of_maps_gets_them_cut_like_images(programme: Programme, files: dict[str, str]) -> None:
    out = programme({"conditions": MAPS | SIZES}, map=files["map"])
    assert programme.batch.segmentation[0, 0].tolist() == [(i + 2) // 3 for i in range(16)]
    assert programme.batch.size.tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert len(np.unique(shown(out, 0).reshape(-1, 3), axis=0)) == 6


def test_edges_are_taken_of_an_image_or_given(programme: Programme, files: dict[str, str], tmp_path: Path) -> None:
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 200
    programme({"conditions": EDGES}, image=picture(tmp_path, "step.png", step))
    edges = programme.batch.segmentation[0]
    assert (edges[:, 7:9] == 1).all()
    assert edges[:, :4].sum() == edges[:, 12:].sum() == 0
    programme({"conditions": EDGES}, map=picture(tmp_path, "edges.png", edges.numpy()))
    assert torch.equal(programme.batch.segmentation[0], edges)


def test_an_image_is_the_same_in_any_batch(programme: Programme, files: dict[str, str]) -> None:
    given = {"image": [files["image"], files["image"]], "mask": files["mask"], "repaint": {"resample": 3}}
    together = programme({}, **given)
    apart = programme({}, **given, batch_size=1)
    for path in sorted(together.glob("0*.png")):
        assert np.abs(pixels(path) - pixels(apart / path.name)).max() <= 1
        one, other = ({**text(each), "latentdiff": None} for each in (path, apart / path.name))
        assert one == other


WRONG = {
    "no prompt": ({"reads_captions": True}, {}, "prompt: which"),
    "unread prompt": ({}, {"prompt": "a"}, "prompt: the model reads no captions"),
    "unread negative": ({}, {"negative_prompt": "a"}, "negative_prompt: the model reads no captions"),
    "negative without guidance": (
        {"reads_captions": True},
        {"prompt": "a", "negative_prompt": "b"},
        "negative_prompt: Unguided as configured compares",
    ),
    "no label": ({"reads_labels": True, "classes": 2}, {}, "label: which class"),
    "unread label": ({}, {"label": 1}, "label: nothing reads it here"),
    "unknown class": (
        {"reads_labels": True, "classes": 2},
        {"label": 2},
        r"unknown class 2; expected 0 to 1 \(box, ring",
    ),
    "class below": ({"reads_labels": True, "classes": 2}, {"label": -2}, "unknown class -2"),
    "unknown name": (
        {"reads_labels": True, "classes": 2},
        {"label": "rin"},
        "unknown class 'rin'; did you mean ring.*known are box, ring",
    ),
    "not a number": ({}, {"numbers": float("nan")}, "numbers: expected a finite number, got nan"),
    "beyond float32": ({}, {"numbers": [0.5, 1e39]}, r"numbers: expected a finite number, got 1e\+39"),
    "no number": ({"reads_labels": True}, {"label": 1.5}, "label: expected the number or the name of a class, got 1.5"),
    "lists that differ": (
        {"reads_captions": True, "reads_labels": True},
        {"prompt": ["a", "b"], "label": [1, 0, 1]},
        "prompt: expected one value, or a list of one for each .* given are 2 of prompt, 3 of label",
    ),
    "a hole in a list": ({"reads_captions": True}, {"prompt": ["a", None]}, "prompt: expected one value, or a list"),
    "no prompts": ({"reads_captions": True}, {"prompt": []}, "prompt: expected one value, or a list"),
    "no size": ({}, {"size": "big"}, "size: expected pixels of a side, or .* got big"),
    "three sides": ({}, {"size": [8, 8, 8]}, "size: expected pixels of a side"),
    "no multiple": ({}, {"size": [16, 18]}, "size: expected multiples of 4 .* got 16x18"),
    "text for seeds": ({}, {"seeds": ["a"]}, "seeds: expected whole numbers, e.g. .* got 'a'"),
    "half a seed": ({}, {"seeds": 0.5}, "seeds: expected whole numbers, e.g. .* got 0.5"),
    "other weights": ({}, {"weights": "raw"}, "weights: expected one of ema, model, got 'raw'"),
    "no seeds": ({}, {"seeds": []}, "seeds: at least one"),
    "no batch": ({}, {"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    "missing file": ({}, {"image": "no/such.png", "strength": 0.5}, "there is no file 'no/such.png'"),
    "broken file": ({}, {"image": "@broken", "strength": 0.5}, "image: '.*broken.png' cannot be used: not a readable"),
    "strength 0": ({}, {"image": "@image", "strength": 0.0}, r"strength: expected a share of the steps in \(0, 1\]"),
    "strength above 1": ({}, {"image": "@image", "strength": 1.2}, "strength: expected .* got 1.2"),
    "strength below a step": ({}, {"image": "@image", "strength": 0.05}, "0.05 of 10 steps is not one step"),
    "strength of nothing": ({}, {"strength": 0.5}, "strength: of which image"),
    "mask of nothing": ({}, {"mask": "@mask"}, "mask: of which image"),
    "image for nothing": ({}, {"image": "@image"}, "image: for what"),
    "unread map": ({}, {"map": "@map"}, "map: the model reads no maps"),
    "mask of another size": (
        {},
        {"image": "@image", "mask": "@narrow"},
        "narrow.png' is 16x16 pixels, its image 20x16",
    ),
    "a photograph": ({}, {"image": "@image", "mask": "@image"}, "is no mask: 85% of its pixels are grey; expected"),
    "a coloured mask": ({}, {"image": "@image", "mask": "@coloured"}, "is no mask: 11% of its pixels have a colour"),
    "nothing to make": ({}, {"image": "@image", "mask": "@empty"}, "has no white inside the centre part"),
    "white outside": ({}, {"image": "@image", "mask": "@edge"}, "has no white inside the centre part"),
    "jump too long": (
        {},
        {"image": "@image", "mask": "@mask", "repaint": {"jump_length": 10}},
        "a jump of 10 steps does not fit into 10",
    ),
    "no passes": ({}, {"image": "@image", "mask": "@mask", "repaint": {"resample": 0}}, "resample and jump_length"),
    "a hole, no mask": ({"conditions": MASKS}, {"image": "@image"}, "image, mask: which"),
    "a hole, no image": ({"conditions": MASKS}, {}, "image, mask: which"),
    "nothing to enlarge": ({"conditions": SMALL}, {}, "image: which"),
    "too large": (
        {"conditions": SMALL},
        {"image": "@large"},
        "large.png' is 17x40 pixels; expected a small image: 4x4 pixels, or up to the 16x16",
    ),
    "too small": (
        {"conditions": SMALL},
        {"image": "@tiny"},
        "tiny.png' is 3x3 pixels; expected a small image",
    ),
    "white strokes on a layer": ({}, {"image": "@image", "mask": "@layer"}, "layer.png' has transparency"),
    "no map at all": ({"conditions": MAPS}, {"map": "@text"}, "text.png' cannot be used: it is no PNG"),
    "no repainting": ({}, {"image": "@image", "mask": "@mask", "repaint": None}, "repaint: expected its settings"),
    "enlarged and varied": ({"conditions": SMALL}, {"image": "@small", "strength": 0.5}, "mask, strength: the model"),
    "small and masked": ({"conditions": SMALL | MASKS}, {"image": "@image"}, "sample.py takes one"),
    "no map": ({"conditions": MAPS}, {}, "map: which"),
    "no edges": ({"conditions": EDGES}, {}, "map: which.*or image="),
    "a picture for a map": ({"conditions": MAPS}, {"map": "@image"}, "map: '.*image.png' is in colours"),
    "an unknown class in the map": ({"conditions": MAPS}, {"map": "@strange"}, "holds the class 9 in 2 of its pixels"),
    "a broken map": ({"conditions": MAPS}, {"map": "@broken"}, "map: '.*broken.png' cannot be used"),
    "a map of another size": (
        {"conditions": MAPS},
        {"map": "@narrow", "image": "@image", "strength": 0.5},
        "narrow.png' is 16x16 pixels, its image 20x16",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_anything_is_made(
    programme: Programme, files: dict[str, str], tmp_path: Path, case: str
) -> None:
    reads, given, message = WRONG[case]
    named = {k: files[v[1:]] if isinstance(v, str) and v.startswith("@") else v for k, v in given.items()}
    with pytest.raises(InputError, match=message):
        programme(reads, **named)
    assert programme.conditioner.seen == []
    assert not list(tmp_path.glob("run*"))


def test_pasting_leaves_batches_without_a_hole_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    batch = Batch(keys=["a", "b"], image=255 - images)
    assert torch.equal(sample_images.pasted(images, batch), images)
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    mask[:, :, 1] = 1
    got = sample_images.pasted(images, replace(batch, mask=mask))
    assert torch.equal(got[:, :, 1], images[:, :, 1])
    assert torch.equal(got[:, :, [0, 2, 3]], 255 - images[:, :, [0, 2, 3]])


def test_images_are_written_batch_by_batch_and_not_made_again(programme: Programme, files: dict[str, str]) -> None:
    given = {"prompt": ["a", "bb", "ccc"], "batch_size": 2, "run_dir": str(programme.home / "kept")}
    conditioned, programme.conditioner.limit = programme.conditioner, 1
    with pytest.raises(RuntimeError, match="no more"):
        programme({"reads_captions": True}, **given)
    out = Path(given["run_dir"])
    first = ["0000-seed0.png", "0001-seed1.png"]
    assert sorted(path.name for path in out.iterdir()) == [*first, "samples.json"]
    before = [(out / name).stat().st_mtime_ns for name in first]
    conditioned.seen.clear()
    conditioned.limit = None
    programme({"reads_captions": True}, **given)
    assert [batch.caption for batch in conditioned.seen] == [["bb", "bb"], ["ccc", "ccc"]]
    assert [(out / name).stat().st_mtime_ns for name in first] == before
    assert len(list(out.glob("0*.png"))) == 6
    with pytest.raises(InputError, match=r'holds images made otherwise: images.0000-seed0.png.prompt = "a" there, "d"'):
        programme({"reads_captions": True}, **{**given, "prompt": ["d", "bb", "ccc"]})


def test_what_stands_without_a_record_is_left(programme: Programme, tmp_path: Path) -> None:
    picture(tmp_path, "0001-seed1.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match=r"holds a '0001-seed1.png' and no samples\.json"):
        programme({}, run_dir=str(tmp_path))
    assert pixels(tmp_path / "0001-seed1.png").shape == (2, 2, 3)
    assert not (tmp_path / "samples.json").exists()


@pytest.mark.parametrize(
    ("name", "program"),
    [("checkpoints", None), ("metrics.jsonl", None), ("results.json", "sample"), ("config.yaml", "train")],
)
def test_a_folder_of_another_program_is_left(programme: Programme, tmp_path: Path, name: str, program: str) -> None:
    (tmp_path / name).touch()
    if program is not None:
        (tmp_path / "environment.json").write_text(json.dumps({"program": program}))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=f"holds {name}, which is not of sample.py; give another"):
        programme({}, run_dir=str(tmp_path))
    assert before == sorted(path.name for path in tmp_path.iterdir())
    assert programme.conditioner.seen == []


def test_the_grid_has_a_limit(programme: Programme, capsys) -> None:
    out = programme({}, seeds=list(range(70)), batch_size=35)
    assert capsys.readouterr().out == f"70 images and grid.png of the first 64 in {out}\n"
    assert pixels(out / "grid.png").shape[1] == 8 * (128 + 4) + 4
    assert np.array_equal(shown(out, 7), pixels(out / "0007-seed7.png"))
    assert len(json.loads((out / "samples.json").read_text())["images"]) == 70


def test_a_trajectory_of_each_scene(programme: Programme) -> None:
    out = programme({"reads_captions": True}, prompt=["a", "bb"], trajectory=True, batch_size=3)
    moving = sorted(path.name for path in out.glob("trajectory-*.png"))
    assert moving == ["trajectory-0000.png", "trajectory-0002.png", "trajectory-0003.png"]  # batches of 3, scenes of 2
    with Image.open(out / "trajectory-0003.png") as opened:
        opened.seek(opened.n_frames - 1)
        last = np.asarray(opened.convert("RGB")).astype(int)[4:132:8, 4:132:8]
    assert np.array_equal(last, pixels(out / "0003-seed1.png"))


def test_trajectories_of_images_that_stand_are_made(programme: Programme) -> None:
    given = {"prompt": ["a", "bb"], "batch_size": 2}
    reads = {"reads_captions": True}
    out = programme(reads, **given)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    programme(reads, **given, run_dir=str(out), trajectory=True)
    (out / "trajectory-0002.png").unlink()
    programme.conditioner.seen.clear()
    programme(reads, **given, run_dir=str(out), trajectory=True)
    assert {batch.caption[0] for batch in programme.conditioner.seen} == {"bb"}
    assert len(list(out.glob("trajectory-*.png"))) == 2
    assert before == {path.name: path.stat().st_mtime_ns for path in out.glob("0*.png")}


def test_other_sizes(programme: Programme, files: dict[str, str]) -> None:
    out = programme({"conditions": MASKS | SIZES}, image=files["image"], mask=files["mask"], size=[8, 20])
    assert pixels(out / "0000-seed0.png").shape == (8, 20, 3)
    batch = programme.batch
    assert (batch.image.shape, batch.mask.shape) == ((2, 3, 8, 20), (2, 1, 8, 20))
    assert batch.size.tolist() == [[8, 20, 0, 0, 8, 20]] * 2
    assert torch.equal(batch.image[0], torch.from_numpy(pixels(Path(files["image"]))[4:12]).permute(2, 0, 1))
    assert text(out / "0000-seed0.png").keys() == {"image", "mask", "seed", "paste", "latentdiff"}
    assert json.loads(text(out / "0000-seed0.png")["latentdiff"])["size"] == [8, 20]
    programme({"conditions": SMALL}, image=files["small"], size=8)
    assert programme.batch.low_res.shape == (2, 3, 2, 2)
