"""Read and restart the peak memory of this process: of a GPU by torch's allocator, else the resident set by Linux."""

import re
from contextlib import suppress
from pathlib import Path

import torch

STATUS, RESTART = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak(device: torch.device) -> int:
    """Start a new peak; return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # not Linux, or /proc is read-only
        RESTART.write_text("5")
    return _resident("VmRSS")


def peak(device: torch.device) -> int:
    """Return the most bytes in use since `restart_peak`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1]) if STATUS.is_file() else 0
