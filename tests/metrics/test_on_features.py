import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.clip_score import ClipScore
from latentdiff.metrics.density_coverage import DensityCoverage
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.inception_score import InceptionScore
from latentdiff.metrics.kernel_distance import GaussianKernelDistance, KernelDistance
from latentdiff.metrics.on_features import Naming, OnFeatures, check_distinct
from latentdiff.metrics.precision_recall import PrecisionRecall
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.metrics.rows import JoinedRows
from latentdiff.types import Batch


class Counting:
    """Two layers; counts how often the network looks, and at what."""

    name, layers, published = "counting", {"pool": 4, "logits": 3}, False

    def __init__(self):
        self.asked = []

    def to(self, device):
        return self

    def __call__(self, images, batch, layers):
        self.asked.append(list(layers))
        flat = images.flatten(1).float()
        return {layer: flat[:, : self.layers[layer]] for layer in layers}

    def describe(self):
        return {"network": "none"}


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def batch(n, **columns):
    return Batch(keys=[str(i) for i in range(n)], **columns)


def test_one_look_serves_all_measures_and_real_images_are_seen_for_comparisons_alone():
    features = Counting()
    metric = OnFeatures(
        features=features,
        measures={"a": FrechetDistance(), "b": InceptionScore(splits=2), "c": PrecisionRecall()},
    )
    columns = metric.measure(images(20), batch(20))
    assert {name: tuple(column.shape) for name, column in columns.items()} == {"pool": (20, 4), "logits": (20, 3)}
    real = metric.measure_real(images(10, 1), batch(10))
    assert features.asked == [["pool", "logits"], ["pool"]]
    found = metric.result(JoinedRows([(0, columns)]), metric.reference(JoinedRows([(0, real)])))
    names = ("fd", "is", "is_sd", "precision", "recall")
    assert list(found) == [f"{name}_counting_n20" for name in names]
    rebuilt = metric.of_reconstructions()
    found = rebuilt.result(JoinedRows([(0, columns)]), metric.reference(JoinedRows([(0, real)])))
    assert list(found) == [f"r{name}_counting_n20" for name in names]


def test_a_list_of_measures_is_the_same_as_a_dict_of_them():
    listed, named = (
        OnFeatures(features=Counting(), measures=measures).describe()
        for measures in ([FrechetDistance()], {"any": FrechetDistance()})
    )
    assert listed == named
    assert listed["features"] == "counting"
    assert listed["measures"][0]["name"] == "FrechetDistance"


def test_refusals():
    with pytest.raises(InputError, match="InceptionScore reads the layer 'logits', randconv-v1 has pool"):
        OnFeatures(features=RandomConvFeatures(), measures=[InceptionScore()])
    metric = OnFeatures(features=Counting(), measures=[FrechetDistance(), KernelDistance(subset_size=30)])
    metric.check_count(30)
    with pytest.raises(InputError, match="subsets of 30 images"):
        metric.check_count(29)
    assert metric.needs_reference
    assert not OnFeatures(features=Counting(), measures=[InceptionScore()]).needs_reference
    with pytest.raises(InputError, match="compare with real images, there is no reference"):
        metric.result(JoinedRows([(0, metric.measure(images(4), batch(4)))]))


def test_samples_without_captions_are_refused_where_a_measure_reads_them():
    features = Counting()
    features.layers = {"pool": 4, "text": 4, "caption_cut": 1}
    metric = OnFeatures(features=features, measures=[FrechetDistance(), ClipScore()])
    metric.check(batch(2, caption=["a", "b"]))
    with pytest.raises(InputError, match="captions"):
        metric.check(batch(2))
    OnFeatures(features=features, measures=[FrechetDistance()]).check(batch(2))


def test_two_numbers_of_one_name_are_refused_before_any_image():
    metric = OnFeatures(features=Counting(), measures=[PrecisionRecall(count=None), PrecisionRecall(count=8)])
    metric.check_count(9)
    with pytest.raises(InputError, match="two measures would both give 'precision_counting_n8'"):
        metric.check_count(8)
    layers = ("pool", "logits")
    OnFeatures(
        features=Counting(),
        measures=[
            *(make(layer=layer) for make in (FrechetDistance, PrecisionRecall, DensityCoverage) for layer in layers),
            *(make(layer=layer) for make in (InceptionScore, GaussianKernelDistance) for layer in layers),
            *(KernelDistance(layer=layer, subset_size=9) for layer in layers),
        ],
    ).check_count(50)


def test_two_metrics_that_look_with_one_network_are_refused_where_they_give_the_same():
    frechet = OnFeatures(features=Counting(), measures=[FrechetDistance()])
    both = OnFeatures(features=Counting(), measures=[InceptionScore(splits=2), FrechetDistance()])
    score = OnFeatures(features=Counting(), measures=[InceptionScore(splits=2)])
    check_distinct({"a": frechet, "b": score, "other": object()}, 9)
    with pytest.raises(InputError, match=r"'a' and 'b' would both give 'fd_counting_n9'.*~metrics\.b\.measures"):
        check_distinct({"a": frechet, "b": both}, 9)


def test_a_reference_may_be_too_small_for_a_measure():
    metric = OnFeatures(features=Counting(), measures=[InceptionScore(), FrechetDistance(strict=True)])
    metric.check_reference(None)
    with pytest.raises(InputError, match="these are 5"):
        metric.check_reference(5)


def test_the_text_s_name_is_that_of_what_embeds_captions():
    features = Counting()
    features.layers, features.text_name = {"pool": 4, "text": 4, "caption_cut": 1}, "counting-prefix-abc"
    metric = OnFeatures(features=features, measures=[FrechetDistance(), ClipScore()])
    texts = [f"{name}_counting-prefix-abc_n3" for name in ("clip_score", "captions_cut")]
    assert metric.names(3) == ["fd_counting_n3", *texts]
    rows = JoinedRows([(0, metric.measure(images(3), batch(3)))])
    assert list(metric.result(rows, MeasuredReference(rows))) == metric.names(3)


def test_names():
    naming = Naming("net", published=True, count=9_999)
    assert naming("kid") == "kid_n9999"
    assert naming("fid", otherwise="fd", least=10_000) == "fd_net_n9999"
    assert naming.by_features("kid") == "kid_net_n9999"
    assert Naming("net", published=False, count=5)("kid") == "kid_net_n5"
    assert Naming("net", True, 10_000, reconstructions=True)("fid", otherwise="fd", least=10_000) == "rfid_n10000"
    assert Naming("net", True, 10_000, real=9_999)("fid", otherwise="fd", least=10_000) == "fd_net_n10000"
    assert Naming("net", True, 10_000, real=10_000)("fid", otherwise="fd", least=10_000) == "fid_n10000"
    assert Naming("net", True, 10_000, real=10)("kid") == "kid_n10000"
