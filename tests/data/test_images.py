import io

import numpy as np
import pytest
import torch
from PIL import Image

from sid_core.data import images
from sid_core.errors import UserError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_quantise_clips_and_truncates():
    x = torch.tensor([-3.0, -1.0, -1 / 127.5, 0.0, 0.9999 / 127.5, 1 / 127.5, 1.0, 3.0])
    levels = images.quantise(x.view(1, 1, 1, 8).expand(1, 3, 1, 8))
    assert levels.dtype == np.uint8
    assert levels.shape == (1, 1, 8, 3)
    assert levels[0, 0, :, 1].tolist() == [0, 0, 127, 128, 128, 129, 255, 255]


def test_quantise_of_dequantised_levels_gives_them_back():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    x = images.dequantise(levels)
    assert x.min() == -1
    assert x.max() == 1
    assert np.array_equal(images.quantise(x), levels)


@pytest.mark.parametrize("size", [(425, 640), (640, 429), (333, 500), (64, 64)])
def test_centre_crop_equals_torchvision(size):
    # At 333 x 500 the middle lies between pixels: torchvision rounds half to even, `//` does not.
    from torchvision.transforms.functional import center_crop

    image = picture(*size)
    expected = np.asarray(center_crop(Image.fromarray(image), [min(size)] * 2))
    assert np.array_equal(images.centre_crop(image), expected)


def test_centre_crop_rounds_half_to_even():
    # 425 x 640 leaves 215: 107.5 rounds to 108, 215 // 2 is 107.
    columns = np.broadcast_to(np.arange(640) % 256, (425, 640))
    image = np.stack([columns] * 3, axis=2).astype(np.uint8)
    assert images.centre_crop(image)[0, 0, 0] == 108


def test_shrink_equals_pil_lanczos():
    image = picture(512, 512)
    expected = Image.fromarray(image).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(images.shrink(image, 256), np.asarray(expected))


def test_enlarge_equals_pil_in_float():
    image = picture(256, 256)
    enlarged = images.enlarge(image, 299)
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
    expected = np.stack([np.asarray(c.resize((299, 299), Image.Resampling.BICUBIC)) for c in channels], axis=2)
    assert enlarged.dtype == np.float32
    assert np.abs(enlarged - expected.clip(0, 255)).max() < 0.002
    assert np.abs(enlarged - enlarged.round()).max() > 0.1, "it must not round to 8 bits"


def test_encode_png_keeps_pixels():
    image = picture(9, 7)
    assert np.array_equal(images.decode_png(images.encode_png(image, 1), "x"), image)


def test_decode_png_of_other_modes_equals_to_rgb():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0x80FF, np.uint16)).save(buffer, "PNG")
    assert np.unique(images.decode_png(buffer.getvalue(), "x")).tolist() == [0x80]
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(buffer, "PNG")
    with pytest.raises(UserError, match="x: has transparent pixels"):
        images.decode_png(buffer.getvalue(), "x")


def test_encode_png_with_a_higher_level_is_smaller():
    image = np.asarray(Image.fromarray(picture(4, 4)).resize((64, 64), Image.Resampling.BICUBIC))
    sizes = [len(images.encode_png(image, level)) for level in (0, 1, 9)]
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("kept", [0, 20, 150])
def test_decode_png_of_truncated_data_names_it(kept):
    data = images.encode_png(picture(32, 32), 1)
    with pytest.raises(UserError, match=r"shard\.tar: 00000003\.png.*truncated"):
        images.decode_png(data[:kept], "shard.tar: 00000003.png")
