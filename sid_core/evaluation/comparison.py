"""Compare runs in a terminal, one column each, with 95 % intervals and the better run per metric."""

from collections.abc import Sequence
from pathlib import Path

from ..config import REAL_IMAGES
from ..errors import UserError
from ..pipeline.paths import Row
from ..storage.files import read_json
from .metrics.catalogue import METRICS
from .metrics.uncertainty import Estimate
from .pairs import Scored, better, check_comparable, differences_of, read, with_interval

NOTE = "95 % intervals over captions and noise drawn anew; another training seed is not in them."


def compare_runs(folders: Sequence[Path]) -> str:
    """Compare two or more scored runs of one protocol, else a UserError, metric by metric in a plain-text table."""
    names = distinct_names("compare", folders)
    scored = [read(folder, name) for folder, name in zip(folders, names, strict=True)]
    for other in scored[1:]:
        check_comparable(scored[0], other)
    rows = [["", *(one.name for one in scored), "better"]]
    for key, metric in METRICS.items():
        if any(key in one.estimates for one in scored):
            found = [one.estimates.get(key) for one in scored]
            cells = ["not computed" if estimate is None else _formatted(estimate) for estimate in found]
            name = f"{key} ({metric.better})" if metric.better else key
            rows.append([name, *cells, _verdict(key, scored) if metric.better else ""])
    score = scored[0].score
    head = f"protocol {score['protocol']['name']} ({score['protocol_hash'][:12]}), {score['samples']} samples each"
    missing = sorted({f"{name} ({why})" for one in scored for name, why in one.score["not_computed"].items()})
    real = [one.name for folder, one in zip(folders, scored, strict=True) if _uses_real_images(folder)]
    foot = [NOTE, *(f"{name} {REAL_IMAGES}." for name in real)]
    foot += [f"Not computed: {', '.join(missing)}."] if missing else []
    return "\n".join([head, "", *aligned(rows), "", *foot])


def _uses_real_images(folder: Path) -> bool:
    record = Row(folder).record
    return record.is_file() and bool(read_json(record).get("uses_real_images"))


def distinct_names(command: str, folders: Sequence[Path]) -> list[str]:
    """Name two or more different folders, else a UserError, by run, by experiment and run, or by path."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < max(len(paths), 2):
        raise UserError(f"{command}: expected two or more different runs, got {', '.join(map(str, folders))}")
    for names in ([path.name for path in paths], [f"{path.parents[1].name}/{path.name}" for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _verdict(metric: str, scored: Sequence[Scored]) -> str:
    """Return the run that is significantly better than all others; with one other, also the interval of the difference."""
    holders = [one for one in scored if metric in one.estimates]
    sign = METRICS[metric].sign
    best = min(holders, key=lambda one: sign * one.estimates[metric].centre)
    differences = {one.name: differences_of(best, one).get(metric) for one in holders if one is not best}
    if None in differences.values() or len(holders) < 2:
        return "not comparable: measured differently" if len(holders) > 1 else ""
    open_to = [name for name, found in differences.items() if better(metric, found, best.name, name) != best.name]
    if open_to:
        return "no difference shown" + (f": {', '.join([best.name, *open_to])}" if len(scored) > 2 else "")
    if len(differences) > 1:
        return best.name
    [difference] = differences.values()
    return f"{best.name}, by {_formatted(difference, -sign)}"


def _formatted(estimate: Estimate, sign: int = 1) -> str:
    return with_interval(sign * estimate.value, sign * estimate.low, sign * estimate.high, estimate.se)


def aligned(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
