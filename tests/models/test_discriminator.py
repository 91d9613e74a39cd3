import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.models.discriminator import PatchDiscriminator


def receptive_field(layers):
    """Of 4x4 convolutions: ``layers`` of stride 2, then two of stride 1."""
    field = 1
    for stride in [1, 1] + [2] * layers:
        field = (field - 1) * stride + 4
    return field


def test_published_discriminator():
    with torch.device("meta"):
        model = PatchDiscriminator(norm="batch")
    assert sum(p.numel() for p in model.parameters()) == 2_765_633
    assert receptive_field(3) == 70  # the "70x70 PatchGAN" of arXiv:1611.07004
    assert {"main.0.weight", "main.2.weight", "main.3.weight", "main.11.bias"} <= set(model.state_dict())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_each_logit_sees_its_patch_only(layers):
    torch.manual_seed(0)
    model = PatchDiscriminator(channels=4, layers=layers)
    for i, m in enumerate(model.main):
        if isinstance(m, torch.nn.GroupNorm):  # its statistics see the whole image
            model.main[i] = torch.nn.Identity()
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = model(image)
    assert logits.shape[1:] == (1, 128 // 2**layers - 2, 128 // 2**layers - 2)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = image.grad.abs().sum((0, 1)) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == receptive_field(layers)


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_images_of_a_batch_do_not_mix(draw, norm):
    model = PatchDiscriminator(channels=8, layers=2, norm=norm)
    images = draw(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-5)


def test_batch_norm_remembers_nothing_and_is_torchs(draw):
    model = PatchDiscriminator(channels=8, layers=2, norm="batch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = draw(3, 16, 5, 5)
    peer = torch.nn.BatchNorm2d(16)
    peer.load_state_dict(model.main[3].state_dict(), strict=False)
    torch.testing.assert_close(model.main[3](x), peer(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(model.buffers())


def test_instance_norm_is_torchs(draw):
    model = PatchDiscriminator(channels=8, layers=1, norm="instance")
    torch.nn.init.ones_(model.main[3].weight)
    x = draw(3, 16, 5, 5)
    torch.testing.assert_close(model.main[3](x), torch.nn.functional.instance_norm(x))


def test_unknown_norm_is_refused():
    with pytest.raises(InputError, match="one of group, batch, instance, none; got 'layer'"):
        PatchDiscriminator(norm="layer")


def test_initialisation():
    torch.manual_seed(0)
    model = PatchDiscriminator()
    assert model.main[5].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.main[6].weight.mean().item() == pytest.approx(1, abs=0.01)
