"""What is done to the blocks of a UNet: activations computed again in backward, and compilation."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

COMPILED = {"ResnetBlock2D", "BasicTransformerBlock"}
SHAPES = (
    256  # that one block's code is compiled for: its instances differ in width, size, rows and what is differentiated
)


def checkpoint_blocks(unet: nn.Module) -> None:
    """Keep the inputs of the residual and attention blocks alone for backward.

    diffusers' own switch works in its blocks' forward, which the shared prefix of a guided pair goes around; and like this it
    holds for frozen networks that are differentiated through to their input.
    """
    for block in _blocks(unet):
        # nothing random happens in a block, so no random state is kept
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(unet: nn.Module) -> None:
    """Compile each kind of block once a shape; a whole UNet would take many minutes."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for module in unet.modules():
        if type(module).__name__ in COMPILED:
            module.compile(dynamic=False)


def _blocks(unet: nn.Module) -> Iterator[nn.Module]:
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from level.resnets
        yield from getattr(level, "attentions", None) or ()
