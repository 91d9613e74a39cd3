import signal

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers.logger import DummyLogger

from latentdiff.config.errors import InputError
from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.generation.pipeline import LatentPipeline, to_uint8
from latentdiff.metrics.caption_accuracy import CaptionAccuracy
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.training.callbacks.images import ReconstructionGrid, SampleGrid
from latentdiff.training.callbacks.interruption import Interruption, Stopped


def cell(path, row, column, scale=2, pad=4, size=8):
    """The image in a cell of a grid without captions, scaled down again."""
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    step = size * scale + pad
    top, left = pad + row * step, pad + column * step
    return pixels[:, top : top + size * scale : scale, left : left + size * scale : scale]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_reconstructions_by_the_averaged_weights_stand_below_their_images(autoencoder_module, batch, fit, tmp_path):
    module, val = autoencoder_module(), batch(9)
    fit(module, [batch(i) for i in range(3)], ReconstructionGrid(run_dir=str(tmp_path), every=2), val=[val])
    folder = tmp_path / "reconstructions"
    assert names(folder) == ["batch-00000002.png", "batch-00000003.png"]
    with torch.no_grad():
        image = val.image.float() / 127.5 - 1
        rebuilt = to_uint8(module.ema.model.decode(module.ema.model.encode(image).mean))
    for column in range(4):
        assert torch.equal(cell(folder / "batch-00000003.png", 0, column), val.image[column])
        assert torch.equal(cell(folder / "batch-00000003.png", 1, column), rebuilt[column])
        difference = 127.5 + 4 * (rebuilt[column].float() - val.image[column].float())
        assert torch.equal(cell(folder / "batch-00000003.png", 2, column), difference.round().clamp(0, 255).byte())
    assert "127.5 + 4 (reconstruction - input)" in Image.open(folder / "batch-00000003.png").text["Description"]


def test_samples_are_the_pipelines_for_the_averaged_weights(diffusion_module, batch, fit, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "latentdiff.training.callbacks.images.save_grid", lambda path, images, **options: kept.append((path, images))
    )
    parts = {"sampler": Euler(), "grid": Uniform(), "steps": 3, "guidance": ClassifierFree(scale=2.0)}
    module, val = diffusion_module(), batch(9)
    fit(module, [batch(0), batch(1)], SampleGrid(run_dir=str(tmp_path), every=2, seed=5, **parts), val=[val])
    ((path, images),) = kept  # drawn once: the last batch ends an interval
    assert path == tmp_path / "samples" / "batch-00000002.png"
    pipeline = LatentPipeline(
        denoiser=module.ema.model["denoiser"],
        conditioner=module.ema.model["conditioner"],
        codec=module.codec,
        image_size=8,
        **parts,
    )
    assert torch.equal(images, pipeline(val, seeds=[5, 6, 7, 8]))


def test_samples_stand_beside_what_they_are_made_from(diffusion_module, batch, fit, tmp_path):
    val = batch(9)
    val.mask = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    val.mask[..., 4:] = 1
    val.low_res = val.image[..., ::4, ::4].contiguous()
    parts = {"sampler": Euler(), "grid": Uniform(), "steps": 2, "guidance": ClassifierFree(scale=1.0)}
    grid = SampleGrid(run_dir=str(tmp_path), every=1, captions=False, **parts)
    fit(diffusion_module(), [batch(0)], grid, val=[val])
    path = tmp_path / "samples" / "batch-00000001.png"
    for row in range(4):  # one group of three in a row
        assert torch.equal(cell(path, row, 0)[..., :4], val.image[row][..., :4])
        assert cell(path, row, 0)[..., 4:].unique().tolist() == [96, 160]
        assert torch.equal(cell(path, row, 1)[:, ::4, ::4], val.low_res[row])
    assert Image.open(path).size == (3 * 20 + 4, 4 * 20 + 4)


class Takes(DummyLogger):
    def log_picture(self, name, path, counters):
        self.picture = (name, path, counters)

    def log_table(self, name, columns, rows, counters):
        self.table = (name, columns, rows, counters)


def test_loggers_that_take_pictures_get_the_file_and_the_counters(autoencoder_module, batch, fit, tmp_path):
    logger = Takes()
    fit(autoencoder_module(), [batch()], ReconstructionGrid(run_dir=str(tmp_path)), logger=logger)
    counters = {"batches_seen": 1, "images_seen": 4}
    assert logger.picture == ("reconstructions", tmp_path / "reconstructions/batch-00000001.png", counters)


PARTS = {"sampler": Euler(), "grid": Uniform(), "steps": 2, "guidance": ClassifierFree(scale=1.5)}


class Brightness:
    """A metric whose number of one image is its mean."""

    def measure(self, images, batch):
        return {"mean": images.double().mean((1, 2, 3)), "caption": batch.caption}

    def result(self, rows):
        words = rows.column("caption")[0].split()
        return {"mean": float(rows.column("mean").mean()), **({"words": len(words)} if words else {})}


def test_loggers_that_take_tables_get_a_row_per_image_with_its_scores(diffusion_module, batch, fit, tmp_path):
    logger, val = Takes(), batch(9)
    many = OnFeatures(features=RandomConvFeatures(), measures=[FrechetDistance()])  # says nothing of one image
    grid = SampleGrid(run_dir=str(tmp_path), seed=5, scores={"bright": Brightness(), "many": many}, **PARTS)
    fit(diffusion_module(), [batch(0)], grid, val=[val], logger=logger)
    name, columns, rows, counters = logger.table
    assert (name, counters["images_seen"]) == ("samples_table", 4)
    assert columns == ["prompt", "seed", "guidance", "steps", "image", "bright.mean", "bright.words"]
    assert [row[:4] for row in rows] == [[text, 5 + i, 1.5, 2] for i, text in enumerate(val.caption)]
    for row in rows:
        assert row[5] == pytest.approx(np.array(row[4]).mean())
    assert [row[6] for row in rows] == [len(text.split()) or None for text in val.caption]


def test_prompts_take_the_place_of_captions(diffusion_module, batch, fit, tmp_path):
    logger = Takes()
    prompts = ["one", "two", "three", "four"]
    grid = SampleGrid(run_dir=str(tmp_path), prompts=prompts, **PARTS)
    fit(diffusion_module(), [batch(0)], grid, val=[batch(9)], logger=logger)
    assert [row[0] for row in logger.table[2]] == prompts


def test_prompts_that_cannot_be_are_refused(diffusion_module, batch, fit, tmp_path):
    with pytest.raises(InputError, match=r"samples\.prompts: this model reads no captions"):
        SampleGrid(run_dir=str(tmp_path), prompts=["one"], captions=False, **PARTS)
    grid = SampleGrid(run_dir=str(tmp_path), prompts=["one"] * 5, **PARTS)
    with pytest.raises(InputError, match=r"samples\.prompts: 5 are given, there are 4 validation samples"):
        fit(diffusion_module(), [batch(0)], grid, val=[batch(9)])
    scored = SampleGrid(run_dir=str(tmp_path), scores={"captions": CaptionAccuracy()}, **PARTS)
    with pytest.raises(InputError, match="caption accuracy reads images of the embedded world"):
        fit(diffusion_module(), [batch(0)], scored, val=[batch(9)])


def test_a_run_that_is_told_to_stop_samples_no_further(diffusion_module, batch, fit, tmp_path):
    """The signal comes in the second of three steps; the grid before it stands."""
    steps = []

    class Interrupted(Euler):
        def __call__(self, denoise, path, x, times, noise_at, on_step=None):
            def interrupting(step, *state):
                steps.append(step)
                if len(steps) == 5:
                    signal.raise_signal(signal.SIGTERM)
                return on_step(step, *state)

            return super().__call__(denoise, path, x, times, noise_at, interrupting)

    parts = {"sampler": Interrupted(), "grid": Uniform(), "steps": 3, "guidance": ClassifierFree(scale=2.0)}
    grids = SampleGrid(run_dir=str(tmp_path), every=1, **parts)
    with pytest.raises(Stopped, match="SIGTERM"):
        fit(diffusion_module(), [batch(i) for i in range(4)], grids, Interruption(), val=[batch(9)])
    assert len(steps) == 5
    assert names(tmp_path / "samples") == ["batch-00000001.png"]
