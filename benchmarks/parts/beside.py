"""Time our iteration and another implementation's alternately (A B A B) in one process; the result is the ratio.

The other one is a Python file anywhere, which defines

    def build(unet_factory, settings) -> step

    unet_factory()  a new diffusers UNet2DConditionModel with the weights that ours started from, float32, on the device
    settings        batch, micro_batch (images per backward pass), precision, kappa, lr, t_init, t_min, t_max, latent_shape (C, H, W),
                    prediction_type, alphas_cumprod (T,), embeddings (N, L, D) of N prompts on the host, empty (1, L, D), device
    step()          one iteration: the fake score and the generator updated once, on `batch` images each

and may define NAME. It draws its own noise, prompts and t. Both implementations' memory is in use at once.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from sid_core.models.architectures import Architecture, new_network
from sid_core.training.iteration import Trainer

from .clock import measure, quartiles


def load(path: Path, architecture: Architecture, trainer: Trainer) -> tuple[str, Callable[[], object]]:
    """Load name and step of the implementation in the file `path`, configured like `trainer`."""
    if not path.is_file():
        raise SystemExit(
            f"--beside {path}: no such file; expected a Python file that defines build(unet_factory, settings)"
        )
    spec = importlib.util.spec_from_file_location("beside", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "build", None)):
        raise SystemExit(f"--beside {path}: expected it to define build(unet_factory, settings)")
    s, prompts, (t_min, t_max) = trainer.settings, trainer.prompts, trainer.noise_levels
    settings = SimpleNamespace(
        batch=s.batch, micro_batch=s.micro_batch, precision=s.precision, kappa=trainer.run.teacher, lr=s.lr,
        t_init=s.t_init, t_min=t_min, t_max=t_max, latent_shape=trainer.latent_shape,
        prediction_type=trainer.teacher.prediction_type, alphas_cumprod=trainer.teacher.schedule._alpha ** 2,
        embeddings=prompts.table.tokens, empty=prompts.empty.tokens, device=trainer.device,
    )  # fmt: skip
    step = module.build(lambda: new_network(architecture, trainer.device), settings)
    return getattr(module, "NAME", path.stem), step


def compare(ours: Callable, theirs: Callable, trainer: Trainer, seconds: float, rounds: int) -> dict:
    """Return ms per image of both and theirs / ours: median, minimum and maximum over rounds."""
    share, batch = seconds / (2 * rounds), trainer.settings.batch
    medians: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, step in (("ours", ours), ("theirs", theirs)):
            medians[name].append(quartiles(measure(step, share, trainer.device))[1])
    ratios = sorted(b / a for a, b in zip(medians["ours"], medians["theirs"], strict=True))
    result = {f"{name}_ms_per_image": 1000 * quartiles(values)[1] / batch for name, values in medians.items()}
    return result | {"ratio": quartiles(ratios)[1], "ratio_min": ratios[0], "ratio_max": ratios[-1], "rounds": rounds}
