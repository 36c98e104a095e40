"""Evaluate both branches of a guided estimate and share their prefix, up to the first cross-attention.

Before the text enters, both branches compute equal values from the same x_t and t. That prefix is evaluated once, on B
rows; where the text enters, the rows are doubled. `guided_pair` repeats diffusers' UNet2DConditionModel.forward for the
blocks of Stable Diffusion, calling its modules; other networks are evaluated on 2B rows. On loading weights,
`check_shared_prefix` compares it once with the network's own forward.
"""

import logging
import math
from collections.abc import Collection

import torch
from torch import Tensor, cat, nn

log = logging.getLogger(__name__)

BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
# modules of other models of this class, which `guided_pair` does not call
EXTRAS = {"class_embedding", "add_embedding", "encoder_hid_proj", "time_embed_act"}
TOLERANCE = 1e-4  # of the norm of the outputs


def guided_pair(unet: nn.Module, x_t: Tensor, t: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
    """Return outputs without and with the prompt, (2B, C, H, W) in this order.

    Args:
        unet: called as unet(x_t, t, encoder_hidden_states=cond).sample, diffusers' convention.
        x_t: noisy latents (B, C, H, W).
        t: noise levels (B,) int64.
        uncond, cond: embeddings (B, L, D).
    """
    text = cat([uncond, cond])
    if not shares_prefix(unet):
        return _evaluate_whole(unet, x_t, t, text)
    emb = time_embedding(unet, x_t, t)
    return decode(unet, *encode(unet, x_t, emb, text), emb, text)


def time_embedding(unet: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """Return the embedding (B, E) of t."""
    return unet.time_embedding(unet.time_proj(t).to(x_t.dtype))


def encode(unet: nn.Module, x_t: Tensor, emb: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Evaluate a UNet that `shares_prefix` up to its middle, for B rows of inputs and `emb`, and B or 2B of `text`.

    Returns:
        The mid block's output (as many rows as `text`, C, h, w), and the skip connections.
    """
    h = unet.conv_in(x_t)
    skips = [h]
    for block in unet.down_blocks:
        for resnet, attention in _layers(block):
            h = _attend(attention, resnet(h, _rows(emb, h)), text)
            skips.append(h)
        for downsampler in block.downsamplers or ():
            h = downsampler(h)
            skips.append(h)
    first, *resnets = unet.mid_block.resnets
    h = first(h, _rows(emb, h))
    for attention, resnet in zip(unet.mid_block.attentions, resnets, strict=True):
        h = _attend(attention, h, text)
        h = resnet(h, _rows(emb, h))
    return h, skips


def decode(unet: nn.Module, h: Tensor, skips: list[Tensor], emb: Tensor, text: Tensor) -> Tensor:
    """Evaluate the rest of the UNet from the results of `encode`."""
    for block in unet.up_blocks:
        for resnet, attention in _layers(block):
            h = _attend(attention, resnet(cat([h, _rows(skips.pop(), h)], dim=1), _rows(emb, h)), text)
        for upsampler in block.upsamplers or ():
            h = upsampler(h, skips[-1].shape[2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


@torch.no_grad()
def check_shared_prefix(unet: nn.Module) -> None:
    """Compare the shared prefix with two plain evaluations on one small batch; where they differ, disable it and warn.

    Requires float32 weights, where rounding gives 1e-6. The inputs come from a random stream of their own; copies of the
    network inherit the result.
    """
    if not shares_prefix(unet):
        log.info("guided pairs: evaluated whole; the shared prefix supports the blocks of Stable Diffusion alone")
        return
    draws, weight = torch.Generator().manual_seed(0), next(unet.parameters())
    side = max(8, 2 ** (len(unet.down_blocks) - 1))  # small: larger ones take longer and prove no more
    x_t = torch.randn(1, unet.config.in_channels, side, side, generator=draws).to(weight)
    uncond, cond = torch.randn(2, 1, 4, unet.config.cross_attention_dim, generator=draws).to(weight)
    t = torch.tensor([500], device=weight.device)
    separate = _evaluate_whole(unet, x_t, t, cat([uncond, cond]))
    try:
        difference = ((guided_pair(unet, x_t, t, uncond, cond) - separate).norm() / separate.norm()).item()
        reason = f"differs from two evaluations by {difference:.1e}, expected at most {TOLERANCE:g}"
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        difference, reason = math.inf, f"fails ({type(error).__name__}: {str(error)[:100]})"
    if not difference <= TOLERANCE:  # `not <=`: it may be NaN
        unet.shared_prefix_disabled = True
        log.warning("guided pairs: the shared prefix %s; both branches run whole, up to a tenth slower", reason)


def shares_prefix(unet: nn.Module) -> bool:
    """Return whether `guided_pair` shares the prefix: known blocks, and not disabled by `check_shared_prefix`."""
    return not getattr(unet, "shared_prefix_disabled", False) and has_known_blocks(unet)


def has_known_blocks(unet: nn.Module, extras: Collection[str] = EXTRAS) -> bool:
    """Return whether `encode` and `decode` can repeat the forward: Stable Diffusion's blocks, and no module of `extras`."""
    if type(unet).__name__ != "UNet2DConditionModel" or any(getattr(unet, name, None) is not None for name in extras):
        return False
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    known = {type(block).__name__ for block in blocks} <= BLOCKS
    return known and not unet.config.only_cross_attention and not unet.config.center_input_sample


def _evaluate_whole(unet: nn.Module, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return unet(cat([x_t, x_t]), cat([t, t]), encoder_hidden_states=text).sample


def _layers(block: nn.Module) -> list[tuple[nn.Module, nn.Module | None]]:
    return list(zip(block.resnets, getattr(block, "attentions", [None] * len(block.resnets)), strict=True))


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """Repeat `tensor` where `like` has twice its rows, since the text has entered."""
    return tensor if len(tensor) == len(like) else cat([tensor, tensor])


def _attend(attention: nn.Module | None, h: Tensor, text: Tensor) -> Tensor:
    """Repeat Transformer2DModel.forward; where `text` has twice the rows of h, the first self-attention is shared too."""
    if attention is None:
        return h
    if len(h) == len(text):
        return attention(h, encoder_hidden_states=text, return_dict=False)[0]
    height, width = h.shape[2:]
    tokens, inner = attention._operate_on_continuous_inputs(h)
    first, *blocks = attention.transformer_blocks
    tokens = tokens + first.attn1(first.norm1(tokens))
    tokens = cat([tokens, tokens])
    tokens = tokens + first.attn2(first.norm2(tokens), encoder_hidden_states=text)
    tokens = tokens + first.ff(first.norm3(tokens))
    for block in blocks:
        tokens = block(tokens, encoder_hidden_states=text)
    return attention._get_output_for_continuous_inputs(tokens, cat([h, h]), len(tokens), height, width, inner)
