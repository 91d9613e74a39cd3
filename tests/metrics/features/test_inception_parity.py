"""From images to numbers: ours against torch-fidelity's, with the same weight file."""

import pytest
from torch.utils.data import Dataset

from latentdiff.metrics.features.inception import InceptionV3
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.inception_score import InceptionScore
from latentdiff.metrics.kernel_distance import KernelDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.precision_recall import PrecisionRecall
from latentdiff.metrics.rows import JoinedRows

COUNT = 10


class Pictures(Dataset):
    """What torch-fidelity reads: uint8 (3, H, W), one by one."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(scope="module")
def sets(pictures):
    """Alike in part, so that precision and recall are between 0 and 1: some generated are dark, some real bright."""
    generated, real = pictures(COUNT, size=24, seed=1), pictures(COUNT, size=24, seed=2)
    generated[-4:], real[-4:] = generated[-4:] // 8, 255 - real[-4:] // 8
    return generated, real


@pytest.fixture(scope="module")
def ours(sets, inception_weights, batch_of):
    """``ours(measures)``: their numbers, without what their names say of features and counts."""
    features = InceptionV3(weights=str(inception_weights))
    kept = {}

    def run(*measures):
        metric = OnFeatures(features=features, measures=measures)
        rows = []
        for images in sets:
            parts = []
            for start in range(0, COUNT, 5):
                chunk = images[start : start + 5]
                key = (id(images), start, tuple(measure.layers for measure in measures))
                if key not in kept:
                    kept[key] = metric.measure(chunk, batch_of(chunk))
                parts.append((start, kept[key]))
            rows.append(JoinedRows(parts))
        found = metric.result(rows[0], metric.reference(rows[1]))
        return {name.partition(f"_{features.name}")[0]: value for name, value in found.items()}

    return run


@pytest.fixture(scope="module")
def theirs(sets, inception_weights):
    torch_fidelity = pytest.importorskip("torch_fidelity")

    def run(**wanted):
        generated, real = (Pictures(images) for images in sets)
        return torch_fidelity.calculate_metrics(
            input1=generated,
            input2=real,
            feature_extractor="inception-v3-compat",  # it would take VGG16 for precision and recall
            feature_extractor_weights_path=str(inception_weights),
            batch_size=5,
            cuda=False,
            cache=False,
            verbose=False,
            samples_shuffle=False,
            **wanted,
        )

    return run


def test_inception_score_kernel_distance_precision_and_recall(ours, theirs):
    found = ours(InceptionScore(splits=1), KernelDistance(subsets=1, subset_size=COUNT), PrecisionRecall(k=3))
    expected = theirs(isc=True, isc_splits=1, kid=True, kid_subsets=1, kid_subset_size=COUNT, prc=True)
    assert found["is"] - 1 == pytest.approx(expected["inception_score_mean"] - 1, rel=1e-3)
    assert found["is"] > 1.001
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found["precision"] == pytest.approx(expected["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], rel=1e-6)
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


@pytest.mark.slow
def test_frechet_distance(ours, theirs):
    """Theirs takes the eigenvalues of a 2048 x 2048 product, ours the 10 singular values that are not 0."""
    found = ours(FrechetDistance())
    assert found["fd"] == pytest.approx(theirs(fid=True)["frechet_inception_distance"], rel=1e-3)
