import pytest
import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.models.perceptual import LPIPS, GradientPyramid


def vgg16_features():
    """VGG16's ``features`` with torchvision's numbering and He's initialisation."""
    torch.manual_seed(0)
    layers, before = [], 3
    for width in [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            nn.init.normal_(layers[-2].weight, std=(2 / (9 * before)) ** 0.5)
            before = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def vgg():
    return vgg16_features()


@pytest.fixture(scope="module")
def weights(vgg, tmp_path_factory):
    """A file like torchvision's, whose format is the one from before zip archives."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    state = {f"features.{k}": v for k, v in vgg.state_dict().items()} | {"classifier.0.weight": torch.zeros(1)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def lpips(weights):
    return LPIPS(weights=str(weights))


def test_agrees_with_torchmetrics(draw, lpips, vgg, monkeypatch):
    peer = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(peer, "_get_tv_model_features", lambda net, pretrained=False: vgg)
    oracle = peer._LPIPS(net="vgg", pnet_rand=True)
    a, b = draw(2, 3, 32, 48).clamp(-1, 1), draw(2, 3, 32, 48, seed=1).clamp(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(lpips(a, b), oracle(a, b).flatten(), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_images_alone(draw, lpips):
    a = draw(1, 3, 32, 32).requires_grad_()
    lpips(a, draw(1, 3, 32, 32, seed=1)).sum().backward()
    assert a.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())
    assert not nn.ModuleDict({"lpips": lpips}).state_dict()


def test_equal_images_have_no_distance(draw, lpips):
    a = draw(2, 3, 32, 32)
    assert lpips(a, a).tolist() == [0, 0]


def test_missing_weights_name_file_source_and_option(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*vgg16-397923af\.pth from https://.*option 'weights'"):
        LPIPS(weights=str(tmp_path / "none.pth"))


def test_a_failed_download_names_file_source_and_option(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no network\); get vgg16-397923af\.pth from https://"):
        LPIPS(weights=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>not found</html>", "cannot be read"), (None, "are not those of torchvision's VGG16")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "wrong.pth"
    torch.save({"other": torch.zeros(1)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        LPIPS(weights=str(path))


def test_gradient_pyramid_of_a_ramp():
    # slope 0.5 per pixel to the right: differences 0.5, then 1 and 2 at half and quarter size
    ramp = (0.5 * torch.arange(8.0)).expand(2, 1, 8, 8)
    flat = torch.zeros(2, 1, 8, 8)
    torch.testing.assert_close(GradientPyramid(levels=3)(ramp, flat), torch.full((2,), (0.5 + 1 + 2) / 3))
    torch.testing.assert_close(GradientPyramid(levels=1)(ramp.mT, flat), torch.full((2,), 0.5))


def test_gradient_pyramid_is_blind_to_offsets_and_refuses_small_images(draw):
    a = draw(2, 3, 16, 16)
    torch.testing.assert_close(GradientPyramid()(a + 0.25, a), torch.zeros(2), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="at least 8 pixels"):
        GradientPyramid()(a[..., :4], a[..., :4])
