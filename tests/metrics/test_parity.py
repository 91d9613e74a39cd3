"""Numbers of whole programs, from images on: torch-fidelity and torchmetrics on the same features."""

import pytest
import torch
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as TorchmetricsScore
from torchmetrics.image.kid import KernelInceptionDistance

from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.inception_score import InceptionScore
from latentdiff.metrics.kernel_distance import KernelDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.precision_recall import PrecisionRecall
from latentdiff.metrics.rows import JoinedRows

ORACLE = "randconv-with-logits"
NETWORK = RandomConvFeatures(dim=32, scales=2)


class WithLogits:
    """The random features, and their first ten as logits."""

    name, layers, published = "rc", {"pool": 32, "logits": 10}, False

    def to(self, device):
        return self

    def __call__(self, images, batch, layers):
        pool = NETWORK(images, batch)["pool"]
        return {layer: pool[:, : self.layers[layer]] for layer in layers}


class Oracle(FeatureExtractorBase):
    def __init__(self, name, features_list, **settings):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "pool"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    def forward(self, images):
        return tuple(WithLogits()(images, None, self.features_list)[name] for name in self.features_list)


class Module(torch.nn.Module):
    """For torchmetrics."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.num_features = layer, WithLogits.layers[layer]

    def forward(self, images):
        return WithLogits()(images, None, [self.layer])[self.layer]


class Images(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


@pytest.fixture(scope="module")
def ours(scenes):
    """Scenes that fade, each more than the one before, against what they were."""
    count = len(scenes)
    fading = (scenes.image * torch.linspace(1, 0.5, count).view(-1, 1, 1, 1)).round().to(torch.uint8)
    measures = [
        FrechetDistance(),
        KernelDistance(subset_size=count),
        InceptionScore(splits=1),
        PrecisionRecall(),
    ]
    metric = OnFeatures(features=WithLogits(), measures=measures)
    rows = [JoinedRows([(0, metric.measure(images, scenes))]) for images in (fading, scenes.image)]
    found = metric.result(rows[0], metric.reference(rows[1]))
    return fading, {name.removesuffix(f"_rc_n{count}"): value for name, value in found.items()}


def test_torch_fidelity_s_program(scenes, ours):
    fading, found = ours
    register_feature_extractor(ORACLE, Oracle)
    try:
        oracle = calculate_metrics(
            input1=Images(fading), input2=Images(scenes.image), feature_extractor=ORACLE, cuda=False, batch_size=16,
            isc=True, fid=True, kid=True, prc=True, isc_splits=1, kid_subsets=2, kid_subset_size=len(scenes),
            cache=False, verbose=False,
        )  # fmt: skip
    finally:
        del FEATURE_EXTRACTORS_REGISTRY[ORACLE]
    assert found["fd"] == pytest.approx(oracle["frechet_inception_distance"], rel=1e-5)
    assert found["kid"] == pytest.approx(oracle["kernel_inception_distance_mean"], rel=1e-4)
    assert found["is"] == pytest.approx(oracle["inception_score_mean"], rel=1e-6)
    assert (found["precision"], found["recall"]) == pytest.approx((oracle["precision"], oracle["recall"]), abs=1e-6)
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_torchmetrics_s_programs(scenes, ours):
    fading, found = ours
    frechet = FrechetInceptionDistance(feature=Module("pool"), input_img_size=(3, 64, 64), normalize=False)
    kernel = KernelInceptionDistance(feature=Module("pool"), subsets=2, subset_size=len(scenes), normalize=False)
    score = TorchmetricsScore(feature=Module("logits"), splits=1, normalize=False)
    for metric in (frechet, kernel):
        metric.update(fading, real=False)
        metric.update(scenes.image, real=True)
    score.update(fading)
    assert found["fd"] == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert found["kid"] == pytest.approx(float(kernel.compute()[0]), rel=1e-3)
    assert found["is"] == pytest.approx(float(score.compute()[0]), rel=1e-5)
