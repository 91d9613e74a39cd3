"""Single files of Stable Diffusion's own sizes, on the meta device: what they do not say is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentdiff.checkpoint.foreign.pipeline import single_file
from latentdiff.checkpoint.foreign.pipeline.whole import Told
from latentdiff.checkpoint.foreign.unet import ldm
from latentdiff.checkpoint.foreign.unet.node import node
from latentdiff.checkpoint.foreign.weights import WeightsFile
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.models.backbones.unet import UNet

SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": 320,
    "channel_multipliers": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attention_factors": [4, 2, 1],
}
VERSIONS = {
    1: ({"heads": 8, "context_dim": 768}, 859_520_964),
    2: ({"head_width": 64, "context_dim": 1024, "use_linear": True}, 865_910_724),
}


def file_of(unet: UNet) -> WeightsFile:
    tensors = {ldm.PREFIX + name: value for name, value in unet.state_dict().items()}
    return WeightsFile(Path("sd.ckpt"), frozenset(tensors), lambda names: {n: tensors[n] for n in names}, {})


@pytest.mark.parametrize("version", VERSIONS)
def test_heads_and_prediction_of_the_published_unets(version: int) -> None:
    own, parameters = VERSIONS[version]
    with torch.device("meta"):
        file = file_of(UNet(**SIZES, **own))
    told = Told(prediction={1: None, 2: "v"}[version])
    read = ldm.read(file)
    assert read.architecture.heads is None
    unet = single_file._with_heads(read, told)
    made = node(unet.architecture, file.path)
    assert {key: made.get(key) for key in ("heads", "head_width", "context_dim")} == {
        key: own.get(key) for key in ("heads", "head_width", "context_dim")
    }
    with torch.device("meta"):
        assert sum(p.numel() for p in build(made).parameters()) == parameters
    prediction = single_file._prediction(file, unet, told)
    assert prediction == {1: "epsilon", 2: "v_prediction"}[version]
    assert single_file._size(file, unet, prediction) == {1: 512, 2: 768}[version]
    if version == 2:
        assert single_file._size(file, unet, "epsilon") == 512
        with pytest.raises(InputError, match=r"give --prediction epsilon .* or --prediction v"):
            single_file._prediction(file, unet, Told())
