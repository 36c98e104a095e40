"""Write the evaluation networks of published protocols with random weights, in the layouts that the stages read."""

import json
from pathlib import Path

import torch


def save_inception(path: Path) -> None:
    """Write an Inception of torchvision with the interface of inception-2015-12-05.pt."""
    from torchvision.models import inception_v3

    class Script(torch.nn.Module):
        def __init__(self):
            super().__init__()
            inception = inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False).eval()
            inception.fc = torch.nn.Identity()
            self.layers = torch.jit.trace(inception, torch.zeros(2, 3, 299, 299))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers((x - 128) / 128)

    torch.jit.script(Script()).save(str(path))


def save_clip(folder: Path, name: str = "ViT-g-14") -> None:
    """Write a repository of open_clip."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.get_model_config(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    with torch.device("meta"):
        clip = open_clip.CLIP(**model)
    weights = {key: 0.02 * torch.randn(tensor.shape) for key, tensor in clip.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
