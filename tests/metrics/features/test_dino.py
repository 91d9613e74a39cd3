import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentdiff.config.errors import InputError
from latentdiff.metrics.features import dino
from latentdiff.metrics.features.base import POOL
from latentdiff.metrics.features.dino import DinoFeatures, resized_positions
from latentdiff.metrics.features.pillow import imagenet_input

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random DINOv2 trained, so to speak, at 70 pixels: 5 x 5 patches."""
    path = tmp_path_factory.mktemp("dino")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14, mlp_ratio=2
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config)
    for tensor in network.parameters():
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=0.3)
    torch.nn.init.normal_(network.embeddings.position_embeddings, std=3)
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return DinoFeatures(model=str(folder))


def test_pool_is_the_class_token_after_the_norm(ours, folder, pictures, batch_of):
    """Of transformers' own network with the table of positions that DINOv2's code would give it."""
    theirs = transformers.Dinov2Model.from_pretrained(folder).eval()
    images = pictures(2, size=64)
    with torch.no_grad():
        transformers_own = theirs(pixel_values=imagenet_input(images, 224)).pooler_output
        positions = theirs.embeddings.position_embeddings
        positions.data = resized_positions(positions.data, 16)
        expected = theirs(pixel_values=imagenet_input(images, 224)).pooler_output
    found = ours(images, batch_of(images), [POOL])[POOL]
    assert found.shape == (2, ours.layers[POOL]) == (2, 16)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert (found - transformers_own).abs().max() > 1e-3


def cubic(x):
    """The kernel of cubic convolution with a = -0.75."""
    x = x.abs()
    near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros(())))


def test_positions_are_sampled_where_dinov2s_offset_puts_them():
    """Output i reads the position (i + 0.5) n / (side + 0.1) - 0.5, along both axes; away from the edges by hand."""
    n, side = 37, 16
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    grid = values.expand(n, n).reshape(1, n * n, 1)
    table = resized_positions(torch.cat([torch.full((1, 1, 1), -7.0), grid], dim=1), side)
    assert table.shape == (1, 1 + side * side, 1)
    assert table[0, 0, 0] == -7

    def sampled(scale):
        places = (torch.arange(side) + 0.5) * scale - 0.5
        return (cubic(places[:, None] - torch.arange(n)) @ values)[1:-1]

    row = table[0, 1:, 0].reshape(side, side)[3, 1:-1]
    turned = resized_positions(torch.cat([grid[:, :1], grid.reshape(n, n).T.reshape(1, -1, 1)], dim=1), side)
    down = turned[0, 1:, 0].reshape(side, side)[1:-1, 3]
    assert torch.allclose(row, sampled(n / (side + 0.1)), atol=1e-4)
    assert torch.allclose(down, row, atol=1e-5)
    assert (row - sampled(n / side)).abs().max() > 0.1
    same = torch.randn(1, 1 + side * side, 3)
    assert torch.equal(resized_positions(same, side), same)


def test_an_image_does_not_see_its_neighbours(ours, pictures, batch_of):
    images = pictures(3, size=40)
    together = ours(images, batch_of(images), [POOL])[POOL]
    assert torch.allclose(ours(images[1:2], batch_of(images[1:2]), [POOL])[POOL], together[1:2], atol=1e-5)


def test_folders_are_named_by_their_tensors(ours, monkeypatch):
    assert ours.name == f"dinov2-sha256-{ours.describe()['tensors_sha256'][:8]}"
    monkeypatch.setattr(dino, "_load", lambda model: ours.network)
    assert DinoFeatures(model="facebook/dinov2-large").name == "dinov2-large"
    assert DinoFeatures(model="somebody/dinov2-large").name.startswith("dinov2-sha256-")


def test_other_models_and_incomplete_weights_are_input_errors(folder, tmp_path):
    vit = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match="is a vit; expected a DINOv2"):
        DinoFeatures(model=str(tmp_path / "vit"))
    shutil.copytree(folder, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("layernorm")}
    save_file(kept, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 2 tensors of a DINOv2, first layernorm\.bias"):
        DinoFeatures(model=str(tmp_path / "cut"))
    torch.save(weights, tmp_path / "cut" / "pytorch_model.bin")
    (tmp_path / "cut" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"could not be loaded .*pickled ones are not read"):
        DinoFeatures(model=str(tmp_path / "cut"))
    with pytest.raises(InputError, match="neither a folder on this machine nor a model id"):
        DinoFeatures(model=str(tmp_path / "nowhere"))
