import pytest
import torch
from torchvision import models

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import LOGITS, POOL
from latentdiff.metrics.features.pillow import imagenet_input
from latentdiff.metrics.features.torchvision import TorchvisionFeatures, last_layer

MODEL = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torchvision") / "weights.pth"
    torch.save(models.get_model(MODEL, weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def ours(weights):
    return TorchvisionFeatures(model=MODEL, weights=str(weights))


def test_layers_are_the_classifiers(ours, weights, pictures, batch_of):
    theirs = models.get_model(MODEL, weights=None).eval()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    images = pictures(2, size=64)
    found = ours(images, batch_of(images), [POOL, LOGITS])
    with torch.no_grad():
        x = theirs.avgpool(theirs.features(imagenet_input(images, 224))).flatten(1)
        torch.testing.assert_close(found[LOGITS], theirs.classifier(x))
        torch.testing.assert_close(found[POOL], theirs.classifier[:3](x))
    assert {name: column.shape[1] for name, column in found.items()} == ours.layers == {POOL: 1024, LOGITS: 1000}
    assert ours.name == f"{MODEL}-sha256-{ours.describe()['weights_sha256'][:8]}"


def test_an_image_does_not_see_its_neighbours(ours, pictures, batch_of):
    images = pictures(3, size=40)
    together = ours(images, batch_of(images), [POOL])
    alone = ours(images[1:2], batch_of(images[1:2]), [POOL])
    assert list(alone) == [POOL]
    assert torch.allclose(alone[POOL], together[POOL][1:2], atol=1e-5)


def test_vgg16s_pool_is_its_second_fully_connected_layer():
    with torch.device("meta"):
        network = models.vgg16()
    assert last_layer(network, "vgg16") is network.classifier[6]
    assert (network.classifier[3].out_features, network.classifier[6].in_features) == (4096, 4096)


@pytest.mark.parametrize("model", ["squeezenet1_1", "googlenet"])
def test_classifiers_of_another_kind_are_input_errors(model, tmp_path):
    with torch.device("meta"):
        network = models.get_model(model, weights=None, **({"init_weights": False} if model == "googlenet" else {}))
    with pytest.raises(InputError, match=f"{model} does not end in a fully connected layer or expects"):
        last_layer(network, model)


def test_weights_that_are_missing_or_anothers_are_input_errors(weights, tmp_path):
    with pytest.raises(InputError, match=r"not found; get https://download\.pytorch\.org/models/resnet18-.*'weights'"):
        TorchvisionFeatures(model="resnet18", weights=str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match=r"does not hold the weights of torchvision's resnet18.*get https") as found:
        TorchvisionFeatures(model="resnet18", weights=str(weights))
    assert len(str(found.value)) < 1000
    with pytest.raises(InputError, match=r"no classifier 'resnet19'; did you mean .*resnet18"):
        TorchvisionFeatures(model="resnet19", weights=str(weights))
