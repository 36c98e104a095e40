"""Define a network of a few parameters, called like diffusers' UNet."""

from types import SimpleNamespace

import torch
from torch import nn

D = 6  # width of the text embedding


class ToyUNet(nn.Module):
    """A smooth conditional network with few parameters, called like diffusers' UNet."""

    def __init__(self, seed: int):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.conv = nn.Parameter(torch.randn(2, 2, 3, 3, generator=g) * 0.2)
        self.text = nn.Parameter(torch.randn(2, D, generator=g) * 0.2)
        self.time = nn.Parameter(torch.randn(2, generator=g) * 0.2)

    @property
    def dtype(self):
        return self.conv.dtype

    def forward(self, x, t, encoder_hidden_states):
        h = nn.functional.conv2d(x, self.conv, padding=1) + (t / 1000).to(x.dtype).view(-1, 1, 1, 1) * self.time.view(
            1, 2, 1, 1
        )
        h = h + (encoder_hidden_states.mean(1) @ self.text.T)[:, :, None, None]
        return SimpleNamespace(sample=torch.tanh(h) + 0.3 * x)
