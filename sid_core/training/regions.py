"""What is done to the blocks of a UNet: activations computed again in backward, compilation, weights shared out over GPUs."""

import warnings
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

COMPILED = {"ResnetBlock2D", "BasicTransformerBlock"}
SHARED_OUT = {
    "ResnetBlock2D",
    "Attention",
    "FeedForward",
}  # nearly all weights; the walk of a guided pair calls them whole
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


def share_out_blocks(unet: nn.Module, device: torch.device) -> None:
    """Let each process keep its part of a frozen network's blocks (FSDP2): all are brought together for a block when it computes,
    and again when it is differentiated through.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # what the blocks return is added to out of place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for block in blocks_to_share_out(unet):
        for weights in block.parameters():
            weights.data = weights.data.contiguous()  # it takes no others, such as channels_last
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks_to_share_out(unet: nn.Module) -> list[nn.Module]:
    return [module for module in unet.modules() if type(module).__name__ in SHARED_OUT]


def _blocks(unet: nn.Module) -> Iterator[nn.Module]:
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        yield from level.resnets
        yield from getattr(level, "attentions", None) or ()
