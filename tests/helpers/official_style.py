"""Write pickles as the published code did: whole modules by `pickle.dump`, under diffusers' former module paths."""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel


def network(teacher: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Load the teacher's UNet with other weights."""
    unet = UNet2DConditionModel.from_pretrained(str(teacher / "unet"), low_cpu_mem_usage=False)
    generator = torch.Generator().manual_seed(1)
    for parameter in unet.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return unet.to(dtype).eval().requires_grad_(False)


def write(unet: torch.nn.Module, path: Path, old: bool = False) -> Path:
    """Dump dict(ema=unet) by pickle; `old`: with module paths of former diffusers versions."""
    with open(path, "wb") as file, old_paths(unet) if old else open(path.parent / "unused", "wb"):
        pickle.dump(dict(ema=unet), file)
    return path


@contextmanager
def old_paths(unet: torch.nn.Module) -> Iterator[None]:
    """Set the modules of a network's classes to diffusers.models.unet_2d_condition and the like within the context."""
    classes = {type(module) for module in unet.modules() if ".unets." in type(module).__module__}
    before = {cls: cls.__module__ for cls in classes}
    made = set()
    for cls in classes:
        cls.__module__ = old = cls.__module__.replace(".models.unets.", ".models.")
        if old not in sys.modules:
            made.add(old)
            sys.modules[old] = types.ModuleType(old)
        setattr(sys.modules[old], cls.__name__, cls)
    try:
        yield
    finally:
        for cls, module in before.items():
            cls.__module__ = module
        for name in made:
            del sys.modules[name]
