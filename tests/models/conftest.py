import pytest
import torch


@pytest.fixture
def draw():
    """Standard normal tensors by shape and seed."""
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def randomise():
    """Gives every parameter random values, the ones that start at zero too."""

    def fill(module, std=0.1):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(std * torch.randn(p.shape, generator=generator) + (p.ndim == 1))
        return module

    return fill
