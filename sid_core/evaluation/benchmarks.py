"""Write samples in the folder layout of GenEval or DPG-Bench, and read the results of their programs back.

Their detectors do not install beside a current torch, so they run elsewhere. Their prompts do not ship with this package.
"""

import json
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import GenerateSettings, Sampling
from ..data.images import encode_png
from ..data.shards import read_shard
from ..errors import UserError
from ..pipeline.paths import Row
from ..storage.files import MANIFEST, atomic_path, read_json, read_lines, sha256_file, write_json, write_manifest
from .metrics.catalogue import BENCHMARKS

log = logging.getLogger(__name__)

IMAGES = 4  # of a prompt, in both
PNG_LEVEL, BATCH = 1, 16


@dataclass(frozen=True)
class Prompt:
    """A prompt of a benchmark; `name` is its folder or file."""

    name: str
    text: str
    metadata: dict


@dataclass(frozen=True)
class Benchmark:
    """The format of a benchmark."""

    prompts: int  # of the whole set
    read: Callable[[Path], list[Prompt]]
    write: Callable[[Path, Prompt, np.ndarray], None]  # below `images`, the images (4, H, W, 3) of a prompt
    score: Callable[[Path, list[dict]], tuple[float, float]]  # value and standard error of its result file


def export_benchmark(
    benchmark: str, generator: Path, prompts: Path, out: Path, teacher: Path | None, seed: int, workers: int = 1
) -> None:
    """Write four images of every prompt by a generator to `out`/images, as the benchmark's program expects them.

    Image i of prompt k has the noise of seed + 4 k + i.

    Args:
        prompts: GenEval's evaluation_metadata.jsonl, or DPG-Bench's folder of a .txt file a prompt.
        teacher: prepared teacher; None: the one the generator was distilled from, next to runs/.

    Raises:
        UserError: prompts of another format, or a generator that is missing, damaged or of another teacher.
    """
    from ..models.generator import find_teacher, generator_folder, generator_sha256, recorded_steps
    from ..sampling.generation import generate

    kind, title = FORMATS[benchmark], BENCHMARKS[benchmark].title
    found = kind.read(Path(prompts))
    if len(found) != kind.prompts:
        log.warning("%s: %d prompts, %s has %d: import-benchmark needs all", prompts, len(found), title, kind.prompts)
    generator = generator_folder(generator)
    steps = recorded_steps(read_json(generator / "generator.json"))
    settings = GenerateSettings(
        t_init=steps.t_init, num_steps=steps.count, step_noise=steps.noise, sampling=Sampling(batch=BATCH, seed=seed)
    )
    with atomic_path(out, MANIFEST) as folder:
        folder.mkdir()
        captions, shard = folder / "captions.txt", folder / "samples.tar"
        captions.write_text("".join(f"{prompt.text}\n" * IMAGES for prompt in found), encoding="utf-8")
        teacher = teacher or find_teacher(generator)
        generate(settings, generator, teacher, captions, 0, IMAGES * len(found), shard, workers)
        for prompt, (_, images) in zip(found, read_shard(shard, IMAGES), strict=True):
            kind.write(folder / "images", prompt, images)
        for path in (captions, shard, shard.with_suffix(".json")):
            path.unlink()
        record = {"benchmark": benchmark, "generator_sha256": generator_sha256(generator)}
        record |= {"nfe": steps.count, "seed": seed}
        record["prompts"] = [{"name": prompt.name, "text": prompt.text, **prompt.metadata} for prompt in found]
        write_manifest(folder, record)
    log.info("%s/images: %d images each of %d x %d", out, IMAGES, *images.shape[1:3])


def import_benchmark(benchmark: str, file: Path, exported: Path, row: Path) -> None:
    """Read the result file of a benchmark's program into benchmarks.json of a scored run, which its table shows.

    Raises:
        UserError: the results, the exported folder and the run do not belong together, or results are missing.
    """
    if not (exported / MANIFEST).is_file() or read_json(exported / MANIFEST)["record"].get("benchmark") != benchmark:
        raise UserError(f"--exported {exported}: expected what sid-core export-benchmark {benchmark} wrote")
    made, score = read_json(exported / MANIFEST)["record"], Row(row).score
    same = ("generator_sha256", "nfe")  # a row of fewer evaluations has the same weights
    if not score.is_file() or any(read_json(score)[key] != made[key] for key in same):
        raise UserError(f"--row {row}: not the scored run that {exported} is of. Fix: give its folder, or export again")
    kind, prompts = FORMATS[benchmark], made["prompts"]
    if len(prompts) != kind.prompts:
        raise UserError(f"{exported}: {len(prompts)} prompts, expected all {kind.prompts}. Fix: export the whole set")
    value, se = kind.score(file, prompts)
    found = {"value": value, "se": se, "file": file.name, "sha256": sha256_file(file), "seed": made["seed"]}
    path = Row(row).benchmarks
    others = read_json(path) if path.is_file() else {}
    write_json(path, others | {benchmark: found | {"generator_sha256": made["generator_sha256"]}})
    log.info("%s %s: %.4g; sid-core report shows it", row, BENCHMARKS[benchmark].title, value)


# --- GenEval, arXiv 2310.11513 -----------------------------------------------------------------------------------------


def _read_geneval(path: Path) -> list[Prompt]:
    prompts = []
    for number, line in enumerate(read_lines(path, "prompt")):
        entry = _json(line, f"{path}, line {number + 1}", {"prompt", "tag"})
        prompts.append(Prompt(f"{number:05d}", entry["prompt"].strip(), entry))
    return prompts


def _write_geneval(folder: Path, prompt: Prompt, images: np.ndarray) -> None:
    samples = folder / prompt.name / "samples"
    samples.mkdir(parents=True)
    (folder / prompt.name / "metadata.jsonl").write_text(json.dumps(prompt.metadata))
    for number, image in enumerate(images):
        (samples / f"{number:04d}.png").write_bytes(encode_png(image, PNG_LEVEL))


def _score_geneval(path: Path, prompts: list[dict]) -> tuple[float, float]:
    """Return the mean over tasks of the share of correct images, 0 to 1."""
    correct: dict[str, dict[str, bool]] = defaultdict(dict)
    tags = {prompt["name"]: prompt for prompt in prompts}
    for number, line in enumerate(read_lines(path, "result"), 1):
        where = f"{path}, line {number}"
        entry = _json(line, where, {"filename", "prompt", "correct"})
        *_, name, _, image = Path(entry["filename"]).parts if "/samples/" in entry["filename"] else ("", "", "")
        if name not in tags or tags[name]["prompt"] != entry["prompt"] or image in correct[name]:
            raise UserError(f"{where}: {entry['filename']}: expected each exported image once, with its prompt")
        correct[name][image] = bool(entry["correct"])
    _check_complete(path, {name: len(images) for name, images in correct.items()}, prompts, IMAGES)
    tasks: dict[str, list[float]] = defaultdict(list)
    for name, images in correct.items():
        tasks[tags[name]["tag"]].append(statistics.fmean(images.values()))
    errors = [statistics.stdev(values) / math.sqrt(len(values)) for values in tasks.values()]
    return statistics.fmean(map(statistics.fmean, tasks.values())), math.hypot(*errors) / len(tasks)


# --- DPG-Bench, arXiv 2403.05135 ---------------------------------------------------------------------------------------


def _read_dpg(path: Path) -> list[Prompt]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise UserError(f"--prompts {path}: expected a folder of .txt files, one a prompt, got none")
    prompts = []
    for file in files:
        text = " ".join(file.read_text(encoding="utf-8").split())
        if not text or "." in file.stem:  # its program takes a name up to the first dot
            raise UserError(f"{file}: expected a prompt, in a file whose name has no dot but that of .txt")
        prompts.append(Prompt(file.stem, text, {}))
    return prompts


def _write_dpg(folder: Path, prompt: Prompt, images: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    grid = np.concatenate([np.concatenate(images[row : row + 2], axis=1) for row in (0, 2)])
    (folder / f"{prompt.name}.png").write_bytes(encode_png(grid, PNG_LEVEL))


def _score_dpg(path: Path, prompts: list[dict]) -> tuple[float, float]:
    """Return the mean over prompts of the last number of each line, times 100; its program drops prompts that fail."""
    means: dict[str, float] = {}
    for number, line in enumerate(read_lines(path, "result"), 1):
        if line.startswith("Model: "):  # the summary
            break
        image, *values = line.rsplit(", ", IMAGES + 1)
        try:
            *scores, mean = (float(value) for value in values)
        except ValueError:
            scores = []
        if len(scores) != IMAGES:
            raise UserError(f"{path}, line {number}: expected an image, {IMAGES} scores and their mean")
        means[Path(image).name.split(".")[0]] = mean
    _check_complete(path, dict.fromkeys(means, 1), prompts, 1)
    return 100 * statistics.fmean(means.values()), 100 * statistics.stdev(means.values()) / math.sqrt(len(means))


# -----------------------------------------------------------------------------------------------------------------------

FORMATS = {
    "geneval": Benchmark(553, _read_geneval, _write_geneval, _score_geneval),
    "dpg": Benchmark(1065, _read_dpg, _write_dpg, _score_dpg),
}


def _json(line: str, where: str, keys: Iterable[str]) -> dict:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict) or not entry.keys() >= set(keys):
        raise UserError(f"{where}: expected an object with {', '.join(sorted(keys))}")
    return entry


def _check_complete(path: Path, counts: dict[str, int], prompts: list[dict], each: int) -> None:
    """Raise a UserError unless every prompt, and no other, has `each` results."""
    apart = [prompt["name"] for prompt in prompts if counts.get(prompt["name"]) != each]
    apart += counts.keys() - {prompt["name"] for prompt in prompts}
    if apart:
        raise UserError(
            f"{path}: expected {each} results of each of {len(prompts)} prompts; {len(apart)} differ, such as {apart[0]}. "
            "Fix: run the benchmark's program on all images"
        )
