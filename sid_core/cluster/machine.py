"""What the workflow must know of the machine it runs on."""

import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


# where Snakemake itself runs, as it tells its jobs: what they find out themselves is another machine's and another Slurm job's
SUBMITTER_CALL, SUBMITTER_GPU, SUBMITTER_JOB = (
    "SID_CORE_SUBMITTER_CALL",
    "SID_CORE_SUBMITTER_GPU",
    "SID_CORE_SUBMITTER_JOB",
)


def mark_submitting_process() -> None:
    """Let this process's Snakemake tell its jobs that they are of one call, whether its machine has GPUs, and its Slurm job."""
    for name in (SUBMITTER_GPU, SUBMITTER_JOB):
        os.environ.pop(name, None)
    os.environ[SUBMITTER_CALL] = uuid.uuid4().hex
    os.environ[SUBMITTER_GPU] = str(int(has_gpu()))
    if "SLURM_JOB_ID" in os.environ:
        os.environ[SUBMITTER_JOB] = os.environ["SLURM_JOB_ID"]


def has_gpu() -> bool:
    """Whether an NVIDIA device is there, where Snakemake was started; importing torch to ask it would take seconds."""
    return bool(int(os.environ.get(SUBMITTER_GPU, any(Path("/dev").glob("nvidia[0-9]*")))))


def prepend_python_to_path() -> None:
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
