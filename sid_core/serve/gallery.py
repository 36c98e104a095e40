"""Sample from the finished generators of an experiment and their teachers, each loaded at its first request."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import REAL_IMAGES, generators
from ..errors import UserError
from ..pipeline.inputs import load_frozen
from ..pipeline.paths import Results
from ..storage.files import read_json, read_lines

if TYPE_CHECKING:
    import numpy as np

    from ..sampling.session import InferenceSession

EXAMPLES = 12  # evaluation captions offered on the page
MOST_STEPS = 1000  # timesteps of the teacher's schedule
LONGEST_PROMPT = 2000  # characters; encoders read 77 tokens


class Gallery:
    """The finished generators of results/EXPERIMENT; raises UserError without any or without frozen settings."""

    def __init__(self, results: Path):
        self.results, config = Results(results), load_frozen(results)
        teachers = {imported.name: imported.teacher for imported in config.imports}
        finished = (run.name for run in generators(config) if self.results.run(run.name).record.is_file())
        self.runs = {name: self.results.teacher(teachers.get(name)) for name in finished}
        if not self.runs:
            text = f"{self.results.runs}: no finished generator yet"
            raise UserError(f"{text}; see `sid-core status --results {results}`")
        self.experiment, self._embedded = config.experiment, config.teacher.source.startswith("embedded")
        self._sessions: dict[Path, InferenceSession] = {}

    def describe(self) -> dict:
        """Return the name, runs and example prompts that the page shows first, and the embedded teacher's words."""
        captions = self.results.captions
        examples = read_lines(captions, "caption")[: 10 * EXAMPLES] if captions.is_file() else []
        runs = []
        for row in map(self.results.run, self.runs):
            score, record = read_json(row.score) if row.score.is_file() else {}, read_json(row.record)
            note = REAL_IMAGES if record.get("uses_real_images") else ""
            values = {key: score.get(key) for key in ("fid", "clip")}
            runs.append({"name": row.folder.name, "seed": record["run"]["seed"] or 0, **values, "note": note})
        about = {"experiment": self.experiment, "runs": runs, "examples": list(dict.fromkeys(examples))[:EXAMPLES]}
        if not self._embedded:
            return about | {"vocabulary": None}
        from ..data.shapes.captions import all_captions  # imports torch, which takes seconds

        return about | {"vocabulary": list(dict.fromkeys(" ".join(all_captions()).split()))}

    def draw(self, name: str, prompt: str, seed: int) -> tuple[bytes, float, float]:
        """Return the PNG that `sid-core sample` writes, and the seconds of loading and of sampling."""
        if name not in self.runs:
            raise UserError(f"run={name}: expected one of {', '.join(self.runs)}")
        _check_prompt(prompt)
        generator = self.results.run(name).generator
        started = time.monotonic()
        session = self._session(self.runs[name])
        session.generator(generator)  # loads it outside the timing
        loaded = time.monotonic()
        return _pack(session.image(generator, prompt, seed), started, loaded)

    def draw_teacher(self, prompt: str, seed: int, steps: int, guidance_scale: float) -> tuple[bytes, float, float]:
        """Sample the teacher likewise."""
        _check_prompt(prompt)
        if not 1 <= steps <= MOST_STEPS:
            raise UserError(f"steps={steps}: expected 1 to {MOST_STEPS}")
        if not 0 < guidance_scale <= 100:
            raise UserError(f"guidance_scale={guidance_scale:g}: expected more than 0, at most 100")
        started = time.monotonic()
        session = self._session(self.results.teacher())
        assert session.teacher is not None  # loads it outside the timing
        loaded = time.monotonic()
        return _pack(session.teacher_image(prompt, seed, steps, guidance_scale), started, loaded)

    def _session(self, teacher: Path) -> "InferenceSession":
        from ..sampling.session import InferenceSession  # imports torch, which takes seconds

        if teacher not in self._sessions:
            self._sessions[teacher] = InferenceSession(teacher)
        return self._sessions[teacher]


def _check_prompt(prompt: str) -> None:
    if not 0 < len(prompt.strip()) <= LONGEST_PROMPT:
        raise UserError(f"prompt of {len(prompt)} characters: expected 1 to {LONGEST_PROMPT}")


def _pack(pixels: "np.ndarray", started: float, loaded: float) -> tuple[bytes, float, float]:
    from ..sampling.preview import enlargement, to_png

    sampled = time.monotonic()
    return to_png(pixels, enlarge=enlargement(len(pixels))), loaded - started, sampled - loaded
