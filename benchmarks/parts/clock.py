"""Time iterations and describe the machine."""

import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import diffusers
import torch

NVIDIA = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active"


def measure(step: Callable[[], object], seconds: float, device: torch.device, least: int = 3) -> list[float]:
    """Return the seconds of each iteration, for at least `seconds` and `least` iterations.

    On a GPU between events of its own; the host runs at most one iteration ahead, as it does in training.
    """
    marks, started = [_mark(device)], time.perf_counter()
    while time.perf_counter() - started < seconds or len(marks) <= least:
        step()
        marks.append(_mark(device))
        if device.type == "cuda":
            marks[-2].synchronize()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]
    return [b - a for a, b in pairwise(marks)]


def _mark(device: torch.device):
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine(device: torch.device) -> dict:
    """Return the device and the versions that a measurement depends on."""
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def clocks(device: torch.device) -> str | None:
    """Return SM and memory clock, power, temperature and throttle reasons by nvidia-smi; None without it."""
    tool = shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    command = [tool, f"--query-gpu={NVIDIA}", "--format=csv,noheader", f"--id={index}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
