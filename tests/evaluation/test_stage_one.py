"""What every first stage is measured by: the same whoever makes which images, with one look of the encoder at each."""

import json
from dataclasses import replace

import pytest
import torch

from latentdiff.diffusion.noise import keyed_generator
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import Work, fill, measures_of, results
from latentdiff.evaluation.stage_one import Latents, MeasuredReconstruction, metrics_of_stage_one
from latentdiff.generation.pipeline import Reconstruction
from latentdiff.metrics.latents import ChannelMoments
from latentdiff.metrics.patch_pca import PatchPca
from latentdiff.metrics.reconstruction import psnr, ssim
from latentdiff.models.autoencoder.autoencoder import Autoencoder
from latentdiff.models.autoencoder.bottlenecks.fsq import FSQ
from latentdiff.models.autoencoder.bottlenecks.kl import KL
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch

BOTTLENECKS = {"kl": lambda: KL(), "vq": lambda: VQ(entries=16, channels=3), "fsq": lambda: FSQ(levels=[5, 4, 3])}
IMAGES = torch.randint(0, 256, (11, 3, 16, 16), generator=keyed_generator(7), dtype=torch.uint8)
WORK = Work(count=len(IMAGES), size=4)


def samples(indices):
    return Batch(keys=[str(i) for i in indices], image=IMAGES[indices.start : indices.stop])


def codec(kind):
    torch.manual_seed(0)
    autoencoder = Autoencoder(
        bottleneck=BOTTLENECKS[kind](),
        channels=4,
        channel_multipliers=(1,),
        num_res_blocks=1,
        latent_channels=3,
        patch=2,
        mid_attention=False,
        norm_groups=2,
    )
    return LatentCodec(
        autoencoder=autoencoder, mean=torch.tensor([0.1, 0.0, -0.1]), std=torch.tensor([0.5, 1, 2])
    ).eval()


def measured(model, folder, *works):
    """The results when these make their shares, one after the other."""
    metrics, chunks = metrics_of_stage_one(model, IMAGES.split(3)), ChunkFolder(folder, WORK.chunks)
    for work in works:
        fill(chunks, work, model, samples, measures_of(metrics))
    return results(chunks, metrics)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_ranks_and_a_second_start_change_no_bit(kind, tmp_path):
    model = MeasuredReconstruction(codec=codec(kind), device="cpu")
    alone = measured(model, tmp_path / "alone", WORK)
    ranks = [replace(WORK, rank=rank, ranks=2) for rank in (1, 0)]
    assert json.dumps(measured(model, tmp_path / "ranks", *ranks)) == json.dumps(alone)
    broken = ChunkFolder(tmp_path / "alone", WORK.chunks)
    next(broken.folder.iterdir()).unlink()
    assert json.dumps(measured(model, broken.folder, WORK)) == json.dumps(alone)
    assert ("kl_nats_per_image" in alone["latents"]) == (kind == "kl")
    assert ("codebook" in alone["latents"]) == (kind != "kl")


def test_values_are_those_of_all_images_at_once(tmp_path):
    model = MeasuredReconstruction(codec=codec("kl"), device="cpu")
    found = measured(model, tmp_path, WORK)
    rebuilt = Reconstruction(codec=model.codec, device="cpu")(samples(range(11)), [])
    assert found["reconstruction"]["psnr"] == pytest.approx(psnr(rebuilt, IMAGES).mean().item(), abs=1e-4)
    assert found["reconstruction"]["ssim"] == pytest.approx(ssim(rebuilt, IMAGES).mean().item(), abs=1e-4)
    pca = PatchPca(images=[IMAGES], factor=2, components=3)
    floor = psnr(pca.reconstruct(IMAGES), IMAGES).mean().item()
    assert found["reconstruction"]["patch_pca_psnr"] == pytest.approx(floor, abs=1e-4)
    above = found["reconstruction"]["psnr"] - found["reconstruction"]["patch_pca_psnr"]
    assert found["reconstruction"]["db_above_patch_pca"] == above
    moments = ChannelMoments(3)
    moments.update(model.codec.autoencoder.encode(IMAGES.float() / 127.5 - 1.0))
    mean, std, _ = (each.tolist() for each in moments.compute())
    assert found["latents"]["channels"]["mean"] == pytest.approx(mean, rel=1e-5)
    assert found["latents"]["channels"]["std"] == pytest.approx(std, rel=1e-5)
    whitened = [own / known for own, known in zip(std, (0.5, 1.0, 2.0))]
    expected = {"smallest_std": min(whitened), "largest_std": max(whitened)}
    expected["largest_mean"] = max(abs(own - k) / s for own, k, s in zip(mean, (0.1, 0, -0.1), (0.5, 1, 2)))
    assert found["latents"]["whitened"] == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


def test_the_encoder_sees_each_image_once(tmp_path, monkeypatch):
    model, seen = MeasuredReconstruction(codec=codec("vq"), device="cpu"), []
    encode = model.codec.autoencoder.encode
    monkeypatch.setattr(model.codec.autoencoder, "encode", lambda x: seen.append(len(x)) or encode(x))
    measured(model, tmp_path, WORK)
    assert seen == [4, 4, 3]


def test_another_batch_is_never_taken_for_the_last_one():
    """Rows are those of the batch that is measured, whatever was reconstructed before it."""
    model = MeasuredReconstruction(codec=codec("kl"), device="cpu")
    metric, first, second = Latents(model=model), samples(range(4)), samples(range(4, 8))
    model(first, [])
    expected = metric.measure(None, second)["sums"]
    model(second, [])
    assert torch.equal(metric.measure(None, second)["sums"], expected)
    assert not torch.equal(metric.measure(None, first)["sums"], expected)
