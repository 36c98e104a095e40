"""What the workflow must know of the machine it runs on."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def has_gpu() -> bool:
    """Whether an NVIDIA device is there; importing torch to ask it would take seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def put_python_first() -> None:
    """Let `python` in shell commands be the running one, also where its environment is not activated."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def device() -> str:
    """Where networks run: "cuda" where one can be used, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor of the host on `device`; the host does not wait for a GPU that is still at work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
