"""What MLflow loads of a registered generator: `mlflow.pyfunc.load_model("models:/EXPERIMENT@best").predict(prompts)`.

MLflow calls `_load_pyfunc` by its name with the folder that sid_core.tracking.registry wrote; nothing is unpickled.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from ..storage.files import read_json, sha256_file
from .session import InferenceSession

if TYPE_CHECKING:
    from pandas import DataFrame


class RegisteredGenerator:
    """A generator with its teacher, verified when it is loaded."""

    def __init__(self, data: Path):
        places = {name: _verified(data, **entry) for name, entry in read_json(data / "model.json").items()}
        self._session, self._folder = InferenceSession(places["teacher"]), places["generator"]
        self._session.generator(self._folder)

    def predict(self, prompts: "DataFrame", params: dict | None = None) -> np.ndarray:
        """Images of the column `prompt`, from the noise of the column `seed` (0 where there is none): (N, H, W, 3) uint8.

        They are those of `sid-core sample`, at their own size. `params` is MLflow's, and unused.
        """
        seeds = prompts["seed"] if "seed" in prompts else [0] * len(prompts)
        pairs = zip(prompts["prompt"], seeds, strict=True)
        return np.stack([self._session.image(self._folder, prompt, int(seed)) for prompt, seed in pairs])


def _verified(data: Path, path: str, manifest_sha256: str) -> Path:
    """A folder inside `data`, or where it lay when the model was registered."""
    folder = data / path  # an absolute path stays what it is
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder}: not there; large weights are registered by their path: bring them back, or track again"
        )
    if sha256_file(folder / "manifest.json") != manifest_sha256:
        raise UserError(
            f"{folder}: made anew since this model was registered; track again, or load the version of today"
        )
    return folder


def _load_pyfunc(data_path: str) -> RegisteredGenerator:
    return RegisteredGenerator(Path(data_path))
