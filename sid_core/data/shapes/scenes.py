"""Sample and render scenes: one shape on a coloured or striped background, with continuous attributes.

Shapes are signed distance fields (formulas after Inigo Quilez' "2D distance functions"), blended between neighbouring kinds,
and rendered with one pixel of anti-aliasing. A caption (see captions.py) names only some attributes, with soft boundaries:
classifier-free guidance trades away the diversity of the others.

Sample i of a split does not depend on the requested range: random values are drawn in blocks of BLOCK samples, each seeded
from (split, block).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from . import captions

# references: `watch` of proxy metrics, `validation-reference` of `validation` (to choose settings), `reference` of `evaluation`;
# `real-images` of distillations
SPLITS = ("train", "watch", "validation", "validation-reference", "evaluation", "reference", "real-images")
IMAGE_SIZE = 32
BLOCK = 256

# One colour for each word of captions.COLOURS; hues in between are interpolated, cyclically.
PALETTE = torch.tensor(
    [[222, 48, 52], [250, 196, 44], [64, 170, 72], [36, 178, 178], [52, 96, 214], [132, 66, 190], [240, 112, 178]],
    dtype=torch.float64,
).div(255)


@dataclass(frozen=True)
class Scenes:
    """Attributes of n scenes, (n,) float32 each; lengths are in half image widths, y points down."""

    kind: Tensor  # position on the cycle of captions.SHAPES, [0, 6)
    hue: Tensor  # position on the cycle of captions.COLOURS, [0, 7)
    radius: Tensor  # 0.35 to 0.75
    x: Tensor  # centre, -1 to 1
    y: Tensor
    rotation: Tensor  # radians, -0.4 to 0.4
    light: Tensor  # direction the light comes from, radians
    shading: Tensor  # 0 (flat) to 0.4
    background: Tensor  # hue, [0, 7)
    paleness: Tensor  # of the background, 0.4 to 0.7
    stripes: Tensor  # contrast, 0 (none) to 0.25
    stripe_angle: Tensor  # radians, 0 to pi
    stripe_count: Tensor  # periods across the image, 1.5 to 3
    stripe_phase: Tensor  # radians

    def __getitem__(self, index: slice | Tensor) -> "Scenes":
        return self.map(lambda attribute: attribute[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Scenes":
        """Apply `change` to every attribute."""
        return Scenes(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def __len__(self) -> int:
        return len(self.kind)


def draw(split: str, n: int, start: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return images (n, 32, 32, 3) uint8 and captions of samples start .. start + n of a split."""
    images, texts, _ = draw_with_scenes(split, n, start)
    return images.permute(0, 2, 3, 1).contiguous().numpy(), texts


def draw_with_scenes(split: str, n: int, start: int = 0) -> tuple[Tensor, list[str], Scenes]:
    """Return images (n, 3, 32, 32) uint8, captions and scenes of samples start .. start + n, for training."""
    assert split in SPLITS, f"split {split!r}: expected one of {SPLITS}"
    images, texts, scenes = [], [], []
    for block in range(start // BLOCK, (start + n - 1) // BLOCK + 1 if n else start // BLOCK):
        generator = torch.Generator().manual_seed(_block_seed(split, block))
        inside = slice(max(start - block * BLOCK, 0), min(start + n - block * BLOCK, BLOCK))
        drawn = sample_scenes(BLOCK, generator)
        texts += captions.describe(drawn.kind, drawn.hue, drawn.radius, drawn.background, generator)[inside]
        scenes.append(drawn[inside])
        images.append(render(drawn[inside]))
    if not images:
        return torch.zeros(0, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), [], sample_scenes(0, torch.Generator())
    joined = {field.name: torch.cat([getattr(part, field.name) for part in scenes]) for field in fields(Scenes)}
    return torch.cat(images), texts, Scenes(**joined)


def sample_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Sample n random scenes; shapes concentrate near their pure kinds, so that images are legible, hues are uniform."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    off = uniform(-1, 1)
    radius = uniform(0.35, 0.75)
    room = 0.95 - radius  # the shape may lose a corner at the border, never more
    return Scenes(
        kind=(uniform(0, len(captions.SHAPES)).floor() + 0.5 * off.sign() * off.abs() ** 3) % len(captions.SHAPES),
        hue=uniform(0, len(captions.COLOURS)),
        radius=radius,
        x=room * uniform(-1, 1),
        y=room * uniform(-1, 1),
        rotation=uniform(-0.4, 0.4),
        light=uniform(-math.pi, math.pi),
        shading=uniform(0, 0.4),
        background=uniform(0, len(captions.COLOURS)),
        paleness=uniform(0.4, 0.7),
        stripes=uniform(-0.25, 0.25).clamp(min=0),
        stripe_angle=uniform(0, math.pi),
        stripe_count=uniform(1.5, 3.0),
        stripe_phase=uniform(-math.pi, math.pi),
    )


def render(scenes: Scenes) -> Tensor:
    """Render scenes to images (n, 3, 32, 32) uint8, in float64.

    float32 sines differ in their last bit between processors, which rounds one value in three million to another integer:
    the images, and so the protocol's hash, would depend on the machine.
    """
    scenes = scenes.map(Tensor.double)
    centres = (torch.arange(IMAGE_SIZE, dtype=torch.float64) + 0.5) * 2 / IMAGE_SIZE - 1
    py, px = torch.meshgrid(centres, centres, indexing="ij")
    s = vars(scenes.map(lambda attribute: attribute[:, None, None]))

    along = s["stripe_angle"].cos() * px + s["stripe_angle"].sin() * py  # (n, 32, 32), as everything here
    wave = (math.pi * s["stripe_count"] * along + s["stripe_phase"]).sin()
    pale = s["paleness"] + s["stripes"] * wave.mul(3).tanh()
    background = _mix(_colour(scenes.background), 1.0, pale)  # (n, 3, 32, 32)

    dx, dy = (px - s["x"]) / s["radius"], (py - s["y"]) / s["radius"]
    cos, sin = s["rotation"].cos(), s["rotation"].sin()
    distance = _distance(scenes.kind, cos * dx + sin * dy, cos * dy - sin * dx) * s["radius"]
    lit = s["shading"] * (s["light"].cos() * dx + s["light"].sin() * dy).clamp(-1, 1)
    shape = _mix(_mix(_colour(scenes.hue), 1.0, lit.clamp(min=0)), 0.0, (-lit).clamp(min=0))

    shadow = 0.3 * (-distance.clamp(min=0) / 0.12).exp()
    cover = (0.5 - distance * IMAGE_SIZE / 2).clamp(0, 1)
    image = torch.lerp(_mix(background, 0.0, shadow), shape, cover[:, None])
    return (image * 255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _block_seed(split: str, block: int) -> int:
    return int.from_bytes(hashlib.sha256(f"shapes {split} {block}".encode()).digest()[:7], "big")


def _colour(position: Tensor) -> Tensor:
    """Interpolate the palette at cyclic positions: (n,) -> (n, 3, 1, 1)."""
    low = position.floor()
    first, second = PALETTE[low.long() % len(PALETTE)], PALETTE[(low.long() + 1) % len(PALETTE)]
    return torch.lerp(first, second, (position - low)[:, None])[:, :, None, None]


def _mix(colour: Tensor, towards: float, amount: Tensor) -> Tensor:
    return colour + (towards - colour) * amount[:, None]


# --- signed distances of shapes of radius about 1, centred: u, v (n, 32, 32) -> (n, 32, 32) ---------------------------


def _distance(kind: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Compute the signed distance to the blend of the two neighbouring kinds, (n, 32, 32)."""
    low = kind.floor().long() % len(DISTANCES)
    weight = kind - kind.floor()
    distance = torch.zeros_like(u)
    for index, function in enumerate(DISTANCES):
        share = torch.where(low == index, 1 - weight, torch.where((low + 1) % len(DISTANCES) == index, weight, 0.0))
        chosen = share.nonzero()[:, 0]
        distance[chosen] += share[chosen, None, None] * function(u[chosen], v[chosen])
    return distance


def _length(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt()


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    a, b = u.abs() - half_width, v.abs() - half_height
    return _length(a.clamp(min=0), b.clamp(min=0)) + torch.maximum(a, b).clamp(max=0)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return _length(u, v) - 0.92


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.8, 0.8)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.98, 0.34), _box(u, v, 0.34, 0.98))


def _star(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), -v - 0.05
    kx, ky = math.cos(math.pi / 5), -math.sin(math.pi / 5)
    for sign in (1, -1):
        fold = 2 * (sign * kx * u + ky * v).clamp(min=0)
        u, v = u - fold * sign * kx, v - fold * ky
    u, v = u.abs(), v - 1.08
    bx, by = -0.46 * ky, 0.46 * kx - 1
    h = ((u * bx + v * by) / (bx * bx + by * by)).clamp(0, 1.08)
    return _length(u - bx * h, v - by * h) * (v * bx - u * by).sign()


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    r, k = 0.98, math.sqrt(3)
    u, v = u.abs() - r, r / k - v + 0.28
    flip = u + k * v > 0
    u, v = torch.where(flip, (u - k * v) / 2, u), torch.where(flip, (-k * u - v) / 2, v)
    u = u - u.clamp(-2 * r, 0)
    return -_length(u, v) * v.sign()


def _heart(u: Tensor, v: Tensor) -> Tensor:
    scale = 0.62
    u, v = u.abs() * scale, -v * scale + 0.56
    lobe = _length(u - 0.25, v - 0.75) - math.sqrt(2) / 4
    half = 0.5 * (u + v).clamp(min=0)
    body = torch.minimum(_length(u, v - 1), _length(u - half, v - half)) * (u - v).sign()
    return torch.where(u + v > 1, lobe, body) / scale


# In the order of captions.SHAPES.
DISTANCES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_circle, _square, _cross, _star, _triangle, _heart)
