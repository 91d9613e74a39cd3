import json

import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.evaluation.npz_member import opened_npz
from latentdiff.evaluation.reference_file import RECORD, ReferenceFile, Seen, save_reference
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.kernel_distance import KernelDistance
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.metrics.rows import JoinedRows

COUNT, WIDTHS = 50, {"pool": 4, "spatial": 3}
EVENLY = np.linspace(0, COUNT - 1, 20).astype(int)


class Eye:
    """Features that only have a name."""

    published = False

    def __init__(self, name="eye", weights="abc", library="one 1.0", **about):
        self.name, self.layers, self.about = name, WIDTHS, {"weights_sha256": weights, "library": library, **about}

    def describe(self):
        return dict(self.about)


def rows(count=COUNT, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    columns = {name: torch.randn(count, width, generator=generator) + shift for name, width in WIDTHS.items()}
    return JoinedRows([(i, {k: v[i : i + 8] for k, v in columns.items()}) for i in range(0, count, 8)])


def saved(tmp_path, *, keep=20, layers=("pool", "spatial"), eye=None, name="r.npz"):
    record = {"dataset": {"name": "flowers"}, "count": COUNT, "images": {"size": 64}, "made_with": {"torch": "2"}}
    path = tmp_path / name
    save_reference(path, record, [Seen(eye or Eye(), rows(), layers)], keep=keep)
    return path


def test_moments_are_those_of_all_images_and_features_are_spread_over_them(tmp_path):
    reference, measured = ReferenceFile(saved(tmp_path)).of(Eye()), MeasuredReference(rows())
    for layer in WIDTHS:
        ours, theirs = reference.moments(layer), measured.moments(layer)
        assert torch.equal(ours.mean, theirs.mean)
        assert torch.equal(ours.covariance, theirs.covariance)
        assert (ours.mean.dtype, ours.count) == (torch.float64, COUNT)
        assert torch.equal(reference.features(layer), measured.features(layer)[EVENLY])
    assert reference.count == COUNT


@pytest.mark.parametrize("keep", [COUNT, 10_000])
def test_all_features_are_kept_where_there_is_room(tmp_path, keep):
    reference = ReferenceFile(saved(tmp_path, keep=keep)).of(Eye())
    assert torch.equal(reference.features("pool"), rows().column("pool"))


def test_numbers_against_the_file_are_those_against_the_images(tmp_path):
    reference, measured = ReferenceFile(saved(tmp_path, keep=COUNT)).of(Eye()), MeasuredReference(rows())
    samples, naming = rows(seed=1, shift=0.5), Naming("eye", False, COUNT)
    for measure in (FrechetDistance(), FrechetDistance(layer="spatial"), KernelDistance(subsets=3, subset_size=20)):
        assert measure(samples, reference, naming) == measure(samples, measured, naming)


def test_moments_alone_serve_the_frechet_distance_and_nothing_else(tmp_path):
    reference = ReferenceFile(saved(tmp_path, keep=0)).of(Eye())
    few, naming = rows(count=3, seed=1), Naming("eye", False, 3)
    assert FrechetDistance()(few, reference, naming)["fd_eye_n3"] > 0
    with pytest.raises(InputError, match=r"holds no features, kernel distances, precision and recall.*features=10000"):
        KernelDistance(subsets=3, subset_size=3)(few, reference, naming)


def test_the_same_images_give_the_same_bytes_and_the_record_is_told(tmp_path):
    one, other = saved(tmp_path), saved(tmp_path, name="s.npz")
    assert one.read_bytes() == other.read_bytes()
    about = ReferenceFile(one).of(Eye()).describe()
    assert about["sha256"] == ReferenceFile(other).record["sha256"]
    assert about["dataset"] == {"name": "flowers"}


@pytest.mark.parametrize(
    ("eye", "said"),
    [
        (Eye(name="nose"), r"features by eye, the metrics look with nose"),
        (Eye(weights="xyz"), r"weights_sha256 'abc', here it is 'xyz'"),
    ],
)
def test_another_network_is_refused(tmp_path, eye, said):
    with pytest.raises(InputError, match=said):
        ReferenceFile(saved(tmp_path)).of(eye)


def test_what_changes_no_image_s_feature_may_differ(tmp_path):
    ReferenceFile(saved(tmp_path)).of(Eye(library="one 1.1"))
    prefixed = saved(tmp_path, eye=Eye(prefix="A photo depicts "), name="p.npz")
    assert torch.equal(ReferenceFile(prefixed).of(Eye(prefix="")).features("pool"), rows().column("pool")[EVENLY])


def test_a_layer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="holds of eye pool, not 'spatial'"):
        ReferenceFile(saved(tmp_path, layers=["pool"])).of(Eye()).moments("spatial")


def test_two_networks_and_two_metrics_with_one_network_share_a_file(tmp_path):
    seen = [Seen(Eye(), rows(), ["pool"]), Seen(Eye("nose"), rows(seed=3), ["pool"]), Seen(Eye(), rows(), WIDTHS)]
    save_reference(tmp_path / "r.npz", {"count": COUNT}, seen, keep=5)
    file = ReferenceFile(tmp_path / "r.npz")
    assert torch.equal(file.of(Eye("nose")).moments("pool").mean, MeasuredReference(rows(seed=3)).moments("pool").mean)
    assert torch.equal(file.of(Eye()).moments("spatial").mean, MeasuredReference(rows()).moments("spatial").mean)


def test_a_file_whose_content_was_changed_is_damaged(tmp_path):
    path = saved(tmp_path)
    with opened_npz(path) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    changed = {**content, "eye/pool/mean": content["eye/pool/mean"] + 1e-9}
    np.savez(tmp_path / "changed.npz", **changed)
    with pytest.raises(InputError, match="does not have the sha256"):
        ReferenceFile(tmp_path / "changed.npz")
    record = json.loads(content[RECORD].tobytes()) | {"format": "other"}
    np.savez(tmp_path / "other.npz", **{**content, RECORD: np.frombuffer(json.dumps(record).encode(), np.uint8)})
    with pytest.raises(InputError, match="has the format 'other'"):
        ReferenceFile(tmp_path / "other.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        ReferenceFile(path)


def test_other_files_are_no_references(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3))
    with pytest.raises(InputError, match="no reference file of latentdiff"):
        ReferenceFile(tmp_path / "x.npz")


def test_one_image_makes_no_reference(tmp_path):
    with pytest.raises(InputError, match="at least 2 images"):
        save_reference(tmp_path / "r.npz", {}, [Seen(Eye(), rows(count=1), ["pool"])], keep=0)
    assert not list(tmp_path.iterdir())
