"""Load a registered generator for MLflow: `mlflow.pyfunc.load_model("models:/EXPERIMENT@best").predict(prompts)`.

MLflow calls `_load_pyfunc` by name with the folder that sid_core.tracking.registry wrote; nothing is unpickled.
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
    """A generator with its teacher, both verified on loading."""

    def __init__(self, data: Path):
        folders = {name: _verify_folder(data, **entry) for name, entry in read_json(data / "model.json").items()}
        self._session, self._folder = InferenceSession(folders["teacher"]), folders["generator"]
        self._session.generator(self._folder)

    def predict(self, prompts: "DataFrame", params: dict | None = None) -> np.ndarray:
        """Return images (N, H, W, 3) uint8 of the column `prompt`, from the seeds of the column `seed` (default 0).

        They equal those of `sid-core sample`, without enlargement. `params` belongs to MLflow's interface, and is unused.
        """
        seeds = prompts["seed"] if "seed" in prompts else [0] * len(prompts)
        pairs = zip(prompts["prompt"], seeds, strict=True)
        return np.stack([self._session.image(self._folder, prompt, int(seed)) for prompt, seed in pairs])


def _verify_folder(data: Path, path: str, manifest_sha256: str) -> Path:
    """Return the folder `path` in `data`, or at its absolute path, after checking the hash of its manifest."""
    folder = data / path  # pathlib drops `data` where `path` is absolute
    if not (folder / "manifest.json").is_file():
        raise UserError(
            f"{folder}: has no manifest.json; large weights are registered by path. Fix: restore it, or track again"
        )
    if sha256_file(folder / "manifest.json") != manifest_sha256:
        raise UserError(f"{folder}: changed since this model was registered. Fix: track again, or load the newest")
    return folder


def _load_pyfunc(data_path: str) -> RegisteredGenerator:
    return RegisteredGenerator(Path(data_path))
