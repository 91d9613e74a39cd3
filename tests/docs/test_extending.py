"""The examples of docs/extending.md, as they stand there: written to an empty project, held to the contracts, used."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from latentdiff.config.allowlist import PLUGINS
from latentdiff.config.instantiate import build
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.parameterization import Sample, V
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.ddim import DDIM
from latentdiff.types import Batch, Conditioning, Conditions

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "extending.md"
BLOCK = re.compile(r'^```(?:python|yaml) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CONFIG_DIR = "--config-dir=my_configs"


def loaded(path: Path):
    """A test module by its file: its checks, for parts that it does not find by itself."""
    spec = importlib.util.spec_from_file_location(f"checks_{path.parent.name}_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


samplers = loaded(TESTS / "contracts" / "test_samplers.py")
backbones = loaded(TESTS / "contracts" / "test_backbones.py")
conditioners = loaded(TESTS / "contracts" / "test_conditioners.py")
metrics = loaded(TESTS / "contracts" / "test_metrics.py")
e2e = loaded(TESTS / "e2e" / "conftest.py")


def checks(contract, *fixtures: str) -> list:
    """The contract's tests that ask for these fixtures alone."""
    functions = inspect.getmembers(contract, inspect.isfunction)
    asked = {name: set(inspect.signature(function).parameters) for name, function in functions}
    found = [function for name, function in functions if name.startswith("test_") and asked[name]]
    return [pytest.param(f, id=f.__name__) for f in found if asked[f.__name__] <= set(fixtures)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    """The project of the page, as the working directory in which its package is trusted."""
    home = tmp_path_factory.mktemp("my_project")
    for name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv(PLUGINS, "my_parts")
        yield home
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_parts"]:
        del sys.modules[name]


def node(project: Path, name: str):
    return OmegaConf.load(project / "my_configs" / f"{name}.yaml")


def test_each_example_is_one_file_and_one_yaml(project: Path) -> None:
    parts = {path.stem for path in (project / "my_parts").glob("*.py")}
    named = [re.findall(r"my_parts\.(\w+)\.", path.read_text()) for path in (project / "my_configs").rglob("*.yaml")]
    assert {name for names in named for name in names} == parts
    assert len(parts) == 10


@pytest.mark.parametrize("path", samplers.PATHS, ids=lambda path: type(path).__name__)
def test_the_sampler_keeps_the_contract_of_samplers(project: Path, path) -> None:
    midpoint = type(build(node(project, "sampler/midpoint").solver))
    contract = samplers.TestSampler()
    for name, check in inspect.getmembers(contract, inspect.ismethod):
        if name.startswith("test_"):
            check(sampler=midpoint, path=path)


def test_the_sampler_is_of_second_order(project: Path) -> None:
    solver = build(node(project, "sampler/midpoint").solver)
    errors = [
        samplers.gaussian_error(solver, RectifiedFlow(), samplers.times(steps).double()) for steps in (40, 80, 160)
    ]
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]


@pytest.mark.parametrize("check", checks(backbones, "make", "model"))
def test_the_backbone_keeps_the_contract_of_backbones(project: Path, check) -> None:
    make = backbones.maker(project / "my_configs" / "backbone" / "conv_net_tiny.yaml")
    given = {"make": make, "model": make()}
    check(**{name: given[name] for name in inspect.signature(check).parameters})


@pytest.mark.parametrize("part", ["label", "vector", "spatial"])
def test_the_backbone_reads_what_the_conditioner_gives(project: Path, part: str) -> None:
    make = backbones.maker(project / "my_configs" / "backbone" / "conv_net_tiny.yaml")
    backbones.test_the_conditioner_decides_what_else_is_read(make, part)


@pytest.mark.parametrize("check", checks(conditioners, "make", "conditioner"))
def test_the_conditioner_keeps_the_contract_of_conditioners(project: Path, check) -> None:
    def make(drop: float = 0.5):
        small = {"vector": 8, "module": {"drop": drop}}
        return build(OmegaConf.merge(node(project, "conditioner/brightness"), small).module)

    given = {"make": make, "conditioner": make()}
    check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_the_metric_keeps_the_contract_of_metrics(project: Path, tmp_path: Path) -> None:
    one = node(project, "metrics/colourfulness").colourfulness
    metrics.test_results_are_those_of_the_rows_however_they_are_cut(one, tmp_path)
    metrics.test_an_image_s_row_does_not_depend_on_its_neighbours(one)


def test_colourfulness_of_images_that_it_is_known_of(project: Path) -> None:
    """Gray has none; of one colour the offset counts, of two in equal shares also their spread."""
    metric = build(node(project, "metrics/colourfulness").colourfulness)
    images = torch.full((3, 3, 4, 4), 77, dtype=torch.uint8)
    images[1:, 0], images[1:, 1:] = 255, 0
    images[2, 0, :, :2], images[2, 2, :, :2] = 0, 255  # left blue: rg = 0, yb = -255; right red: rg = 255, yb = 127.5
    found = metric.measure(images, Batch(keys=["gray", "red", "both"]))["colourfulness"]
    red = 0.3 * (255**2 + 127.5**2) ** 0.5
    both = (127.5**2 + 191.25**2) ** 0.5 + 0.3 * (127.5**2 + 63.75**2) ** 0.5
    torch.testing.assert_close(found, torch.tensor([0.0, red, both]))


def test_the_path_is_consistent_and_can_be_sampled(project: Path) -> None:
    path = build(node(project, "diffusion/parabolic").path)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(path.time_at(path.log_snr(t)), t)
    for value, slope in zip(path.alpha_sigma(t), path.derivatives(t)):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), t)[0], slope)
    ends = torch.tensor([0.0, 1.0])
    assert [c.tolist() for c in path.alpha_sigma(ends)] == [[1, 0], [0, 1]]
    assert path.time_at(path.log_snr(ends)).tolist() == [0, 1]
    assert samplers.gaussian_error(DDIM(), path, samplers.times(200).double()) < 0.03


def test_the_weighting_is_the_paper_s(project: Path) -> None:
    weighting = build(node(project, "diffusion/parabolic").weighting)
    t, path = torch.tensor([0.2, 0.5, 0.8]), RectifiedFlow()
    torch.testing.assert_close(weighting(path, Sample(), t), torch.tensor([16.0, 1.0, 1.0]))
    assert bool(torch.isfinite(weighting(path, V(), torch.tensor([0.0, 1.0]))).all())


def test_guidance_is_free_of_the_part_along_the_answer(project: Path) -> None:
    """With ``along`` 1 it is classifier-free guidance, at scale 1 the conditional answer."""

    class Answer(torch.nn.Module):
        def forward(self, x, t, cond):
            return x * cond.vector.view(-1, 1, 1, 1) + cond.vector.view(-1, 1, 1, 1) ** 2

    denoiser = Denoiser(backbone=Answer(), path=RectifiedFlow(), parameterization=Sample())
    conditions = Conditions(*(Conditioning(vector=torch.full((2, 1), value)) for value in (1.5, 0.5)))
    x, t = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.7])
    cond = denoiser.denoise(x, t, conditions.cond)

    def guided(**options: float):
        return build(OmegaConf.merge(node(project, "guidance/projected"), options))(denoiser, x, t, conditions)

    plain = ClassifierFree(scale=3.0)(denoiser, x, t, conditions)
    torch.testing.assert_close(guided(scale=3.0, along=1.0), plain)
    torch.testing.assert_close(guided(scale=1.0), cond)
    across = ((guided(scale=3.0) - cond) * cond).sum((1, 2, 3))
    torch.testing.assert_close(across, torch.zeros(2), atol=1e-3, rtol=0)
    assert ((plain - cond) * cond).sum((1, 2, 3)).abs().min() > 1


def test_the_distance_is_zero_for_equal_images_alone(project: Path) -> None:
    distance = build(node(project, "reconstruction/spectral").perceptual)
    a, b = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert distance(a, a).tolist() == [0, 0]
    torch.testing.assert_close(distance(a, a + 0.5), torch.full((2,), 0.5 * 8 / (8 * 5)))  # the constant term alone
    assert distance(a, b).shape == (2,)


@pytest.fixture(scope="module")
def programs(project: Path):
    """Run in the project, on an ``.npz`` of images."""
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), dtype=np.uint8)
    np.savez(project / "toys.npz", images=images)
    return e2e.Programs(project)


DATA = ("data=arrays", "data.train=toys.npz")
STAGE_TWO = (
    "experiment=ldm_uncond",
    *e2e.SHORT,
    *e2e.FAST,
    *DATA,
    "data.size=16",
    "data.workers=0",
    "backbone=conv_net_tiny",
    "backbone.width=32",
    "backbone.depth=1",
    "conditioner=brightness",
    "conditioner.module.drop=0.5",
    "diffusion=parabolic",
    "optim=adamw",
    "guidance=projected",
    "sampler=midpoint",
    "sampler.steps=3",
    "+callbacks@callbacks.weight_norm=weight_norm",
    "+callbacks.samples.count=4",
)


@pytest.fixture(scope="module")
def first_stage(programs) -> Path:
    """Trained on the arrays, with the spectral distance in its loss."""
    run_dir = programs.home / "autoencoder"
    shapes = "data.module.source."
    given = [line for line in programs.stage_one if not line.startswith(shapes)]
    programs.done("train", CONFIG_DIR, *given, *DATA, "reconstruction=spectral", f"run_dir={run_dir}")
    return run_dir


@pytest.fixture(scope="module")
def model(programs, first_stage: Path) -> Path:
    """Every part of the page at once; a run that was stopped half way and went on."""
    run_dir = programs.home / "resumed"
    given = (CONFIG_DIR, *STAGE_TWO, *programs.use, f"first_stage.checkpoint={first_stage}")
    programs.done("train", *given, "max_batches=2", f"run_dir={run_dir}")
    programs.done("train", *given, f"run_dir={run_dir}")
    return run_dir


def lines(run_dir: Path) -> list[dict]:
    """Of metrics.jsonl, without what is measured of the machine."""
    kept = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    machine = ("images_per_second", "memory_gib", "data_wait")
    return [{name: value for name, value in line.items() if name not in machine} for line in kept]


def test_the_arrays_are_read_as_they_are_and_without_overlap(project: Path, programs, first_stage: Path) -> None:
    given = {"file": "toys.npz", "root": str(project / "data")}
    source = build(OmegaConf.merge(node(project, "data/arrays").module.source, given))
    train, val = source.open()
    assert (len(train), len(val)) == (24, 16)
    assert not set(train.all_keys()) & set(val.all_keys())
    images = np.load("toys.npz")["images"]
    for shards in (train, val):
        key = int(shards.key(3).rpartition("/")[2])
        with Image.open(io.BytesIO(shards.read_image(3))) as opened:
            assert np.array_equal(np.asarray(opened), images[key])


def test_all_parts_train_and_what_was_resumed_is_what_was_not(programs, first_stage: Path, model: Path) -> None:
    whole = programs.home / "whole"
    given = (*STAGE_TWO, *programs.use, f"first_stage.checkpoint={first_stage}")
    programs.done("train", CONFIG_DIR, *given, f"run_dir={whole}")
    assert lines(model) == lines(whole)
    training = [line for line in lines(whole) if "train/loss" in line]
    assert [line["batches_seen"] for line in training] == [1, 2, 3, 4]
    assert all(line["train/weight_norm"] > 1 for line in training)
    assert 0 < np.mean([line["train/dropped/number"] for line in training]) < 1


def test_the_metric_runs_in_an_evaluation(programs, model: Path) -> None:
    """Of the checkpoint, whose parts are known by their names; the folder is for the metric's."""
    given = (f"checkpoint={model}", "metrics=colourfulness", "num_images=8", "batch_size=8", "neighbours=0")
    programs.done("evaluate", CONFIG_DIR, *programs.use, *given, "run_dir=results")
    found = json.loads((programs.home / "results" / "results.json").read_text())
    assert found["results"]["colourfulness"]["colourfulness"] > 0
    assert found["controls"]["reconstructions"]["colourfulness"]["colourfulness"] > 0


def test_images_of_a_given_number_are_made_and_made_again(programs, model: Path) -> None:
    given = (*programs.use, f"checkpoint={model}", "seeds=[3]")
    programs.done("sample", *given, "numbers=[0.1,0.9]", "run_dir=made")
    record = json.loads((programs.home / "made" / "samples.json").read_text())
    assert [image["numbers"] for image in record["images"]] == [0.1, 0.9]
    programs.done("sample", *programs.use, "card=made/samples.json", "run_dir=again")
    names = [image["file"] for image in record["images"]]
    dark, bright = ((programs.home / "made" / name).read_bytes() for name in names)
    assert dark != bright
    with (
        Image.open(programs.home / "made" / names[0]) as before,
        Image.open(programs.home / "again" / names[0]) as after,
    ):
        assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize(
    ("given", "message"),
    [((), "numbers: which?"), (("numbers=bright",), "numbers: expected a number, .* got 'bright'")],
)
def test_a_number_that_is_missing_or_none_is_refused(programs, model: Path, given, message: str) -> None:
    outcome = programs("sample", *programs.use, f"checkpoint={model}", *given, "run_dir=none")
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err


@pytest.mark.parametrize("program", ["train", "evaluate", "sample"])
def test_without_the_variable_the_parts_are_refused(programs, model: Path, monkeypatch, program: str) -> None:
    monkeypatch.delenv(PLUGINS)
    monkeypatch.delitem(programs.environment, PLUGINS)
    given = ("experiment=ldm_uncond", "sampler=midpoint") if program == "train" else (f"checkpoint={model}",)
    outcome = programs(program, CONFIG_DIR, *given, *programs.use, f"run_dir=refused_{program}")
    assert outcome.code == 2
    assert re.search(rf"may not be built .*'my_parts', allow it with .* {PLUGINS}=my_parts", outcome.err), outcome.err


def test_a_name_in_neither_folder_is_refused_with_the_nearest(programs) -> None:
    outcome = programs("train", CONFIG_DIR, "experiment=ldm_uncond", "sampler=midpiont")
    assert outcome.code == 2
    assert "there is no 'sampler/midpiont'; did you mean midpoint?" in outcome.err


@pytest.mark.slow
def test_child_processes_know_the_folder_and_the_parts(programs) -> None:
    """The first stage's, and those of DDP."""
    small = ("debug=tiny_unet", "~callbacks.online", *DATA, "data.workers=0")
    given = ("experiment=ldm_uncond", *small, *programs.paths, "trainer=ddp_cpu", "run_dir=children")
    child = programs.start("train", CONFIG_DIR, *given)
    _, err = child.communicate(timeout=280)
    assert child.returncode == 0, err
    assert len(lines(programs.home / "children")) == 3
