"""Define the feature networks of FID: TorchScript Inception for photographs, a small one for scenes."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...storage.files import read_json, write_json
from .loading import loading

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INCEPTION_SIZE = 299


class FeatureNetwork(nn.Module):
    """Small network from images of `image_size` to `features` numbers.

    Each level, of `channels`, halves the image; the last map is flattened, so that features depend on positions.
    """

    def __init__(self, image_size: int, channels: list[int], features: int):
        super().__init__()
        self.image_size = image_size
        self.config = {"image_size": image_size, "channels": list(channels), "features": features}
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for before, after in pairwise(channels):
            layers += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, after), nn.SiLU(), nn.Conv2d(after, after, 3, padding=1)]
        layers += [nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * (image_size >> (len(channels) - 1)) ** 2, features)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) float32 of images (B, 3, H, W), float, 0 to 255."""
        size = self.image_size
        assert images.shape[1:] == (3, size, size), f"images {tuple(images.shape)}: expected (B, 3, {size}, {size})"
        return self.head(self.body(images.float() / 127.5 - 1))

    @classmethod
    def from_directory(cls, path: str | Path) -> "FeatureNetwork":
        """Load config.json and model.safetensors of a directory, frozen; a UserError names what does not fit."""
        path = Path(path)
        config = read_json(path / CONFIG)
        expected = f"expected {CONFIG} (image_size, channels, features) and {WEIGHTS} that fits it"
        with loading(f"{path}: not a feature network", expected):
            network = cls(config["image_size"], config["channels"], config["features"])
            network.load_state_dict(load_file(path / WEIGHTS))
        return network.eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the directory `path`, creating it."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / CONFIG, self.config)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path / WEIGHTS)


class Inception(nn.Module):
    """NVIDIA's TorchScript of FID's Inception network, called as in clean-fid's InceptionV3W."""

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.image_size = INCEPTION_SIZE
        self.layers = script.layers

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, 3, 299, 299), float, 0 to 255."""
        return self.layers((images - 128) / 128).flatten(1)

    @classmethod
    def from_file(cls, path: str | Path) -> "Inception":
        """Load a TorchScript file, frozen; a UserError names a damaged one, and another network."""
        expected = "expected a TorchScript file with a submodule `layers`, such as inception-2015-12-05.pt"
        with loading(f"{path}: not a feature network", expected):
            network = cls(torch.jit.load(path, map_location="cpu"))
        return network.eval().requires_grad_(False)


def load_feature_network(path: Path) -> "FeatureNetwork | Inception":
    """Load a feature network from its weight file: model.safetensors beside its config, or TorchScript."""
    return FeatureNetwork.from_directory(path.parent) if path.name == WEIGHTS else Inception.from_file(path)
