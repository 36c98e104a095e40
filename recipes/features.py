"""Train the feature network of the embedded FID to predict every parameter of a scene from its image.

Without noise or augmentation, which would make the network insensitive to visible defects of samples.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sid_core.data.shapes.captions import COLOURS, SHAPES
from sid_core.data.shapes.scenes import IMAGE_SIZE, Scenes
from sid_core.evaluation.networks.feature_network import FeatureNetwork

from .common import Training, batches
from .settings import FeatureSettings

STANDARDISED_ON = 4096


def train_features(settings: FeatureSettings, seed: int, folder: Path) -> None:
    """Train the network with a linear read-out, drop the read-out, standardise the features, save to `features`."""
    torch.manual_seed(seed)
    network = FeatureNetwork(IMAGE_SIZE, list(settings.channels), settings.features)
    stream = batches(settings.batch)
    width = scene_targets(next(stream)[2]).shape[1]
    model = nn.Sequential(network, nn.SiLU(), nn.Linear(settings.features, width))
    training = Training(model, settings.steps, settings.learning_rate, "features")
    for _ in range(settings.steps):
        images, _, scenes = next(stream)
        training.update(mse_loss(model(images), scene_targets(scenes)))
    product = training.average[0]
    stream = batches(512)
    with torch.no_grad():
        standardise(product, torch.cat([product(next(stream)[0]) for _ in range(STANDARDISED_ON // 512)]))
    product.save(folder / "features")


def scene_targets(scenes: Scenes) -> Tensor:
    """Return (n, 33) numbers of order 1 that describe scenes; angles and cyclic positions as points on circles."""

    def weights(position: Tensor, count: int) -> Tensor:  # (n, count) blending weights on a circle of `count` places
        steps = (position[:, None] - torch.arange(count)).abs()
        return (1 - torch.minimum(steps, count - steps)).clamp(min=0)

    striped = 4 * scenes.stripes
    columns = [
        3 * (scenes.radius - 0.55),
        1.5 * scenes.x,
        1.5 * scenes.y,
        2 * scenes.rotation,
        2.5 * scenes.shading * scenes.light.cos(),
        2.5 * scenes.shading * scenes.light.sin(),
        6 * (scenes.paleness - 0.55),
        striped,
        striped * (2 * scenes.stripe_angle).cos(),
        striped * (2 * scenes.stripe_angle).sin(),
        striped * (scenes.stripe_count - 2.25) / 0.75,
        striped * scenes.stripe_phase.cos() * math.sqrt(0.5),
        striped * scenes.stripe_phase.sin() * math.sqrt(0.5),
    ]
    kind, colours = weights(scenes.kind, len(SHAPES)), len(COLOURS)
    hue, background = weights(scenes.hue, colours), weights(scenes.background, colours)
    return torch.cat([2 * kind, 2 * hue, 2 * background, torch.stack(columns, dim=1)], dim=1)


def standardise(network: FeatureNetwork, features: Tensor) -> None:
    """Rescale the last layer so that each column of its outputs `features` (N, D) has mean 0 and std 1."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    with torch.no_grad():
        network.head.weight.div_(std[:, None])
        network.head.bias.sub_(mean).div_(std)
