"""Treat the blocks of a backbone: gradient checkpointing, compilation, weights sharded over GPUs."""

import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from ..models.backbones import Backbone

SHAPES = (
    256  # that one block's code is compiled for: its instances differ in width, size, rows and what is differentiated
)


def checkpoint_blocks(backbone: Backbone) -> None:
    """Keep the inputs of the residual and attention blocks alone for backward.

    diffusers' own switch works in its blocks' forward, which the shared prefix of a guided pair goes around; and like this it
    holds for frozen networks that are differentiated through to their input.
    """
    for block in backbone.blocks():
        # nothing random happens in a block, so no random state is kept
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(backbone: Backbone) -> None:
    """Compile each kind of block once a shape; a whole network would take many minutes."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for module in backbone.network.modules():
        if type(module).__name__ in backbone.COMPILED:
            module.compile(dynamic=False)


def shard_blocks(backbone: Backbone, device: torch.device) -> None:
    """Let each process keep its part of a frozen network's blocks (FSDP2): all are brought together for a block when it computes,
    and again when it is differentiated through.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # what the blocks return is added to out of place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for block in blocks_to_shard(backbone):
        for weights in block.parameters():
            weights.data = weights.data.contiguous()  # it takes no others, such as channels_last
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks_to_shard(backbone: Backbone) -> list[nn.Module]:
    return [module for module in backbone.network.modules() if type(module).__name__ in backbone.SHARDED]
