"""``torch.compile`` block by block, in place: names of parameters, hooks and checkpoints stay as they are."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from latentdiff.config.errors import InputError
from latentdiff.nn.attention import AttentionBlock, SpatialTransformer
from latentdiff.nn.dit_blocks import DiTBlock
from latentdiff.nn.resnet import ResBlock

Compile = Literal["none", "blocks"]

BLOCKS = (ResBlock, SpatialTransformer, AttentionBlock, DiTBlock)


def compile_blocks(backbone: nn.Module, choice: Compile, *, backend: str = "inductor") -> None:
    """With ``blocks``, compiles every residual and transformer block of ``backbone`` in place, on any device.

    Blocks of one kind and shape share one compiled graph, so that a UNet compiles about half as many as it has blocks,
    each for the very shapes that it meets: channels and places of one block are not those of another, and a graph for
    all would be slower. A deep copy of the backbone runs as written.

    Args:
        backbone: built of the blocks of ``nn``.
        choice: ``none`` leaves it as it is.
        backend: of ``torch.compile``; ``eager`` and ``aot_eager`` need no compiler.

    Raises InputError for another word, and for a backbone that has no such block.
    """
    if choice not in get_args(Compile):
        raise InputError(f"task.compile: expected {' or '.join(get_args(Compile))}, got {choice!r}")
    if choice == "none":
        return
    blocks = [module for module in backbone.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        kinds = ", ".join(kind.__name__ for kind in BLOCKS)
        raise InputError(
            f"task.compile: {type(backbone).__name__} has no block that is compiled ({kinds}); set task.compile=none"
        )
    # All blocks of one class are one function to the compiler, which by default gives up on it after 8 shapes.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * len(blocks))
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * len(blocks))
    for block in blocks:
        block.compile(backend=backend, dynamic=False)
