"""Determine the properties of the machine that the workflow runs on."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# variables that jobs inherit from the Snakemake process that submitted them: a job may run on another machine
SUBMITTER_CALL = "SID_CORE_SUBMITTER_CALL"
SUBMITTER_GPU = "SID_CORE_SUBMITTER_GPU"
SUBMITTER_JOB = "SID_CORE_SUBMITTER_JOB"


def mark_submitting_process() -> None:
    """Set the variables: a random id of this Snakemake call, whether this machine has GPUs, and the Slurm job, if any."""
    for name in (SUBMITTER_GPU, SUBMITTER_JOB):
        os.environ.pop(name, None)
    os.environ[SUBMITTER_CALL] = uuid.uuid4().hex
    os.environ[SUBMITTER_GPU] = str(int(has_gpu()))
    if "SLURM_JOB_ID" in os.environ:
        os.environ[SUBMITTER_JOB] = os.environ["SLURM_JOB_ID"]


def has_gpu() -> bool:
    """Return whether Snakemake's machine has an NVIDIA device, without importing torch, which takes seconds."""
    return bool(int(os.environ.get(SUBMITTER_GPU, any(Path("/dev").glob("nvidia[0-9]*")))))


def prepend_python_to_path() -> None:
    """Prepend the running Python to PATH, so that shell commands use it without an activated environment."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def ask(*command: str, timeout_s: float) -> tuple[str, str | None]:
    """Run a command of Slurm, with times in seconds since 1970; return its output and the reason if it failed."""
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    return done.stdout.strip(), done.stderr.strip() if done.returncode else None


def device() -> str:
    """Return the device that networks run on: "cuda" if it is available, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy a tensor from host memory to `device` without waiting for a busy GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
