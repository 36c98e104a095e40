"""The readable table (summary.md, and the head of the page): one line a setting, seeds put together, numbers rounded.

A number's error is the standard deviation over seeds where there are several, else the standard error of the metric. It
decides the rounding: its two leading digits are shown, and the value to the same place.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from ..config import Config, Run, generators, runs, scale_name
from .table import Row

FEW_SEEDS = 3


@dataclass(frozen=True)
class Entry:
    """One setting over its seeds."""

    name: str  # of the run, without its seed
    kind: str
    rows: tuple[Row, ...]
    comparable: bool  # by protocol, with this experiment's own rows
    swept: bool = False  # one of the LSG scales: the curve of the trade-off

    @property
    def row(self) -> Row:
        """The first seed's row: what its seeds share can be read from it."""
        return self.rows[0]

    def estimate(self, column: str) -> tuple[float, float | None] | None:
        """Value and error of a column: mean and standard deviation over seeds, or the value and its standard error."""
        values = [getattr(row, column) for row in self.rows]
        if None in values:
            return None
        if len(values) > 1:
            return statistics.fmean(values), statistics.stdev(values)
        return values[0], getattr(self.row, f"{column}_se", None)


def make_entries(config: Config, rows: list[Row]) -> list[Entry]:
    """Rows put together over seeds, in the order of the rows."""
    by_name = {run.name: run for run in generators(config)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(base_name(by_name[row.run]) if row.kind == "generator" else row.run, []).append(row)
    protocol = rows[0].protocol
    return [
        Entry(
            name=name,
            kind=group[0].kind,
            rows=tuple(group),
            comparable=group[0].protocol == protocol,
            swept=group[0].kind == "generator" and _is_swept(config, by_name[group[0].run]),
        )
        for name, group in groups.items()
    ]


def base_name(run: Run) -> str:
    """The name of a run without its seed."""
    return run.name.removesuffix(f"-seed{run.seed}") if run.seed else run.name


def _is_swept(config: Config, run: Run) -> bool:
    usual = (config.distill.alpha, config.distill.num_steps)
    return run.strategy == "lsg" and (run.alpha, run.num_steps) == usual and run in runs(config)


def best(entries: list[Entry], kind: str, column: str) -> Entry | None:
    """The entry of a kind with the lowest FID or the highest CLIP score."""
    sign = {"fid": 1, "clip": -1}[column]
    return min((e for e in entries if e.kind == kind), key=lambda e: sign * e.estimate(column)[0], default=None)


# --- rounding --------------------------------------------------------------------------------------------------------


def rounded(estimate: tuple[float, float | None] | None, decimals: int) -> str:
    """'33.71 ± 0.43': two digits of the error, the value to the same place; without an error, `decimals` places."""
    if estimate is None:
        return "—"
    value, error = estimate
    if not error:
        return f"{value:.{decimals}f}"
    places = min(max(1 - math.floor(math.log10(error)), 0), 4)
    return f"{value:.{places}f} ± {error:.{places}f}"


def _speed(entry: Entry) -> str:
    estimate = entry.estimate("images_per_s")
    if estimate is None:
        return "—"
    return f"{estimate[0]:,.0f}" if estimate[0] >= 100 else f"{estimate[0]:.3g}"


def steps(row: Row) -> str:
    """'one step', '8 steps': network evaluations per image."""
    return "one step" if row.nfe == 1 else f"{row.nfe} steps"


def guidance(row: Row) -> str:
    """'3' where all scales agree (and for a teacher), else kappa_1 / kappa_2,3 / kappa_4."""
    scales = [k for k in (row.kappa_fake_train, row.kappa_fake_eval, row.kappa_teacher) if k is not None]
    return " / ".join(scale_name(k) for k in (scales if len(set(scales)) > 1 else scales[:1])) or "—"


def _protocol(entry: Entry) -> str:
    return entry.row.protocol if entry.comparable else f"{entry.row.protocol} (not comparable)"


@dataclass(frozen=True)
class Column:
    """A column of the readable table; `value` sorts it."""

    title: str
    text: Callable[[Entry], str]
    value: Callable[[Entry], float | str | None]
    key: str | None = None  # the column of summary.csv


def _metric(title: str, key: str, decimals: int) -> Column:
    def value(entry: Entry) -> float | None:
        estimate = entry.estimate(key)
        return None if estimate is None else estimate[0]

    return Column(title, lambda entry: rounded(entry.estimate(key), decimals), value, key)


def _kimg(entry: Entry) -> str:
    return "—" if entry.row.train_kimg is None else f"{entry.row.train_kimg:,.10g}"


TABLE = [
    Column("Run", lambda e: e.name, lambda e: e.name),
    Column("Guidance", lambda e: guidance(e.row), lambda e: e.row.kappa_teacher),
    Column("NFE", lambda e: str(e.row.nfe or "—"), lambda e: e.row.nfe),
    Column("kimg", _kimg, lambda e: e.row.train_kimg),
    _metric("FID ↓", "fid", 2),
    _metric("FID∞ ↓", "fid_inf", 2),
    _metric("CLIP ↑", "clip", 3),
    _metric("KID ↓", "kid", 4),
    _metric("Precision ↑", "precision", 3),
    _metric("Recall ↑", "recall", 3),
    _metric("ε-error ↓", "teacher_eps_error", 3),
    Column("Images/s", _speed, lambda e: (e.estimate("images_per_s") or (None,))[0]),
    Column("Protocol", _protocol, _protocol),
]


def is_best(entries: list[Entry], entry: Entry, key: str | None) -> bool:
    """Whether a cell is the lowest FID or the highest CLIP score of the generators."""
    return key in ("fid", "clip") and best(entries, "generator", key) is entry


# --- words -----------------------------------------------------------------------------------------------------------


def notes(entries: list[Entry]) -> list[str]:
    """What a reader must know to read the table."""
    row = entries[0].row
    return [
        f"{row.samples:,} samples a row, protocol {row.protocol} (hash {row.protocol_hash[:12]}). Numbers of another protocol "
        "come from other images, networks or captions and are not comparable.",
        _errors_are(entries),
        "Best rows: the lowest FID and the highest CLIP score of the generators are set in bold. A difference of less than "
        "about twice the errors put together means nothing.",
        "Guidance is κ where the three scales agree, else κ of the fake score in training / of the fake score in the "
        "generator's loss / of the teacher. NFE: network evaluations per image. ε-error: the teacher's own error in "
        "predicting noise on the samples; high where samples are noisy in a way FID forgives.",
        "Published rows: README of the official SiD-LSG repository, and the paper (arXiv 2406.01561).",
    ]


def _errors_are(entries: list[Entry]) -> str:
    seeds = max(len(entry.rows) for entry in entries)
    if seeds > 1:
        return (
            f"Generators: mean ± standard deviation over {seeds} seeds of training. Other rows: ± one standard error "
            "(jackknife for FID, bootstrap for CLIP)."
        )
    return "± is one standard error of the metric (jackknife for FID, bootstrap for CLIP); it leaves out the spread over seeds of training."


def finding(entries: list[Entry]) -> str:
    """The result in a sentence or two."""
    ours, clip, teacher = (
        best(entries, "generator", "fid"),
        best(entries, "generator", "clip"),
        best(entries, "teacher", "fid"),
    )
    text = f"Lowest FID of the generators: {rounded(ours.estimate('fid'), 2)} ({ours.name}, {steps(ours.row)})"
    if teacher is not None:
        ratio = ours.estimate("fid")[0] / teacher.estimate("fid")[0]
        text += f", {ratio:.2f} times the teacher's best, {rounded(teacher.estimate('fid'), 2)} ({teacher.name})"
    return f"{text}. Highest CLIP score: {rounded(clip.estimate('clip'), 3)} ({clip.name})."


def warnings(config: Config, entries: list[Entry], skipped: dict[str, int]) -> list[str]:
    """What limits the conclusions. `skipped`: updates each run left out for want of finite numbers."""
    result = []
    foreign = [entry for entry in entries if not entry.comparable]
    if foreign:
        result.append(
            f"Not comparable: {len(foreign)} published rows were measured by protocol {foreign[0].row.protocol}, "
            f"these by {entries[0].row.protocol}. They are shown, and left out of the figures."
        )
    elif any(entry.kind == "published" for entry in entries):
        result.append(
            f"The published rows name the same protocol, {entries[0].row.protocol}, but carry no hash: its agreement is taken on trust."
        )
    wanted = config.generate.samples
    for row in (row for entry in entries if entry.kind != "published" for row in entry.rows if row.samples != wanted):
        result.append(f"Partial: {row.run} was scored on {row.samples:,} samples, the configuration says {wanted:,}.")
    for name, count in skipped.items():
        if count:
            result.append(f"Skipped: {name} left out {count:,} updates whose loss or gradient was not finite.")
    if len(config.seeds) < FEW_SEEDS:
        seeds = "one seed" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds"
        result.append(
            f"Few seeds: every setting was trained with {seeds}; small differences between rows may be chance."
        )
    if config.prompts.split != "evaluation":
        result.append(f"Scored on the {config.prompts.split} split: good for choosing settings, not for reporting.")
    return result


def to_markdown(config: Config, entries: list[Entry], warnings: list[str]) -> str:
    """summary.md."""
    parts = [f"# {config.experiment}", finding(entries), _markdown_table(entries)]
    parts.append("\n".join(f"- {line}" for line in notes(entries)))
    parts += [f"**{line}**" for line in warnings]
    if len(config.seeds) > 1:
        single = [
            Entry(row.run, e.kind, (row,), e.comparable) for e in entries if e.kind == "generator" for row in e.rows
        ]
        parts += ["## Each seed", "± is one standard error of the metric.", _markdown_table(single)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(entries: list[Entry]) -> str:
    def cell(entry: Entry, column: Column) -> str:
        text = column.text(entry).replace("|", "\\|")
        return f"**{text}**" if is_best(entries, entry, column.key) else text

    left = {"Run", "Protocol"}
    lines = [
        " | ".join(column.title for column in TABLE),
        " | ".join("---" if c.title in left else "---:" for c in TABLE),
    ]
    lines += [" | ".join(cell(entry, column) for column in TABLE) for entry in entries]
    return "\n".join(f"| {line} |" for line in lines)
