"""Describe the experiment in words: finding, limits, and summary.md with a line for each setting."""

from ..config import Config, baselines, generators, runs
from ..evaluation.metrics.catalogue import BENCHMARKS
from .columns import Column, further, is_best, main, protocol, rounded
from .entries import Differences, Entry, best, grouped, pair
from .table import PUBLISHED_FACTS

FEW_SEEDS = 3


def notes(entries: list[Entry], scores: dict[str, dict]) -> list[str]:
    """Return the notes that explain the table."""
    row = entries[0].row
    missing = {f"{metric} ({why})": None for score in scores.values() for metric, why in score["not_computed"].items()}
    return [
        f"{row.samples:,} samples a row, protocol {row.protocol} (hash {row.protocol_hash[:12]}). Numbers of another protocol "
        "come from other images, networks or captions and are not comparable.",
        _errors_are(entries),
        "Best rows: the lowest FID and the highest CLIP score of the generators are set in bold. Which differences are larger "
        "than chance explains: pairs.csv. The headline's verdicts are from there, with 95 % intervals in brackets: over seeds of "
        "training and samples where there are several seeds, else over samples of the same captions and noise alone.",
        *([f"Not computed: {', '.join(missing)}."] if missing else []),
        *_imported(scores),
        *_real_images(entries),
        "Published rows: README of the official SiD-LSG repository, and the paper (arXiv 2406.01561).",
    ]


def _imported(scores: dict[str, dict]) -> list[str]:
    """Name the source of the columns that other programs measured."""
    files = [
        f"{BENCHMARKS[key].title} of {run}: {file}"
        for run, score in scores.items()
        for key, file in score.get("imported", {}).items()
    ]
    return [f"Measured by the benchmarks' own programs and imported: {', '.join(files)}."] if files else []


def _real_images(entries: list[Entry]) -> list[str]:
    """Name the generators whose training used real images, which the others did without."""
    named = [entry.label for entry in entries if entry.row.real_images == "yes"]
    text = f"{len(named)} of the generators saw real images in training: {'; '.join(named)}. All others are data-free."
    return [text] if named else []


def terms(config: Config) -> dict[str, str]:
    """Explain the words of tables and figures."""
    found = {
        "κ": "guidance scale of a distillation. A larger κ follows the prompt more closely (CLIP score), with less variety "
        "(recall) and, above about 1.5, a higher FID. SiD-LSG uses one κ for both networks (long and short guidance); three "
        "values are those of the fake score in training / of the fake score in the generator's loss / of the teacher.",
        "CFG": "the teacher's own guidance scale; 1 is without guidance.",
        "NFE": "network evaluations per image; a guided step of the teacher takes two, with and without the caption, and a "
        "generator needs no guidance.",
        "kimg": "thousand images that a generator has seen in training, out of all where an earlier point was chosen.",
        "VAE reconstructions": "real images encoded and decoded by the VAE alone: the lower bound of FID for all that is "
        "drawn in its latent space (VAE floor).",
        "ε-error": "the teacher's error in predicting noise that was added to the samples; high where samples are noisy in a "
        "way FID forgives.",
    }
    if config.prompts.source == "embedded":
        found["Captions"] = (
            "one attribute word in ten is random by design, so a real image may contradict its caption: a caption does not "
            "determine its image, and guidance has variety to trade."
        )
    return found


def _errors_are(entries: list[Entry]) -> str:
    of_one = "one standard error of the metric (jackknife for FID, bootstrap for CLIP); it leaves out the spread over seeds of training"
    several = grouped([entry for entry in entries if len(entry.rows) > 1], lambda entry: len(entry.rows))
    if not several:
        return f"± is {of_one}."
    names = {count: ", ".join(entry.label for entry in group) for count, group in several.items()}
    means = "; ".join(f"over {count} seeds of training: {labels}" for count, labels in names.items())
    return f"Mean ± standard deviation {means}. Every other row is one network or none: ± is {of_one}."


def finding(entries: list[Entry], differences: Differences) -> str:
    """State the result in two sentences, with the verdicts of paired comparisons."""
    fid, clip = (best(entries, "generator", key) for key in ("fid", "clip"))
    teacher = best(entries, "teacher", "fid")
    return (
        f"{fid.label} has the lowest FID of the generators, {rounded(fid.estimate('fid'), 2)} with {_evaluations(fid)} "
        f"an image{_ties(entries, fid, 'fid', differences)}"
        f"{_against(teacher, fid, differences) if teacher else ''}. "
        f"{clip.label} has the highest CLIP score, {rounded(clip.estimate('clip'), 3)}{_ties(entries, clip, 'clip', differences)}."
    )


def _evaluations(entry: Entry) -> str:
    return "one network evaluation" if entry.row.nfe == 1 else f"{entry.row.nfe} network evaluations"


def _ties(entries: list[Entry], first: Entry, key: str, differences: Differences) -> str:
    """Name the generators that are not shown to be worse than the first."""
    others = [entry for entry in entries if entry.kind == "generator" and entry is not first]
    found = {other.label: differences.get(pair(first.name, other.name, key)) for other in others}
    open_to = [label for label, difference in found.items() if difference is None or difference.better != first.name]
    return f" (no difference shown from {', '.join(open_to)})" if open_to else ""


def _against(teacher: Entry, ours: Entry, differences: Differences) -> str:
    """Compare a generator with a row of the teacher by FID, and by recall where FID shows no loss but recall does."""
    fid, recall = (differences.get(pair(ours.name, teacher.name, key)) for key in ("fid", "recall"))
    verdict = fid.verdict(ours.name) if fid else "not compared"
    lowest = f"{rounded(teacher.estimate('fid'), 2)} with {teacher.row.nfe} ({teacher.label.removeprefix('teacher, ')})"
    text = f"; against the teacher's lowest, {lowest}: {verdict}"
    fid_is_worse = fid is not None and fid.better == teacher.name
    if recall is not None and recall.better == teacher.name and not fid_is_worse:
        text += f". But recall is lower by {recall.format_difference()}: a loss of diversity, which FID hides"
    return text


def unfinished(config: Config, scores: dict[str, dict]) -> list[str]:
    """Name the runs and baselines without a score."""
    missing = [item.label for item in [*generators(config), *baselines(config)] if item.name not in scores]
    return [f"Unfinished: not scored so far, and missing here: {'; '.join(missing)}."] if missing else []


def not_comparable(entries: list[Entry]) -> str:
    """State why published rows are folded away; '' where none are."""
    foreign = [entry for entry in entries if not entry.comparable]
    if not foreign:
        return ""
    return (
        f"Not comparable: {len(foreign)} published rows were measured by protocol {foreign[0].row.protocol}, these otherwise "
        f"({foreign[0].row.not_comparable}). They are in no figure."
    )


def warnings(config: Config, entries: list[Entry]) -> list[str]:
    """Return the limits of the conclusions."""
    result = []
    if any(entry.kind == "published" and entry.comparable for entry in entries):
        result.append(
            f"The published rows are of the same protocol, {entries[0].row.protocol}, in all that is known ({', '.join(PUBLISHED_FACTS)}), "
            "but carry no hash: the rest, such as CLIP's weights, is taken on trust."
        )
    wanted = config.generate.samples
    for row in (row for entry in entries if entry.kind != "published" for row in entry.rows if row.samples != wanted):
        result.append(f"Partial: {row.label} was scored on {row.samples:,} samples, the configuration says {wanted:,}.")
    single = ", ".join(run.label for run in generators(config) if run.seed is None)
    few = f"each import is a single training ({single})" if single else ""
    if runs(config) and len(config.seeds) < FEW_SEEDS:
        seeds = "one seed" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds"
        few = f"every setting was trained with {seeds}"
    if few:
        result.append(f"Few seeds: {few}; small differences between rows may be chance.")
    if config.prompts.split != "evaluation":
        result.append(f"Scored on the {config.prompts.split} split: good for choosing settings, not for reporting.")
    return result


def to_markdown(config: Config, entries: list[Entry], headline: str, notes: list[str], warnings: list[str]) -> str:
    """Write summary.md, with the `headline` of `finding`; published rows of another protocol are folded away."""
    columns = [*main(), *further(entries), Column("Protocol", protocol, protocol)]
    parts = [f"# {config.experiment}", headline, _markdown_table([e for e in entries if e.comparable], columns)]
    parts.append("\n".join(f"- {line}" for line in notes))
    parts += [f"**{line}**" for line in warnings]
    if why := not_comparable(entries):
        foreign = _markdown_table([e for e in entries if not e.comparable], columns)
        parts += [f"<details><summary>{why}</summary>", foreign, "</details>"]
    each = [Entry(row.run, e.kind, (row,)) for e in entries if len(e.rows) > 1 for row in e.rows]
    if each:
        parts += ["## Each seed", "± is one standard error of the metric.", _markdown_table(each, columns)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(entries: list[Entry], columns: list[Column]) -> str:
    def cell(entry: Entry, column: Column) -> str:
        text = column.text(entry).replace("|", "\\|")
        return f"**{text}**" if is_best(entries, entry, column.key) else text

    left = {"Run", "Protocol"}
    lines = [[column.title for column in columns], ["---" if c.title in left else "---:" for c in columns]]
    lines += [[cell(entry, column) for column in columns] for entry in entries]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
