"""Where networks run in evaluation, and in which arithmetic."""

from typing import TypeVar

import torch
from torch import nn

from ..cluster.machine import device
from ..method import DTYPES

Network = TypeVar("Network", bound=nn.Module)


def place(network: Network, precision: str) -> Network:
    """Move a network to this machine's device and its weights to `precision`; buffers (the noise schedule) stay float32."""
    network.to(device())
    for weights in network.parameters():
        # cuDNN's 16-bit convolutions want channels last, and would transpose in and out of every one
        last = weights.is_cuda and weights.ndim == 4 and precision != "float32"
        layout = torch.channels_last if last else torch.preserve_format
        weights.data = weights.data.to(DTYPES[precision], memory_format=layout)
    return network


def arithmetic(device: str, dtype: torch.dtype) -> torch.autocast:
    """Autocast to 16 bits; in float32 it does nothing."""
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def exact_products() -> None:
    """Keep float32 products float32 on a GPU: cuDNN's default is TF32, with 10 bits of 23."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
