"""Make summary.csv: one row for every run, baseline and published result, at full precision.

Rows of one experiment share a protocol and its hash. Published rows have the name of a protocol and no hash; `not_comparable`
gives the reason where theirs differs.
"""

import csv
import io
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from ..config import Baseline, Config, Run, baselines, generators
from ..errors import UserError
from ..evaluation.metrics.catalogue import BENCHMARKS, METRICS, headline
from ..pipeline.paths import Results
from ..storage.files import MANIFEST, flat, read_json

PUBLISHED = Path(__file__).with_name("published.csv")
PUBLISHED_PROTOCOL = "coco2014-30k"
# Known values, by the keys of score.json. clip_strict is absent: its rounding is the published one and changes CLIP little.
PUBLISHED_FACTS = {
    "samples": 30_000,
    "captions_sha256": "2f0567cd563ee1c4d70710fed6c90bf1c05a97bfd49541fada6fdd0d5c26e256",  # data/coco2014_captions_30k.txt
    "caption_prefix": "A photo depicts ",
    "images.image_size": 256,
    "images.feature_size": 299,
    "images.network_precision": None,  # float32
    "weights.features": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",  # inception-2015-12-05.pt
    "reference.count": 40_504,  # all of val2014
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of summary.csv; None is an empty cell. `low` and `high` are ends of 95 % intervals, `se` standard errors."""

    run: str
    label: str  # the run's name for people
    kind: str  # generator | teacher | vae | real | published
    teacher: str
    method: str | None = None  # of a generator: `Run.method`
    objective: str | None = None
    strategy: str | None = None
    kappa_fake_train: float | None = None
    kappa_fake_eval: float | None = None
    kappa_teacher: float | None = None  # of a teacher row: its guidance scale
    alpha: float | None = None
    seed: int | None = None  # of the training
    solver: str | None = None  # of a teacher row, as in config.yaml
    steps: int | None = None  # of its solver, or of the generator
    nfe: int  # network evaluations per image: a guided step of the teacher counts two
    train_kimg: float | None = None  # images that the weights have seen
    whole_kimg: float | None = None  # of the training, where an earlier point was chosen
    network_passes: float | None = None  # of the training, as `ScoreDistillation.network_passes` counts them
    train_s: float | None = None  # of the training, by the clock
    train_gpu_s: float | None = None  # the same, times its GPUs; 0 on a CPU
    real_images: str | None = None  # of a generator: yes if its training used them
    samples: int
    measured: dict[str, float | None]  # by `measured_columns`
    protocol: str
    protocol_hash: str | None = None
    not_comparable: str | None = None  # of a published row: difference from the other rows' protocol
    generator_sha256: str | None = None


# required in score.json beside the headline metrics; other metrics may be absent
SCORE_KEYS = (
    *("teacher_eps_error", "nfe", "images_per_s", "protocol", "protocol_hash", "generator_sha256", "versions"),
    *("intervals", "standard_errors", "not_computed"),
)


def measured_columns() -> list[str]:
    """Name the measured columns: every metric of the catalogue, headline ones with errors, benchmarks, and two more."""
    names = []
    for metric in METRICS.values():
        ends = ("_se", "_low", "_high") if metric.shown == "headline" else ()
        names += [metric.key, *(metric.key + end for end in ends)]
    return [*names, *BENCHMARKS, "teacher_eps_error", "images_per_s"]  # of sampling; None for real images


def columns() -> list[str]:
    """Name the columns of summary.csv, in order."""
    names = [field.name for field in fields(Row)]
    at = names.index("measured")
    return names[:at] + measured_columns() + names[at + 1 :]


def read_scores(paths: dict[str, Path]) -> dict[str, dict]:
    """Read scores by name of run or baseline; raise UserError for a damaged one, or one of another protocol."""
    scores = {name: _read_score(path) for name, path in paths.items()}
    first, *others = scores
    for name in others:
        if scores[name]["protocol_hash"] != scores[first]["protocol_hash"]:
            a, b = flat(scores[first]["protocol"]), flat(scores[name]["protocol"])
            apart = "; ".join(f"{key}: {a.get(key)}, {b.get(key)}" for key in a | b if a.get(key) != b.get(key))
            raise UserError(
                f"{paths[first]} was measured by protocol {_protocol(scores[first])}, {paths[name]} by {_protocol(scores[name])}: "
                f"not comparable ({apart or 'hash alone'}). Fix: delete the features and scores of the older one and rerun."
            )
    return scores


def _protocol(score: dict) -> str:
    return f"{score['protocol']['name']} (hash {score['protocol_hash'][:12]})"


def _read_score(path: Path) -> dict:
    score, keys = read_json(path), [metric.key for metric in headline()]
    wanted = ["samples", *(name for key in keys for name in (key, f"{key}_se")), *SCORE_KEYS]
    missing = [key for key in wanted if not isinstance(score, dict) or key not in score]
    if missing:
        raise UserError(f"{path}: not a score (has no {', '.join(missing)}). Fix: delete it and rerun.")
    if not isinstance(score["protocol"], dict) or "name" not in score["protocol"] or not score["protocol_hash"]:
        raise UserError(f"{path}: protocol without name or hash. Fix: delete it and rerun.")
    for key in keys:
        if not isinstance(score[key], int | float) or not math.isfinite(score[key]):
            raise UserError(f"{path}: {key}={score[key]!r}: expected a finite number. Fix: delete it and rerun.")
    return score | _imported(score, path.with_name("benchmarks.json"))


def _imported(score: dict, path: Path) -> dict:
    """Return the results of benchmarks as keys of a score, if import-benchmark wrote some."""
    found = read_json(path) if path.is_file() else {}
    for key, result in found.items():
        if result["generator_sha256"] != score["generator_sha256"]:
            raise UserError(f"{path}: {key} is of other weights than the score. Fix: delete it, or export again.")
    errors = score["standard_errors"] | {key: result["se"] for key, result in found.items()}
    values = {key: result["value"] for key, result in found.items()}
    return values | {"standard_errors": errors, "imported": {key: result["file"] for key, result in found.items()}}


def make_rows(config: Config, folder: Path, scores: dict[str, dict]) -> list[Row]:
    """Make the rows of all scores (generators, teacher baselines, VAE, real images) and of published results."""
    rows = [_generator_row(config, folder, run, scores[run.name]) for run in generators(config) if run.name in scores]
    rows += [_baseline_row(config, one, scores[one.name]) for one in baselines(config) if one.name in scores]
    return rows + published_rows(unlike_published(next(iter(scores.values()))["protocol"]))


def _generator_row(config: Config, folder: Path, run: Run, score: dict) -> Row:
    record = _generator_record(Results(folder).run(run.name).generator, run, score)
    return Row(
        run=run.name,
        label=run.label,
        kind="generator",
        teacher=_teacher_name(config, run),
        **{key: getattr(run, key) for key in ("method", "objective", "strategy", "alpha", "seed")},
        kappa_fake_train=run.fake_train,
        kappa_fake_eval=run.fake_eval,
        kappa_teacher=run.teacher,
        steps=run.num_steps,
        train_kimg=record["train_kimg"],
        whole_kimg=record.get("whole_kimg") if "chosen" in record else None,
        **{key: record.get(key) for key in ("network_passes", "train_s", "train_gpu_s")},
        real_images="yes" if run.uses_real_images else "no",
        **_measured(score),
    )


def _generator_record(generator: Path, run: Run, score: dict) -> dict:
    """Read generator.json; raise UserError unless its run is the configured one and its weights are those scored."""
    path = generator / "generator.json"
    record = read_json(path)
    if not {"run", "train_kimg"} <= record.keys():
        raise UserError(f"{path}: expected a generator's record with run and train_kimg. Fix: distil {run.name} again.")
    for key, wanted in run.model_dump().items():
        if record["run"].get(key) != wanted:
            text = f"{path}: {key}={record['run'].get(key)!r}: expected {wanted!r} as configured"
            raise UserError(f"{text}. Fix: distil {run.name} again, or rename the experiment.")
    files = read_json(generator / MANIFEST).get("files", {})
    if score["generator_sha256"] not in [entry["sha256"] for entry in files.values()]:
        text = f"{generator}: not the scored weights ({score['generator_sha256']})"
        raise UserError(f"{text}. Fix: delete the samples of {run.name} and rerun.")
    return record


def _baseline_row(config: Config, baseline: Baseline, score: dict) -> Row:
    return Row(
        run=baseline.name,
        **{key: getattr(baseline, key) for key in ("label", "kind", "solver")},
        teacher=_teacher_name(config),
        kappa_teacher=baseline.guidance_scale,
        steps=baseline.steps or None,
        **_measured(score),
    )


def _measured(score: dict) -> dict:
    """Return the fields of a row that come from score.json."""
    measured = {key: score.get(key) for key in measured_columns()}
    for metric in headline():
        low, high = score["intervals"].get(metric.key, (None, None))
        measured |= {f"{metric.key}_low": low, f"{metric.key}_high": high}
    others = {key: score[key] for key in ("samples", "nfe", "protocol_hash", "generator_sha256")}
    return others | {"measured": measured, "protocol": score["protocol"]["name"]}


def _teacher_name(config: Config, run: Run | None = None) -> str:
    """Return `embedded`, or the last component of the path or repository of the teacher (an import's own)."""
    key = next((imported.teacher for imported in config.imports if run and imported.name == run.name), None)
    teacher = config.teachers[key] if key else config.teacher
    return Path(teacher.path or teacher.repo or teacher.source).name


def unlike_published(protocol: dict) -> str | None:
    """Return how a protocol differs from the published one, by name or by known values; None where it agrees."""
    if protocol["name"] != PUBLISHED_PROTOCOL:
        return f"protocol {protocol['name']}"
    found = {key: flat(protocol).get(key) for key in PUBLISHED_FACTS}
    apart = [(key, _short(found[key]), _short(fact)) for key, fact in PUBLISHED_FACTS.items() if found[key] != fact]
    return "; ".join(f"{key}: {value}, not {fact}" for key, value, fact in apart) or None


def _short(fact: object) -> str:
    return f"{fact[:12]}…" if isinstance(fact, str) and len(fact) == 64 else repr(fact)  # a sha256


def published_rows(not_comparable: str | None) -> list[Row]:
    """Read the official results (published.csv): 30,000 captions of COCO-2014, a row for each teacher, scale and length."""
    with open(PUBLISHED, encoding="utf-8", newline="") as handle:
        return [_published_row(line, not_comparable) for line in csv.DictReader(handle)]


def _published_row(line: dict[str, str], not_comparable: str | None) -> Row:
    kappa, million = float(line["kappa"]), float(line["train_kimg"]) / 1000
    return Row(
        run=f"published-{line['teacher']}-{line['strategy']}-{line['kappa']}-{line['train_kimg']}kimg",
        label=f"published, {line['teacher']}, κ = {line['kappa']}, {million:.1f}M images",
        kind="published",
        teacher=line["teacher"],
        strategy=line["strategy"],
        **dict.fromkeys(("kappa_fake_train", "kappa_fake_eval", "kappa_teacher"), kappa),
        steps=int(line["nfe"]),
        nfe=int(line["nfe"]),
        train_kimg=float(line["train_kimg"]),
        samples=PUBLISHED_FACTS["samples"],
        measured={key: float(line[key]) for key in ("fid", "clip")},
        protocol=PUBLISHED_PROTOCOL,
        not_comparable=not_comparable,
    )


def to_csv(rows: list[Row]) -> str:
    """Write CSV text with a header, numbers at full precision, empty cells for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(row) | row.measured for row in rows)
    return text.getvalue()


def read_summary(path: Path) -> list[Row]:
    """Read the rows of a summary.csv; columns of metrics may be missing, as in one of an earlier version."""
    kinds = {field.name: get_args(field.type) or (field.type,) for field in fields(Row) if field.name != "measured"}
    rows = []
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            values = {name: kind[0](line[name]) for name, kind in kinds.items() if line.get(name)}
            measured = {name: float(line[name]) if line.get(name) else None for name in measured_columns()}
            rows.append(Row(**values, measured=measured))
    except (TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: expected a summary, got {error}. Fix: delete it and run sid-core report") from None
    own = [row for row in rows if row.kind != "published"]
    if not own:
        raise UserError(f"{path}: expected a summary, got no row of a run. Fix: delete it and run sid-core report")
    for row in own:
        values = [row.measured[metric.key] for metric in headline()]
        if not row.protocol_hash or None in values or not all(map(math.isfinite, values)):
            raise UserError(f"{path}: {row.run}: no protocol hash or headline metric. Fix: run sid-core report again")
    return rows
