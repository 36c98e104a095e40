"""Apply activation checkpointing, compilation and FSDP to the blocks of a backbone."""

import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from ..models.backbones import Backbone

SHAPES = 256  # recompilations allowed: instances of a block differ in width, size, batch and requires_grad


def checkpoint_blocks(backbone: Backbone) -> None:
    """Store only the inputs of residual and attention blocks for backward.

    diffusers' own switch acts in its blocks' forward, which the shared prefix of a guided pair bypasses. It also
    ignores frozen networks, through which the loss is differentiated to their input.
    """
    for block in backbone.blocks():
        # blocks have no dropout: saving the random state would only cost time
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(backbone: Backbone) -> None:
    """Compile each kind of block once per shape; a whole network would take many minutes."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    for module in backbone.network.modules():
        if type(module).__name__ in backbone.COMPILED:
            module.compile(dynamic=False)


def shard_blocks(backbone: Backbone, device: torch.device) -> None:
    """Shard the parameters of a frozen network's blocks over the ranks (FSDP2).

    Each block is all-gathered before its forward and again before its backward.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # harmless: outputs of blocks are never changed in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for block in blocks_to_shard(backbone):
        for weights in block.parameters():
            weights.data = weights.data.contiguous()  # FSDP2 supports no other strides, such as channels_last
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks_to_shard(backbone: Backbone) -> list[nn.Module]:
    return [module for module in backbone.network.modules() if type(module).__name__ in backbone.SHARDED]
