import sys

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.features import inception
from latentdiff.metrics.features.base import LOGITS, POOL, SPATIAL
from latentdiff.metrics.features.inception import INCEPTION_NAME, InceptionV3

LAYERS = [POOL, LOGITS, SPATIAL]


@pytest.fixture(scope="module")
def ours(inception_weights):
    return InceptionV3(weights=str(inception_weights))


def test_layers_are_torch_fidelitys(ours, inception_weights, pictures, batch_of):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    names = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("oracle", names, feature_extractor_weights_path=str(inception_weights))
    branches = {}

    def keep(module, inputs, output):
        branches["mixed_6"] = output.clone()

    theirs.Mixed_6d.register_forward_hook(keep)
    images = pictures(2, size=40)
    found = ours(images, batch_of(images), LAYERS)
    pool, logits = theirs(images)
    assert torch.equal(found[POOL], pool)
    assert torch.equal(found[LOGITS], logits)
    assert {name: tuple(column.shape) for name, column in found.items()} == {
        name: (2, width) for name, width in ours.layers.items()
    }
    # the block's output begins with its 1 x 1 branch
    spatial = found[SPATIAL].reshape(2, 17, 17, 7)
    assert torch.equal(spatial[1, 3, 5], branches["mixed_6"][1, :7, 3, 5])
    assert torch.equal(spatial.permute(0, 3, 1, 2), branches["mixed_6"][:, :7])
    assert spatial.min() == 0  # after the ReLU
    assert spatial.std() > 0.01


def test_pool_is_that_of_torchmetrics_without_antialiasing(ours, inception_weights, pictures, batch_of):
    from torchmetrics.image.fid import NoTrainInceptionV3

    images = pictures(1, size=40)
    theirs = NoTrainInceptionV3("oracle", ["2048"], str(inception_weights), antialias=False)
    assert torch.allclose(ours(images, batch_of(images), [POOL])[POOL], theirs(images), rtol=1e-5, atol=1e-6)


def test_an_image_does_not_see_its_neighbours(ours, pictures, batch_of):
    images = pictures(3, size=40)
    together = ours(images, batch_of(images), LAYERS)
    alone = ours(images[1:2], batch_of(images[1:2]), LAYERS)
    for name in LAYERS:
        assert torch.allclose(alone[name], together[name][1:2], rtol=1e-5, atol=1e-5)
    assert not ours.network.Mixed_6d.branch1x1._forward_hooks


def test_only_the_published_weights_have_the_published_name(ours, inception_weights, monkeypatch):
    assert not ours.published
    assert ours.name == f"inception-sha256-{ours.describe()['weights_sha256'][:8]}"
    monkeypatch.setattr(inception, "INCEPTION_SHA256", ours.sha256)
    published = InceptionV3(weights=str(inception_weights))
    assert (published.published, published.name) == (True, INCEPTION_NAME)


def test_says_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(InputError, match=r"not found; get https://github.com/toshas.*6726825d\.pth.*option 'weights'"):
        InceptionV3(weights=str(tmp_path / "none.pth"))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"<html>")
    with pytest.raises(InputError, match="does not hold the weights of the 2015 Inception"):
        InceptionV3(weights=str(damaged))
    torch.save({"fc.weight": torch.zeros(2, 2)}, damaged)
    with pytest.raises(
        InputError, match=r"does not hold the weights of the 2015 Inception.*Conv2d_1a.*get https"
    ) as info:
        InceptionV3(weights=str(damaged))
    assert len(str(info.value)) < 1000

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"did not download \(no route to host\); get https"):
        InceptionV3()
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(InputError, match=r"pip install 'latentdiff\[eval\]'"):
        InceptionV3()


def test_weights_are_never_unpickled(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(InputError):
        InceptionV3(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "canary").exists()
