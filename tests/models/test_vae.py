import pytest
import torch

from sid_core.models.vae import ImageCodec


@pytest.fixture(scope="module")
def codec(tiny_teacher) -> ImageCodec:
    return ImageCodec.from_directory(tiny_teacher)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_image_codec_in_slices_equals_whole_batches(codec, tiny_teacher):
    sliced = ImageCodec.from_directory(tiny_teacher, at_once=2)
    seen = []
    sliced.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    latents, images = normal(5, 4, 8, 8), normal(5, 3, 16, 16).clamp(-1, 1)
    assert torch.allclose(sliced.decode(latents), codec.decode(latents), atol=1e-5)
    assert seen == [2, 2, 1]
    assert torch.allclose(sliced.encode(images), codec.encode(images), atol=1e-5)


def test_decode_divides_by_the_scaling_factor(codec):
    latents = normal(2, 4, 8, 8)
    with torch.no_grad():
        expected = codec.vae.decode(latents / codec.vae.config.scaling_factor).sample
    assert torch.equal(codec.decode(latents), expected)


def test_image_codec_in_16_bit_returns_float32(tiny_teacher, codec):
    half = ImageCodec.from_directory(tiny_teacher).to(torch.bfloat16)
    decoded = half.decode(normal(2, 4, 8, 8))
    assert decoded.dtype == torch.float32
    assert torch.allclose(decoded, codec.decode(normal(2, 4, 8, 8)), atol=0.1)
    assert half.encode(decoded).dtype == torch.float32
