"""The same UNet twice, ours and diffusers', with the same weights: what the benchmarks of the engine compare."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentdiff.models.backbones.unet import UNet
from latentdiff.types import Conditioning

SMALL = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": 64,
    "channel_multipliers": (1, 2, 4),
    "num_res_blocks": 2,
    "attention_factors": (2, 4),
    "context_dim": 256,
    "head_width": 32,
}
"""24.8 M parameters, for latents of 16 x 16."""
STABLE_DIFFUSION_1 = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": 320,
    "channel_multipliers": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_factors": (4, 2, 1),
    "context_dim": 768,
    "heads": 8,
}
TOKENS = 77


def ours(sizes: dict) -> UNet:
    """With random weights everywhere: the layers that start at zero would hide what is computed."""
    torch.manual_seed(0)
    model = UNet(**sizes)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def theirs(model: UNet, sizes: dict) -> nn.Module:
    """diffusers' UNet2DConditionModel with the weights of ``model``, through a single file in LDM's layout."""
    from diffusers import UNet2DConditionModel

    config = _diffusers_sizes(sizes) | {"_class_name": "UNet2DConditionModel"}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_file({f"model.diffusion_model.{k}": v for k, v in model.state_dict().items()}, folder / "m.safetensors")
        (folder / "unet").mkdir()
        (folder / "unet/config.json").write_text(json.dumps(config))
        peer = UNet2DConditionModel.from_single_file(
            str(folder / "m.safetensors"), config=str(folder), subfolder="unet", local_files_only=True
        )
    return peer.train()


def _diffusers_sizes(sizes: dict) -> dict:
    widths = [sizes["channels"] * m for m in sizes["channel_multipliers"]]
    attention = [2**level in sizes["attention_factors"] for level in range(len(widths))]
    heads = [sizes.get("heads") or width // sizes["head_width"] for width in widths]
    return {
        "sample_size": 16,
        "block_out_channels": widths,
        "layers_per_block": sizes["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if found else "DownBlock2D" for found in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if found else "UpBlock2D" for found in reversed(attention)],
        "cross_attention_dim": sizes["context_dim"],
        "attention_head_dim": heads,  # its name notwithstanding, the number of heads
    }


def inputs(sizes: dict, batch: int, side: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, 4, side, side), times in [0, 1000), tokens (B, 77, D), target like x."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, sizes["in_channels"], side, side, generator=generator)
    tokens = torch.randn(batch, TOKENS, sizes["context_dim"], generator=generator)
    times = torch.randint(0, 1000, (batch,), generator=generator)
    target = torch.randn(x.shape, generator=generator)
    return tuple(each.to(device) for each in (x, times, tokens, target))


def predict(model: nn.Module, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
    """Either model's output."""
    if hasattr(model, "input_blocks"):
        return model(x, t, Conditioning(tokens=tokens))
    return model(x, t, encoder_hidden_states=tokens).sample


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_equal(us: nn.Module, them: nn.Module, sizes: dict, side: int) -> None:
    """Stops the benchmark where the two are not the same network."""
    assert parameters(us) == parameters(them), f"{parameters(us)} parameters against {parameters(them)}"
    x, t, tokens, _ = inputs(sizes, 2, side)
    with torch.no_grad():
        ours_out, theirs_out = predict(us, x, t, tokens), predict(them, x, t, tokens)
    difference = (ours_out - theirs_out).abs().max() / theirs_out.abs().max()
    assert difference < 1e-4, f"the outputs differ by {difference:.2e} of the largest"
