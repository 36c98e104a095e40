"""Both branches of a guided estimate at the price of less than two: they are equal up to the first cross-attention.

Until the text first enters, the branch with the prompt and the one without compute the same numbers from the same x_t and t.
That prefix is evaluated once, on B rows; where the text enters, the rows are doubled. The walk below is diffusers'
UNet2DConditionModel.forward for the blocks of Stable Diffusion, calling its modules; other networks are evaluated on 2B rows.
"""

from torch import Tensor, cat, nn

BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
# parts that other families of the class have, none of which the walk knows
EXTRAS = ("class_embedding", "add_embedding", "encoder_hid_proj", "time_embed_act")


def guided_pair(unet: nn.Module, x_t: Tensor, t: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
    """Outputs without and with the prompt, (2B, C, H, W) in this order.

    Args:
        unet: called as unet(x_t, t, encoder_hidden_states=cond).sample, diffusers' convention.
        x_t: noisy latents (B, C, H, W).
        t: noise levels (B,) int64.
        uncond, cond: embeddings (B, L, D).
    """
    text = cat([uncond, cond])
    if not shares_prefix(unet):
        return unet(cat([x_t, x_t]), cat([t, t]), encoder_hidden_states=text).sample
    emb = unet.time_embedding(unet.time_proj(t).to(x_t.dtype))
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
    for block in unet.up_blocks:
        for resnet, attention in _layers(block):
            h = _attend(attention, resnet(cat([h, _rows(skips.pop(), h)], dim=1), _rows(emb, h)), text)
        for upsampler in block.upsamplers or ():
            h = upsampler(h, skips[-1].shape[2:])
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def shares_prefix(unet: nn.Module) -> bool:
    """Whether the walk of `guided_pair` is this network's forward."""
    if type(unet).__name__ != "UNet2DConditionModel" or any(getattr(unet, name, None) is not None for name in EXTRAS):
        return False
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return {type(block).__name__ for block in blocks} <= BLOCKS and not unet.config.only_cross_attention


def _layers(block: nn.Module) -> list[tuple[nn.Module, nn.Module | None]]:
    return list(zip(block.resnets, getattr(block, "attentions", [None] * len(block.resnets)), strict=True))


def _rows(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with as many rows as `like`: doubled once the text has entered."""
    return tensor if len(tensor) == len(like) else cat([tensor, tensor])


def _attend(attention: nn.Module | None, h: Tensor, text: Tensor) -> Tensor:
    """Transformer2DModel.forward; where `text` has twice the rows of h, the self-attention before it is shared too."""
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
