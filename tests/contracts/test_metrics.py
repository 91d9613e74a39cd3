"""What every metric of ``configs/metrics`` must do: rows of single images, and a result that is theirs alone.

The files are found by themselves. Networks whose weights would have to be downloaded are stood in for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.evaluation.chunks import ChunkFolder
from latentdiff.evaluation.engine import ComparesWithReal, results
from latentdiff.metrics.features.base import Features
from latentdiff.metrics.low_resolution import resized
from latentdiff.metrics.lpips import Lpips
from latentdiff.metrics.on_features import FeatureMeasure, OnFeatures
from latentdiff.metrics.rows import JoinedRows
from latentdiff.shapes.renderer import render, segmentation
from latentdiff.shapes.scene import attributes, sample_scene
from latentdiff.types import Batch, Metric

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "metrics"
COUNT = 40
SMALL = {"subset_size": 8, "subsets": 4, "least": 8, "points": 4, "splits": 2, "count": 30, "strict": False}
"""In place of what a YAML says, so that few images are enough."""
WEIGHTS = ("weights", "model")
"""Options that name them, the first one that there is."""


def nodes(name: str) -> DictConfig:
    """The metrics of a file, with those of the file that it begins with."""
    found = OmegaConf.load(FOLDER / f"{name}.yaml")
    before = [nodes(one) for one in found.pop("defaults", []) if one != "_self_"]
    return OmegaConf.merge(*before, found)


def every_node() -> dict[str, DictConfig]:
    """By file and name; what stands in several files, once."""
    found: dict[str, DictConfig] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for name, node in nodes(path.stem).items():
            if node not in found.values():
                found[f"{path.stem}-{name}"] = node
    return found


METRICS = [pytest.param(node, id=name) for name, node in every_node().items()]


def scenes() -> Batch:
    """Of the embedded world, with everything that a condition can be."""
    drawn = [sample_scene(0, i, split="val") for i in range(COUNT)]
    image = torch.from_numpy(np.stack([render(scene) for scene in drawn])).permute(0, 3, 1, 2).contiguous()
    mask = torch.zeros(COUNT, 1, 64, 64, dtype=torch.uint8)
    mask[..., 32:] = 1
    return Batch(
        keys=[str(i) for i in range(COUNT)],
        image=image,
        caption=[f"scene {i}" for i in range(COUNT)],
        label=torch.tensor([scene.label for scene in drawn]),
        segmentation=torch.from_numpy(np.stack([segmentation(scene) for scene in drawn])),
        mask=mask,
        low_res=resized(image, (16, 16)),
        attributes=[attributes(scene) for scene in drawn],
        total=COUNT,
    )


BATCH = scenes()
IMAGES = (BATCH.image.float() * 0.7 + BATCH.image.roll(1, 0).float() * 0.3).byte()
"""Like what was asked for, and not quite."""


class StandIn(nn.Module):
    """Random projections of an image, under the names of all layers that are read."""

    name, published = "stand-in", False

    def __init__(self, measures: Iterable[FeatureMeasure], width: int = 64):
        super().__init__()
        self.layers = {layer: width for measure in measures for layer in measure.layers}

    def forward(self, images: Tensor, batch: Batch, layers: list[str]) -> dict[str, Tensor]:
        x = nn.functional.avg_pool2d(images.float() / 255, 16).flatten(1)
        generator = torch.Generator().manual_seed(0)
        matrices = {layer: torch.randn(x.shape[1], width, generator=generator) for layer, width in self.layers.items()}
        return {layer: x @ matrices[layer] for layer in layers}

    def describe(self) -> dict[str, object]:
        return {}


class Difference(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))


def network_of(node: DictConfig) -> DictConfig:
    """The part that names the network's weights."""
    return node.get("features", node)


def needs_weights(node: DictConfig) -> bool:
    return any(option in network_of(node) for option in WEIGHTS)


def with_weights(node: DictConfig, path: Path) -> DictConfig:
    node = copy.deepcopy(node)
    network_of(node)[next(option for option in WEIGHTS if option in network_of(node))] = str(path)
    return node


def made(node: DictConfig, width: int | None = None) -> Metric:
    """The metric for few images, without downloads; ``width``: of a stand-in for any features."""
    node = copy.deepcopy(node)
    if "measures" not in node:
        return Lpips(network=Difference()) if needs_weights(node) else build(node)
    for measure in node.measures.values():
        measure.update({key: SMALL[key] for key in measure if key in SMALL})
    measures = build(node.measures)
    if width is not None:
        return OnFeatures(features=StandIn(measures.values(), width), measures=measures)
    features: Features = StandIn(measures.values()) if needs_weights(node) else build(node.features)
    return OnFeatures(features=features, measures=measures)


def references(metric: Metric) -> dict:
    if not (isinstance(metric, ComparesWithReal) and metric.needs_reference):
        return {}
    return {"metric": metric.reference(JoinedRows([(0, metric.measure_real(BATCH.image, BATCH))]))}


@pytest.mark.parametrize("node", [param for param in METRICS if needs_weights(param.values[0])])
def test_absent_weights_are_named(node: DictConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/absent"):
        build(with_weights(node, tmp_path / "absent"))


@pytest.mark.parametrize("node", METRICS)
def test_results_are_those_of_the_rows_however_they_are_cut(node: DictConfig, tmp_path: Path) -> None:
    """To the last bit, through an evaluation's files, written in any order; nothing is kept from what came before."""
    found = [json.dumps(one) for one in cut_results(made(node), tmp_path)]
    assert len(found[0]) > 2
    assert [one == found[0] for one in found] == [True] * 4


@pytest.mark.parametrize("node", [param for param in METRICS if "measures" in param.values[0]])
def test_with_more_images_than_features_too(node: DictConfig, tmp_path: Path) -> None:
    """Up to rounding: covariances are then summed over the chunks as they come, so that memory does not grow with the
    images, and a sum of other parts has other last bits. The size of a chunk is part of the protocol."""
    found = cut_results(made(node, width=8), tmp_path)
    assert found[1] == found[0]
    for one in found[2:]:
        assert one == pytest.approx(found[0], rel=1e-9, abs=1e-9)


def cut_results(metric: Metric, folder: Path) -> list[dict]:
    """Twice in one chunk, then in four and in two."""
    known, found = references(metric), []
    for number, cuts in enumerate([(), (), (1, 17, 33), (20,)]):
        columns = metric.measure(IMAGES, BATCH)
        bounds = [0, *cuts, COUNT]
        chunks = ChunkFolder(folder / str(number), [range(*pair) for pair in pairwise(bounds)])
        for chunk in reversed(chunks.chunks):
            chunks.write(chunk, {f"metric/{name}": rows[chunk.start : chunk.stop] for name, rows in columns.items()})
        found.append(results(chunks, {"metric": metric}, known)["metric"])
    return found


@pytest.mark.parametrize("node", METRICS)
def test_an_image_s_row_does_not_depend_on_its_neighbours(node: DictConfig) -> None:
    metric = made(node)
    whole = metric.measure(IMAGES, BATCH)
    part = metric.measure(IMAGES[8:13], BATCH.rows(8, 13))
    assert set(part) == set(whole)
    for name, rows in part.items():
        expected = whole[name][8:13]
        if isinstance(rows, Tensor):
            torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert rows == expected
