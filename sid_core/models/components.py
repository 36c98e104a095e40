"""Load a component of a teacher directory."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import UserError, one_line


def load_component(kind: type, folder: Path) -> torch.nn.Module:
    """Load a diffusers or transformers model from all its weights in a folder's safetensors, as float32."""
    options = {"use_safetensors": True, "torch_dtype": torch.float32, "output_loading_info": True}
    if kind.__module__.startswith("diffusers"):
        options["low_cpu_mem_usage"] = False  # the default needs the package accelerate; shapes are checked either way
    try:
        model, found = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {one_line(error, 300)}") from None
    if missing := sorted(found["missing_keys"]):  # both libraries would continue with random ones
        raise UserError(f"{folder}: lacks weights of {kind.__name__}: {', '.join(missing[:5])}; get the file again")
    return model
