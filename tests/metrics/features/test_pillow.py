import torch
from torchvision import transforms

from latentdiff.metrics.features.pillow import IMAGENET_MEAN, IMAGENET_STD, imagenet_input, pil_images


def test_imagenet_input_is_torchvisions_of_pillow_images(pictures):
    """Bit for bit that of FD-DINOv2's authors: Resize, ToTensor, Normalize; reducing, enlarging and not square."""
    theirs = transforms.Compose(
        [
            transforms.Resize((24, 24), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    for images in (pictures(2, size=64), pictures(2, size=16), pictures(2, size=48)[:, :, :30]):
        assert torch.equal(imagenet_input(images, 24), torch.stack([theirs(image) for image in pil_images(images)]))


def test_bytes_of_the_size_asked_for_stay():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal((imagenet_input(images, 16) * std + mean).mul(255).round().to(torch.uint8), images)
