import numpy as np
import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.evaluation.external_statistics import ExternalFile
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import Naming
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.metrics.rows import JoinedRows


class Inception:
    name, layers, published = "inception-2015-12-05", {"pool": 2048, "spatial": 2023}, True


class Other:
    name, layers, published = "randconv", {"pool": 4}, False


MEAN, SIGMA = np.arange(2048) / 2048, np.eye(2048)
MEAN_S, SIGMA_S = np.arange(2023) / 2023, 4 * np.eye(2023, dtype=np.float32)


def file(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return tmp_path / "x.npz"


def measured(count=6):
    columns = {"pool": torch.randn(count, 4, generator=torch.Generator().manual_seed(0))}
    return MeasuredReference(JoinedRows([(0, columns)]))


def test_moments_of_adm_serve_both_layers_and_those_of_edm_the_first(tmp_path):
    adm = ExternalFile.read(file(tmp_path, mu=MEAN, sigma=SIGMA, mu_s=MEAN_S, sigma_s=SIGMA_S)).of(Inception(), None)
    for layer, mean, sigma in (("pool", MEAN, SIGMA), ("spatial", MEAN_S, SIGMA_S)):
        assert torch.equal(adm.moments(layer).mean, torch.from_numpy(mean))
        assert torch.equal(adm.moments(layer).covariance, torch.from_numpy(sigma).double())
    assert adm.count is None
    assert "resize" not in adm.describe()
    edm = ExternalFile.read(file(tmp_path, mu=MEAN.astype(np.float32), sigma=SIGMA)).of(Inception(), None)
    assert edm.moments("pool").mean.dtype == torch.float64
    assert edm.describe()["resize"] == "not told by the file"
    with pytest.raises(InputError, match="has no moments of the layer 'spatial'"):
        edm.moments("spatial")


def test_a_distance_is_measured_to_the_moments_of_the_file(tmp_path):
    """Two images at the mean: |difference|^2 = 0, traces 2048 and 0, no overlap."""
    reference = ExternalFile.read(file(tmp_path, mu=MEAN, sigma=SIGMA)).of(Inception(), None)
    rows = JoinedRows([(0, {"pool": torch.from_numpy(MEAN).float().expand(2, -1)})])
    found = FrechetDistance()(rows, reference, Naming("inception-2015-12-05", True, 2))
    assert found == pytest.approx({"fd_inception-2015-12-05_n2": 2048.0}, rel=1e-6)


def test_moments_alone_have_no_features_and_serve_no_other_network(tmp_path):
    found = ExternalFile.read(file(tmp_path, mu=MEAN, sigma=SIGMA))
    with pytest.raises(InputError, match="moments alone, kernel distances, precision and recall, density and coverage"):
        found.of(Inception(), None).features("pool")
    with pytest.raises(InputError, match="statistics of the published Inception, the metrics look with randconv"):
        found.of(Other(), None)


def test_images_beside_the_moments_give_features_and_serve_other_networks(tmp_path):
    found = ExternalFile.read(file(tmp_path, mu=MEAN, sigma=SIGMA, arr_0=np.zeros((2, 8, 8, 3), np.uint8)))
    assert found.images
    inception, other = found.of(Inception(), measured()), found.of(Other(), measured())
    assert torch.equal(inception.moments("pool").mean, torch.from_numpy(MEAN))
    assert torch.equal(inception.features("pool"), measured().features("pool"))
    assert torch.equal(other.moments("pool").mean, measured().moments("pool").mean)
    assert (inception.count, other.count) == (None, 6)
    assert ("resize" in inception.describe(), "resize" in other.describe()) == (True, False)
    assert inception.describe()["moments"] == ["pool"]
    assert other.describe()["moments"] == []
    assert len(other.describe()["sha256"]) == 64


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(192), "sigma": np.eye(192)}, r"expected 'mu' as floats \(2048,\), got float64 \(192,\)"),
        ({"mu": MEAN}, r"expected 'sigma' as floats \(2048, 2048\), got none"),
        ({"mu": MEAN, "sigma": np.triu(np.ones((2048, 2048)))}, "not symmetric"),
        ({"mu": MEAN * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": MEAN.astype(int), "sigma": SIGMA}, "expected 'mu' as floats"),
        ({"mu": np.array([object()]), "sigma": SIGMA}, "pickled objects.*not opened"),
        ({"other": MEAN}, "expected a file of latentdiff reference, or mu and sigma, or images as arr_0"),
    ],
)
def test_files_at_fault_are_refused(tmp_path, arrays, said):
    with pytest.raises(InputError, match=said):
        ExternalFile.read(file(tmp_path, **arrays))


def test_pickles_and_missing_files_are_refused(tmp_path):
    (tmp_path / "edm2.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"EDM2.*not opened"):
        ExternalFile.read(tmp_path / "edm2.pkl")
    (tmp_path / "renamed.npz").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pickled objects, which can run any program"):
        ExternalFile.read(tmp_path / "renamed.npz")
    with pytest.raises(InputError, match="there is no file"):
        ExternalFile.read(tmp_path / "none.npz")
