"""Group torch.profiler's operations of an iteration into a few kinds, as a table and a figure."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# the first pattern that an operation's name matches
KINDS = {
    "attention": r"scaled_dot_product|flash|efficient_attention|softmax|bmm",
    "convolution": r"conv",
    "linear": r"addmm|::mm$|linear|matmul",
    "optimizer, EMA, copies of weights": r"fused_adam|lerp|linalg_vector_norm",
    "normalisation": r"group_norm|layer_norm",
    "fused by the compiler": r"triton|CompiledFunction|Torch-Compiled|inductor",
    "copies and layout": r"copy_|cat$|contiguous|clone|_to_copy|Memcpy|index|where|chunk|split|slice|as_strided|pin_memory|select",
    "pointwise": r"silu|gelu|add|mul|div|sub|pow|sum|mean|exp|sqrt|clamp|abs|sign|neg|fill|zero|sin|cos|upsample|random|normal|expand|square|stack",
}
OTHER = "other"


def where_time_goes(step: Callable[[], object], device: torch.device, iterations: int = 3) -> dict[str, float]:
    """Return seconds of one iteration by kind, largest first: of kernels on a GPU, self time of operations on a CPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(iterations):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = kind_of(event.key)
        spent[kind] = spent.get(kind, 0.0) + micros / 1e6 / iterations
    return dict(sorted(((k, s) for k, s in spent.items() if s > 0), key=lambda item: -item[1]))


def kind_of(operation: str) -> str:
    """Return the kind of an operation by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, operation)), OTHER)


def as_table(spent: dict[str, float]) -> str:
    """Format as Markdown."""
    total = sum(spent.values())
    rows = [f"| {kind} | {1000 * s:.1f} | {s / total:.0%} |" for kind, s in spent.items()]
    return "\n".join(["| kind | ms an iteration | share |", "|---|--:|--:|", *rows])


def draw(spent: dict[str, float], title: str, path: Path) -> None:
    """Plot a bar for each kind as PNG."""
    import matplotlib

    from sid_core.report.theme import LIGHT, new_figure, to_png, write_png

    with matplotlib.rc_context(LIGHT.rc()):
        figure = new_figure(6.6, 0.6 + 0.3 * len(spent))
        axes, total = figure.add_subplot(), sum(spent.values())
        names, values = list(spent)[::-1], [1000 * s for s in spent.values()][::-1]
        bars = axes.barh(names, values, color=LIGHT.generator, height=0.65)
        axes.bar_label(
            bars, [f"{value / total / 1000:.0%}" for value in values], padding=3, color=LIGHT.faint, fontsize=8
        )
        axes.grid(False, axis="y")
        axes.set_xlabel("ms an iteration")
        axes.set_title(title, fontsize=9, loc="left")
        write_png(path, to_png(figure))
