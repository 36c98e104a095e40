"""Make up a finished experiment: the layout of results/<experiment>/ with random images and plausible scores."""

import csv
import hashlib
import io
import json
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from sid_core.config import Config, Run, baselines, generators, load_config, parse_config, runs
from sid_core.pipeline.inputs import Inputs
from sid_core.report import entries, table
from sid_core.storage.files import write_json, write_sidecar

CONFIG = Path(__file__).parents[2] / "config.yaml"
SAMPLES = 26
CAPTION = 'a "<script>alert(1)</script>" & $x^{$ \\frac cross'
CAPTIONS = ["a red circle", "a red circle", CAPTION, *(f"a star number {i}" for i in range(SAMPLES - 3))]
PROTOCOL = {"name": "shapes", "reference": {"images": 10}, "comment": "<b>not bold</b>"}
PROTOCOL_HASH = "0123456789abcdef" * 4


def make_config(**changes: object) -> Config:
    values = load_config(CONFIG).model_dump(mode="json") | {
        "guidance_scales": [1.5, 3.0],
        "extra_runs": [],
        "seeds": [0],
    }
    values["generate"] |= {"samples": SAMPLES, "samples_per_shard": SAMPLES}
    values["baselines"] |= {"steps": [8], "guidance_scales": [1.0, 3.0], "vae": True, "real": True}
    return parse_config(values | changes)


def use_published_protocol(folder: Path, **changes: object) -> None:
    """Let every score be of the published protocol, but for `changes` of facts."""
    facts = {fact.replace(".", "_"): value for fact, value in table.PUBLISHED_FACTS.items()}
    assert changes.keys() <= facts.keys()
    facts |= changes
    record = {"name": table.PUBLISHED_PROTOCOL}
    for fact in table.PUBLISHED_FACTS:
        *block, key = fact.split(".")
        (record.setdefault(block[0], {}) if block else record)[key] = facts[fact.replace(".", "_")]
    for path in folder.glob("*/*/score.json"):
        write_json(path, json.loads(path.read_text()) | {"protocol": record})


def make_score(fid: float, clip: float, nfe: int, generator_sha256: str | None = None) -> dict:
    return {
        "samples": SAMPLES,
        "fid": fid,
        "fid_se": 0.43,
        "fid_inf": fid - 1,
        "clip": clip,
        "clip_se": 0.0012,
        "kid": fid / 1000,
        "precision": 0.7,
        "recall": 0.6,
        "teacher_eps_error": None,
        "images_per_s": 2100.4,
        "nfe": nfe,
        "generator_sha256": generator_sha256,
        "protocol": PROTOCOL,
        "protocol_hash": PROTOCOL_HASH,
        "versions": {"torch": "2.14.1"},
        "not_computed": {"hps": "evaluate.hps is null"},
        "standard_errors": {"fid": 0.43, "clip": 0.0012, "kid": 0.001},
        "intervals": {"fid": [fid - 0.9, fid + 0.8], "clip": [clip - 0.0024, clip + 0.0024]},
    }


def write_samples(path: Path, seed: int, side: int) -> None:
    """Write noise of 32 x 32, enlarged to `side`, in files about as large as a photograph's."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True)
    records = []
    with tarfile.open(path, "w") as archive:
        for index in range(SAMPLES):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            if side > 32:
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            pixels = np.asarray(image)
            png = io.BytesIO()
            image.save(png, "png", compress_level=1)
            member = tarfile.TarInfo(f"{index:08d}.png")
            member.size = png.tell()
            png.seek(0)
            archive.addfile(member, png)
            records.append({"index": index, "seed": index, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()})
    captions = hashlib.sha256("\n".join(CAPTIONS).encode()).hexdigest()
    write_sidecar(path, {"start": 0, "stop": SAMPLES, "captions_sha256": captions, "samples": records})


def write_run(folder: Path, run: Run, number: int, side: int) -> None:
    """Write a run with FID 30 and CLIP 0.4 at scale 1.5, 45 and 0.6 at 3; each further seed adds 2 and 0.01."""
    clip = 0.2 + 0.2 * run.teacher / 1.5 + 0.01 * (run.seed or 0) + 0.05 * (run.teacher - run.fake_train)
    score = make_score(15 + 10 * run.teacher + 2 * (run.seed or 0), clip, run.num_steps, "a" * 64)
    write_json(folder / "score.json", score)
    write_json(folder / "generator" / "generator.json", {"run": run.model_dump(), "train_kimg": 12.8})
    weights = {"unet/diffusion_pytorch_model.safetensors": {"sha256": "a" * 64, "bytes": 1}}
    write_json(folder / "generator" / "manifest.json", {"record": {}, "files": weights})
    write_samples(folder / "samples" / "00000.tar", number, side)


KEYS = [
    "score_gap",
    "latent_std",
    "fake_loss",
    "generator_loss",
    "teacher_residual",
    "fake_grad_norm",
    "generator_grad_norm",
    "images_per_s",
]


def write_training(folder: Path, run: Run) -> None:
    points = [
        {"nimg": 320 * i, "elapsed_s": 60 * i, "skipped": run.seed, **{key: 0.5 + 1 / i for key in KEYS}}
        for i in range(1, 6)
    ]
    points[2]["fake_loss"] = None
    for point in points[1::2]:
        point |= {"fid_proxy": 80 - point["nimg"] / 100, "clip_proxy": 0.3 + point["nimg"] / 1e4}
    (folder / "training.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")


def write_csv(path: Path, head: str, lines: list[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([head.split(","), *lines])


def write_statistics(folder: Path, config: Config) -> None:
    """Write pairs.csv and seeds.csv: each setting is worse in FID than the one before, by 3 (1 to 5) over samples, 2 (-1 to 5) over seeds.

    Every setting is worse than the teacher's rows: by 5 (3 to 7) over samples, 6 (-1 to 13) over seeds; in recall by 0.1.
    """
    names = [run.name for run in generators(config)]
    settings = [run.name for run in generators(config) if run.seed == 0]
    pairs = [(a, b, "fid", -3, -5, -1, "true", a, "samples") for a, b in combinations(names, 2)]
    pairs += [(a, b, "clip", -0.1, -0.2, -0.05, "true", b, "samples") for a, b in combinations(names, 2)]
    teachers = [baseline.name for baseline in baselines(config) if baseline.kind == "teacher"]
    pairs += [(a, b, "fid", 5, 3, 7, "true", b, "samples") for a in names for b in teachers]
    pairs += [(a, b, "recall", -0.1, -0.15, -0.05, "true", b, "samples") for a in names for b in teachers]
    seeds = []
    if len(config.seeds) > 1:
        pairs += [(a, b, "fid", -2, -5, 1, "false", "", "seeds") for a, b in combinations(settings, 2)]
        pairs += [(a, b, "fid", 6, -1, 13, "false", "", "seeds") for a in settings for b in teachers]
        pairs += [(a, b, "recall", -0.1, -0.14, -0.06, "true", b, "seeds") for a in settings for b in teachers]
        seeds = [(name, "fid", len(config.seeds), 31, 1, 20, 40) for name in settings]
    write_csv(folder / "pairs.csv", "a,b,metric,difference,low,high,excludes_zero,better,over", pairs)
    write_csv(folder / "seeds.csv", "run,metric,seeds,mean,sd,low,high", seeds)


def write_experiment(folder: Path, config: Config, side: int = 32) -> Path:
    """Write an experiment with images of `side` pixels."""
    (folder / "prompts").mkdir()
    (folder / "prompts" / "evaluation.txt").write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    for number, run in enumerate(generators(config)):
        write_run(folder / "runs" / run.name, run, number, side)
    for run in runs(config):
        write_training(folder / "runs" / run.name, run)
    for number, baseline in enumerate(baselines(config), 100):
        path = folder / "baselines" / baseline.name
        write_samples(path / "samples" / "00000.tar", number, side)
        fid = {"teacher": 20 + 5 * (baseline.guidance_scale or 0), "vae": 5.0, "real": 0.3}[baseline.kind]
        score = make_score(fid, 0.65, baseline.nfe)
        write_json(path / "score.json", score | ({"images_per_s": None} if baseline.kind == "real" else {}))
    write_statistics(folder, config)
    return folder


def read_entries(config: Config, folder: Path) -> list[entries.Entry]:
    """Return the entries of figures and tables."""
    scores = table.read_scores(Inputs.finished(config, folder).scores)
    rows = table.make_rows(config, folder, scores)
    return entries.make_entries(config, rows, scores, entries.read_intervals(folder / "seeds.csv"))
