import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.metrics.features import INCEPTION_NAME, InceptionV3, RandomConvFeatures


def images(n, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_random_features_are_the_same_everywhere():
    torch.manual_seed(1)
    first = RandomConvFeatures()
    torch.manual_seed(2)
    again = RandomConvFeatures()
    x = images(3)
    assert first(x).shape == (3, first.dim) == (3, 256)
    assert first(x).dtype == torch.float32
    assert torch.equal(first(x), again(x))
    assert torch.allclose(first(x)[1:2], first(x[1:2]), atol=1e-5)
    assert not first.state_dict()


def test_random_features_first_scale_by_hand():
    features = RandomConvFeatures(dim=8, scales=1)
    constant = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    values = features(constant)[0]
    activation = features.weight0.sum(dim=(1, 2, 3)) + features.bias0
    activation = torch.where(activation > 0, activation, 0.2 * activation)
    assert torch.allclose(values[:4], activation, atol=1e-5)
    assert torch.allclose(values[4:], torch.zeros(4), atol=1e-5)


def test_other_settings_have_other_names():
    names = {RandomConvFeatures(seed=s, dim=d).name for s, d in ((0, 256), (1, 256), (0, 128))}
    assert len(names) == 3
    assert "randconv-v1" in names


def test_autocast_outside_changes_nothing():
    features, x = RandomConvFeatures(), images(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = features(x)
    assert torch.equal(inside, features(x))


def test_refusals():
    with pytest.raises(InputError, match="multiple of 2"):
        RandomConvFeatures(dim=100)
    with pytest.raises(InputError, match="at least 16 pixels"):
        RandomConvFeatures()(images(1, size=8))
    with pytest.raises(ValueError, match="uint8 images"):
        RandomConvFeatures()(images(1).float())


def test_inception_says_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(InputError, match=r"not found; get https://github.com/toshas.*6726825d\.pth.*option 'weights'"):
        InceptionV3(weights=str(tmp_path / "none.pth"))
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"<html>")
    with pytest.raises(InputError, match="does not hold the weights of the 2015 Inception"):
        InceptionV3(weights=str(damaged))

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"did not download \(no route to host\); get https"):
        InceptionV3()


def test_inception_weights_are_never_unpickled(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(InputError):
        InceptionV3(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "canary").exists()


def test_inception_features_are_torchmetrics_without_antialiasing(tmp_path, monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from torchmetrics.image.fid import NoTrainInceptionV3

    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: None)
    with monkeypatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        blank = module.FeatureExtractorInceptionV3("blank", ["2048"])
    path = str(tmp_path / "weights.pth")
    torch.save(blank.state_dict(), path)
    ours = InceptionV3(weights=path)
    theirs = NoTrainInceptionV3("oracle", ["2048"], path, antialias=False)
    x = images(2, size=40)
    assert ours.name.startswith("inception-sha256-")
    assert ours.name != INCEPTION_NAME
    assert ours(x).shape == (2, 2048)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
