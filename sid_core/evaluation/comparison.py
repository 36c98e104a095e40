"""Compare runs in a terminal, one column each, with 95 % intervals and the better run per metric."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .metrics.catalogue import METRICS
from .metrics.uncertainty import Estimate
from .pairs import Scored, better, check_comparable, differences_of, places, read

NOTE = "95 % intervals over captions and noise drawn anew; another training seed is not in them."


def compare_runs(folders: Sequence[Path]) -> str:
    """Return a plain-text table that compares scored runs metric by metric.

    Raises:
        UserError: fewer than two, one that is not scored, or scores that are not comparable; the message says what differs.
    """
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise UserError(f"compare: expected two or more different runs, got {', '.join(map(str, folders))}")
    scored = [read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    for other in scored[1:]:
        check_comparable(scored[0], other)
    rows = [["", *(one.name for one in scored), "better"]]
    for key, metric in METRICS.items():
        if any(key in one.estimates for one in scored):
            cells = [_cell(one.estimates.get(key)) for one in scored]
            name = f"{key} ({metric.better})" if metric.better else key
            rows.append([name, *cells, _verdict(key, scored) if metric.better else ""])
    score = scored[0].score
    head = f"protocol {score['protocol']['name']} ({score['protocol_hash'][:12]}), {score['samples']} samples each"
    missing = sorted({f"{name} ({why})" for one in scored for name, why in one.score["not_computed"].items()})
    foot = [NOTE, *([f"Not computed: {', '.join(missing)}."] if missing else [])]
    return "\n".join([head, "", *_aligned(rows), "", *foot])


def _names(folders: Sequence[Path]) -> list[str]:
    """Return distinct names for the runs.

    Names are prefixed with the experiment's where two runs share one, and whole paths where that is not enough.
    """
    paths = [folder.resolve() for folder in folders]
    for names in ([path.name for path in paths], [f"{path.parents[1].name}/{path.name}" for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _verdict(metric: str, scored: Sequence[Scored]) -> str:
    """Return the run that is significantly better than all others.

    With one other run the interval of the difference is appended.
    """
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
    low, high = sorted((-sign * difference.low, -sign * difference.high))
    decimals = places(difference.se)
    return f"{best.name}, by {-sign * difference.value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not computed"
    decimals = places(estimate.se)
    return f"{estimate.value:.{decimals}f} [{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
