"""evaluate.py in this process: first stages on a handful of photographs that nobody took, and applications on scenes
of the embedded world, with a stand-in for the model whose images are known."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from latentdiff.app import schema
from latentdiff.app.evaluation import evaluate, one_evaluation
from latentdiff.app.evaluation import parts as evaluation_parts
from latentdiff.app.evaluation.subject import Subject, data_for, metrics_for
from latentdiff.app.ranks import Ranks
from latentdiff.checkpoint import store
from latentdiff.checkpoint.models import load_codec
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.shards import write_shards
from latentdiff.evaluation.stage_one import MeasuredReconstruction
from latentdiff.generation.pipeline import Reconstruction
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr, ssim

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
BOTTLENECKS = {
    "kl": {"_target_": "latentdiff.models.autoencoder.bottlenecks.kl.KL"},
    "vq": {"_target_": "latentdiff.models.autoencoder.bottlenecks.vq.VQ", "entries": 8, "channels": 2},
}
AUTOENCODER = {
    "_target_": "latentdiff.models.autoencoder.autoencoder.Autoencoder",
    "channels": 4,
    "channel_multipliers": [1, 1],
    "num_res_blocks": 1,
    "latent_channels": 2,
    "mid_attention": False,
    "norm_groups": 2,
}


def photographs(n, seed):
    """Smooth noise, 20 x 24 pixels, without captions."""
    small = np.random.default_rng(seed).integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    samples = []
    for picture in small:
        file = io.BytesIO()
        Image.fromarray(picture).resize((24, 20), Image.Resampling.BICUBIC).save(file, "PNG")
        samples.append({"png": file.getvalue()})
    return samples


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(photographs(24, 0), folder / "train")
    write_shards(photographs(7, 1), folder / "val")
    return folder


@pytest.fixture(scope="module", params=["kl", "vq"])
def checkpoint(request, tmp_path_factory):
    """A first stage of either kind with the statistics that it has on nothing."""
    torch.manual_seed(0)
    node = AUTOENCODER | {"bottleneck": BOTTLENECKS[request.param]}
    weights = build(node).state_dict()
    path = tmp_path_factory.mktemp(request.param) / "last"
    store.save(
        path,
        kind="autoencoder",
        model={"latent_mean": torch.zeros(2), "latent_std": torch.full((2,), 2.0)},
        ema={f"ema.model.{name}": value for name, value in weights.items()},
        config=json.dumps({"autoencoder": node, "data": None}),
        counters={"batches_seen": 1, "images_seen": 1},
        latent={"channels": 2, "factor": 2},
    )
    return request.param, path


@pytest.fixture
def evaluated(shards, tmp_path):
    def run(path, *overrides):
        schema.register()
        data = ("data=webdataset", f"data.train={shards / 'train'}", f"data.val={shards / 'val'}", "data.size=16")
        given = (*data, f"checkpoint={path}", "trainer=cpu", "batch_size=3", f"run_dir={tmp_path / 'run'}", *overrides)
        last = {override.partition("=")[0]: override for override in given}
        cfg, faults = compose(CONFIGS, "evaluate", list(last.values()))
        assert faults == []
        evaluate.run(cfg)
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run


def test_a_first_stage_on_photographs(checkpoint, evaluated, shards, tmp_path, capsys):
    kind, path = checkpoint
    found = evaluated(path, "num_images=7")
    results = found["results"]
    assert set(results) == {"frechet", "reconstruction", "latents"}
    assert set(results["frechet"]) == {"rfd_randconv-v1_n7"}
    images = validation_images(shards)
    rebuilt = MeasuredReconstruction(codec=load_codec(path), device="cpu")(images, [])
    measured = results["reconstruction"]
    assert measured["psnr"] == pytest.approx(psnr(rebuilt, images.image).mean().item(), abs=0.02)
    assert measured["ssim"] == pytest.approx(ssim(rebuilt, images.image).mean().item(), abs=2e-3)
    assert measured["db_above_patch_pca"] == pytest.approx(measured["psnr"] - measured["patch_pca_psnr"])
    assert 10 < measured["patch_pca_psnr"] < PSNR_CEILING
    latents = results["latents"]
    assert latents["images"] == 7
    assert ("kl_nats_per_image" in latents) == (kind == "kl")
    assert ("codebook" in latents) == (kind == "vq")
    assert latents["whitened"]["largest_std"] == pytest.approx(latents["largest_std"] / 2)
    assert found["card"]["protocol"]["metrics"]["reconstruction"]["patch_pca"]["fitted_on_images"] == 24
    out = capsys.readouterr().out
    assert "latent channels" in out
    assert "reconstruction.patch_pca_psnr" in out
    grid = Image.open(tmp_path / "run" / "grid.png")
    assert grid.size == (7 * (128 + 4) + 4, 3 * (128 + 4) + 4)
    assert "reconstruction - input" in grid.text["Description"]


def validation_images(shards):
    schema.register()
    urls = (f"data.train={shards / 'train'}", f"data.val={shards / 'val'}")
    cfg, _ = compose(CONFIGS, "evaluate", ["checkpoint=x", "data=webdataset", "data.size=16", *urls])
    data = build(cfg.data.module)
    data.prepare_data()
    return data.preview(7)


def test_more_images_than_there_are(checkpoint, evaluated):
    with pytest.raises(InputError, match="8 are wanted, but there are 7"):
        evaluated(checkpoint[1], "num_images=8")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.steps=3"], r"sampler\.steps: a first stage samples nothing"),
        (["guidance.scale=3"], r"guidance\.scale: a first stage samples nothing"),
        (["sampler=ddpm"], r"sampler\.\w+: a first stage samples nothing"),
        (["lossy=true"], "lossy: it is for images=PATH"),
        (["num_reference=0"], "num_reference: expected at least 2 real images, got 0"),
        (["num_reference=1"], "num_reference: expected at least 2 real images, got 1"),
        (["num_reference=5", "reference=x.npz"], "num_reference: the reference is a file"),
    ],
)
def test_settings_that_do_nothing_are_refused(checkpoint, evaluated, monkeypatch, overrides, message):
    monkeypatch.setattr(one_evaluation, "fill", None)
    with pytest.raises(InputError, match=message):
        evaluated(checkpoint[1], "num_images=7", *overrides)


def test_a_finished_evaluation_is_measured_again_and_no_other_in_its_place(
    checkpoint, evaluated, tmp_path, monkeypatch, capsys
):
    first, run = evaluated(checkpoint[1], "num_images=7"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(one_evaluation, "fill", None)
        before = {path: path.read_bytes() for path in run.iterdir()}
        with pytest.raises(InputError, match=r"holds another evaluation (?s:.*)protocol\.samples\.count: 7 \| 6"):
            evaluated(checkpoint[1], "num_images=6")
        assert {path: path.read_bytes() for path in run.iterdir()} == before
        with pytest.raises(TypeError, match="not callable"):
            evaluated(checkpoint[1], "num_images=7", "neighbours=0")
        names = {path.name for path in run.iterdir()}
        assert names == {"chunks", "config.yaml", "overrides.yaml", "environment.json"}, "no pictures of another"
    assert "holds this evaluation already" in capsys.readouterr().out
    again = evaluated(checkpoint[1], "num_images=7", "neighbours=0")
    assert again["results"] == first["results"]


def test_a_sweep_s_folder_is_not_an_evaluation_s(checkpoint, evaluated, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match=r"run_dir: .* holds a sweep; give another"):
        evaluated(checkpoint[1], "num_images=7")
    (tmp_path / "run" / "sweep.json").rename(tmp_path / "run" / "results.json")
    with pytest.raises(InputError, match=r"run_dir: .* holds an evaluation; give another"):
        evaluated(checkpoint[1], "num_images=7", "sweep.steps=[2]")


@pytest.mark.parametrize("mark", ["metrics.jsonl", "samples.json", "environment.json"])
def test_a_folder_of_another_program_is_left(checkpoint, evaluated, tmp_path, mark):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mark).write_text('{"program": "train"}')
    with pytest.raises(InputError, match=f"run_dir: .* holds {mark}, which is not of evaluate.py; give another"):
        evaluated(checkpoint[1], "num_images=7")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [mark]


def test_one_number_by_two_metrics_stops_before_any_image(checkpoint, evaluated, monkeypatch):
    monkeypatch.setattr(one_evaluation, "fill", None)
    smaller = ("metrics.small.measures.kid.subset_size=5", "num_images=7")
    with pytest.raises(InputError, match="'small' and 'frechet' would both give 'rfd_randconv-v1_n7'"):
        evaluated(checkpoint[1], *smaller, "metrics=[small,frechet]")


def test_asked_for_lpips_without_weights_stops_before_any_image(checkpoint, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(one_evaluation, "fill", None)
    absent = tmp_path / "absent.pth"
    with pytest.raises(InputError, match=r"no file .*absent\.pth; get .*option 'weights'"):
        evaluated(checkpoint[1], "num_images=7", "metrics=[lpips,frechet]", f"metrics.lpips.weights={absent}")


def test_a_refused_command_leaves_no_folder_of_its_own(checkpoint, evaluated, tmp_path):
    own = ("run_dir=null", f"paths.outputs={tmp_path / 'outputs'}")
    with pytest.raises(InputError, match="8 are wanted"):
        evaluated(checkpoint[1], "num_images=8", *own)
    assert list((tmp_path / "outputs" / "evaluate").iterdir()) == []


def test_distances_of_reconstructions_are_rfid(checkpoint):
    rebuilt = MeasuredReconstruction(codec=load_codec(checkpoint[1]), device="cpu")
    cfg, _ = compose(CONFIGS, "evaluate", ["checkpoint=x", "metrics=[frechet,reconstruction]"])
    metrics = metrics_for(cfg, subject_of(rebuilt, cfg, reconstruct=rebuilt))
    assert isinstance(metrics["frechet"], OnFeatures)
    assert metrics["frechet"].reconstructions


def subject_of(generate, cfg, config=None, **more):
    own = OmegaConf.create(config or {})
    return Subject(generate=generate, identity={"checkpoint": "x"}, name="x", data=cfg.data, config=own, **more)


def stage_two(cfg, config=None, **reads):
    """A subject of stage two that gives the originals back."""
    return subject_of(Stand(), cfg, config, reconstruct=Stand(), **reads)


ALONE = Ranks(0, 1, torch.device("cpu"), None)


class Stand:
    """Generates ``of(batch)``."""

    def __init__(self, of=lambda batch: batch.image):
        self.of = of

    def __call__(self, batch, seeds):
        return self.of(batch)

    def describe(self):
        return {"stand": "in"}


def chosen(*overrides):
    schema.register()
    cfg, faults = compose(CONFIGS, "evaluate", ["checkpoint=x", *overrides])
    assert faults == []
    return cfg


def test_samples_of_stage_two_have_no_original_to_be_compared_with():
    cfg = chosen("metrics=reconstruction")
    with pytest.raises(InputError, match="'reconstruction' compares an image with its own original"):
        metrics_for(cfg, stage_two(cfg, reads_captions=True))


def test_metrics_are_those_asked_for_else_the_checkpoint_s_else_the_data_s():
    asked, not_asked = chosen("data=shapes", "metrics=shapes_class"), chosen("data=shapes")
    own = {"metrics": chosen("metrics=shapes_inpaint").metrics}
    assert set(metrics_for(asked, stage_two(asked, own))) == {"labels", "frechet"}
    assert set(metrics_for(not_asked, stage_two(not_asked, own))) == {"known", "hole", "captions", "frechet"}
    assert set(metrics_for(not_asked, stage_two(not_asked, reads_captions=True))) == {"captions", "frechet"}
    assert set(metrics_for(not_asked, stage_two(not_asked, {"metrics": None}))) == {"frechet"}, "it reads no captions"
    captions = chosen("data=shapes", "metrics=shapes_superres")
    assert isinstance(metrics_for(captions, stage_two(captions))["captions"], CaptionAccuracy), "asked for in words"


INPAINTING = {
    "conditions": {"mask": {"_target_": "latentdiff.data.masks.RandomMasks", "most_boxes": 2}},
    "classes": 6,
    "reads_labels": True,
}


def test_other_data_are_given_the_makers_of_the_model_s_conditions(shards):
    cfg = chosen("data=webdataset", f"data.train={shards / 'train'}", f"data.val={shards / 'val'}", "data.size=16")
    data = data_for(cfg, stage_two(cfg, {"conditioner": INPAINTING}), ALONE)
    assert (list(data.conditions), data.conditions["mask"].most_boxes, data.classes) == (["mask"], 2, 6)
    assert data.preview(3).mask.shape == (3, 1, 16, 16)
    assert data_for(cfg, stage_two(cfg, {"conditioner": {"conditions": None}}), ALONE).preview(1).mask is None
    data = data_for(cfg, stage_two(cfg, {"conditioner": INPAINTING}, reads_labels=True), ALONE)
    with pytest.raises(InputError, match="24 of 24 samples have no label"):
        data.setup()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Overrides for a few scenes."""
    folder = tmp_path_factory.mktemp("world")
    counts = ("data.module.source.train_samples=20", "data.module.source.val_samples=12")
    return ("data=shapes", f"paths.data={folder}", *counts, "data.workers=0", "trainer=cpu", "batch_size=5")


@pytest.fixture
def applied(world, checkpoint, tmp_path, monkeypatch):
    """``applied(of, *overrides, conditioner=...)``: results.json where the model's images are ``of(batch)``."""

    def run(of, *overrides, conditioner, **reads):
        cfg = chosen(*world, "num_images=12", f"run_dir={tmp_path / 'run'}", *overrides)
        codec = load_codec(checkpoint[1])
        subject = subject_of(
            Stand(of),
            cfg,
            {"conditioner": conditioner},
            reconstruct=Reconstruction(codec=codec, device="cpu"),
            **reads,
        )
        monkeypatch.setattr(evaluation_parts, "load_subject", lambda *_: subject)
        evaluate.run(cfg)
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run


def low_res(factor):
    return {"low_res": {"_target_": "latentdiff.data.degradations.Degraded", "factor": factor}}


def test_super_resolution_beside_bicubic_enlargement(applied, tmp_path):
    found = applied(lambda batch: batch.image, "metrics=shapes_superres", conditioner={"conditions": low_res(4)})
    assert set(found) == {"results", "controls", "card"}
    assert found["results"]["low_resolution"] == {"low_res_psnr": PSNR_CEILING, "psnr": PSNR_CEILING}
    assert found["results"]["frechet"]["fd_randconv-v1_n12"] == pytest.approx(0, abs=1e-6)
    assert set(found["results"]["captions"]) == {"one_object", "two_objects", "shuffled", "reconstructions"}
    controls = found["controls"]
    assert {name: set(values) for name, values in controls.items()} == {
        "reconstructions": {"low_resolution", "frechet"},
        "bicubic": {"low_resolution", "captions", "frechet"},
        "gaussian": {"frechet"},
        "training_images": {"frechet"},
    }
    assert 25 < controls["bicubic"]["low_resolution"]["psnr"] < 35
    distance = {name: values["frechet"]["fd_randconv-v1_n12"] for name, values in controls.items()}
    assert 0 < distance["training_images"] < distance["gaussian"]
    assert found["card"]["controls"]["gaussian"]["fitted_on_images"] == 20
    assert found["card"]["controls"]["training_images"] == {"images": "real", "count": 12}
    assert Image.open(tmp_path / "run" / "grid.png").width == 8 * (128 + 4) + 4


def test_without_controls_captions_keep_theirs(applied):
    """As the contract of results.json says."""
    cfg = {"conditioner": {"conditions": None}, "reads_captions": True}
    found = applied(lambda batch: batch.image, "controls=false", **cfg)
    assert set(found) == {"results", "card"}
    assert set(found["results"]["captions"]["reconstructions"]) == {"one_object", "two_objects"}


def test_inpainting_is_held_beside_its_first_stage(applied):
    emptied = lambda batch: torch.where(batch.mask.bool(), torch.zeros_like(batch.image), batch.image)  # noqa: E731
    found = applied(emptied, "metrics=shapes_inpaint", conditioner=INPAINTING)["results"]
    assert found["known"]["psnr"] == PSNR_CEILING
    assert found["known"]["difference"] == pytest.approx(PSNR_CEILING - found["known"]["reconstructions"])
    assert found["hole"].get("shape", 0.0) < 0.5


def test_classes_and_maps(applied, tmp_path):
    found = applied(
        lambda batch: batch.image,
        "metrics=[shapes_class,shapes_semantic]",
        conditioner={"conditions": {"segmentation": MAPS}, "classes": 6},
        reads_labels=True,
    )
    assert found["results"]["labels"]["accuracy"] == 1.0
    assert found["results"]["maps"]["miou"] > 0.95
    assert found["controls"]["reconstructions"]["maps"]["miou"] < found["results"]["maps"]["miou"]


MAPS = {"_target_": "latentdiff.data.segmentation.SegmentationMaps", "classes": 7}


def test_what_metrics_need_is_said_before_any_work(applied, monkeypatch):
    monkeypatch.setattr(one_evaluation, "fill", None)
    with pytest.raises(InputError, match="metrics: 'maps': semantic IoU needs the maps"):
        applied(lambda batch: batch.image, "metrics=shapes_semantic", conditioner={"conditions": None})


def test_metrics_of_an_older_checkpoint_that_are_no_more_say_what_to_do():
    cfg = chosen()
    own = OmegaConf.create({"metrics": {"frechet": {"_target_": "latentdiff.metrics.gone.Gone"}}})
    with pytest.raises(InputError, match=r"metrics: the checkpoint's own: .*gone.*or choose others"):
        metrics_for(cfg, stage_two(cfg, own))
