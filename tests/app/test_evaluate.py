"""evaluate.py on first stages, in this process: tiny networks, a handful of photographs that nobody took."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.app import evaluate, schema
from latentdiff.checkpoint import store
from latentdiff.config.compose import compose
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.shards import write_shards
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.reconstruction import PSNR_CEILING, psnr, ssim

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
        given = (*data, f"checkpoint={path}", f"run_dir={tmp_path / 'run'}", "trainer=cpu", "batch_size=3", *overrides)
        cfg, faults = compose(CONFIGS, "evaluate", list(given))
        assert faults == []
        evaluate.run(cfg)
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run


def test_a_first_stage_on_photographs(checkpoint, evaluated, shards, tmp_path, capsys):
    kind, path = checkpoint
    found = evaluated(path, "num_images=7")
    results = found["results"]
    assert set(results) == {"frechet", "reconstruction", "latents"}
    assert set(results["frechet"]) == {"fd_randconv-v1_n7"}
    images = validation_images(shards)
    rebuilt = evaluate.MeasuredReconstruction(codec=evaluate.load_codec(path), device="cpu")(images, [])
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
    assert found["card"]["metrics"]["patch_pca"]["fitted_on_images"] == 24
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


def test_asked_for_lpips_without_weights_stops_before_any_image(checkpoint, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.engine, "evaluate", None)
    absent = tmp_path / "absent.pth"
    with pytest.raises(InputError, match=r"no file .*absent\.pth; get .*option 'weights'"):
        evaluated(checkpoint[1], "num_images=7", "metrics=[lpips,frechet]", f"metrics.lpips.weights={absent}")


def test_distances_of_reconstructions_are_rfid(checkpoint):
    subject = evaluate.Subject(
        evaluate.MeasuredReconstruction(codec=evaluate.load_codec(checkpoint[1]), device="cpu"), None, None, None, False
    )
    cfg, _ = compose(CONFIGS, "evaluate", ["checkpoint=x", "metrics=[frechet,reconstruction]"])
    metrics = evaluate._metrics(cfg, subject)
    assert isinstance(metrics["frechet"], FrechetDistance)
    assert metrics["frechet"].published == "rfid"


def test_samples_of_stage_two_have_no_original_to_be_compared_with():
    schema.register()
    cfg, _ = compose(CONFIGS, "evaluate", ["checkpoint=x", "metrics=reconstruction"])
    subject = evaluate.Subject(lambda batch, seeds: batch.image, None, None, None, True)
    with pytest.raises(InputError, match="'reconstruction' compares an image with its own original"):
        evaluate._metrics(cfg, subject)
