"""Write one page over all experiments of a folder: their rows by protocol, from summary.csv alone."""

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..evaluation.metrics.catalogue import headline
from ..pipeline.paths import Results
from ..storage.files import write_text
from .columns import Column, filled, is_best, main
from .entries import Entry, best, grouped
from .page import GROUPS, fill, groups_of
from .table import Row, read_summary

OBJECTIVE = Column("Objective", lambda e: e.row.objective or "—", lambda e: e.row.objective)
REAL = Column("Real images", lambda e: e.row.real_images or "—", lambda e: e.row.real_images)


@dataclass(frozen=True)
class Experiment:
    """One folder: its rows, and its report relative to the folder of all."""

    name: str
    state: str
    report: str | None = None
    entries: list[Entry] = field(default_factory=list)

    @property
    def best(self) -> set[str]:
        """Name the entries that are best of their kind in a headline metric."""
        kinds = {entry.kind for entry in self.entries}
        return {best(self.entries, kind, metric.key).name for kind in kinds for metric in headline()}


@dataclass(frozen=True)
class Protocol:
    """Rows of one protocol hash, which alone are comparable."""

    name: str
    hash: str
    entries: list[Entry]


def write_overview(folder: Path) -> None:
    """Write `folder`/report.html; experiments without readable results are listed with the reason."""
    if Results(folder).config.is_file():
        raise UserError(f"--results {folder}: is one experiment. Fix: give the folder above it, or --settings")
    found = [each for each in map(Results, sorted(folder.glob("*"))) if each.config.is_file() or each.summary.is_file()]
    if not found:
        raise UserError(f"--results {folder}: has no experiment; expected a folder of folders results/EXPERIMENT")
    experiments = {each.folder.name: _read(each.folder) for each in found}
    of_all = [column for column in main() if column.title != "Images/s"]  # that is the machine's
    entries = [entry for experiment in experiments.values() for entry in experiment.entries]
    html = fill(
        "overview.html",
        "tables.js",
        "overview.js",
        experiments=experiments,
        best=set().union(*(experiment.best for experiment in experiments.values())),
        protocols=_protocols(entries),
        columns=[*filled(of_all, entries), OBJECTIVE, REAL],
        objectives=sorted({entry.row.objective for entry in entries if entry.row.objective}),
        groups_of=groups_of,
        is_best=is_best,
    )
    write_text(folder / Results(folder).report.name, html)


def _read(folder: Path) -> Experiment:
    """Read the summary of a finished experiment, or that of its report so far."""
    for state, results in (("finished", Results(folder)), ("unfinished", Results(folder).so_far)):
        if results.summary.is_file():
            try:
                rows = [row for row in read_summary(results.summary) if row.kind != "published"]
            except UserError as error:
                return Experiment(folder.name, f"broken: {error}")
            report = results.report.relative_to(folder.parent).as_posix() if results.report.is_file() else None
            return Experiment(folder.name, state, report, _entries(folder.name, rows))
    return Experiment(folder.name, "no report so far")


def _entries(experiment: str, rows: list[Row]) -> list[Entry]:
    """Group rows over seeds and protocols; names begin with that of the experiment."""
    groups = grouped(rows, lambda row: (row.run.removesuffix(f"-seed{row.seed}"), row.protocol_hash))
    return [Entry(f"{experiment}/{name}", group[0].kind, tuple(group)) for (name, _), group in groups.items()]


def _protocols(entries: list[Entry]) -> list[Protocol]:
    """Group entries by protocol hash, each sorted by kind and FID; the protocol with most rows is first."""
    kinds = list(GROUPS)
    entries = sorted(entries, key=lambda entry: (kinds.index(entry.kind), entry.estimate("fid")[0]))
    groups = grouped(entries, lambda entry: entry.row.protocol_hash)
    found = [Protocol(group[0].row.protocol, digest, group) for digest, group in groups.items()]
    return sorted(found, key=lambda protocol: -len(protocol.entries))
