"""Summarise votes on blind pairs of images: win rates with intervals, and the agreement of raters."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from ..errors import UserError
from ..storage.files import read_json
from .comparison import aligned
from .metrics.uncertainty import LEVEL, bootstrap
from .pairs import with_interval

CHOICES = ("left", "right", "tie")
FIELDS = {"sample": int, "prompt": str, "left": str, "right": str, "choice": str}
RESAMPLES = 2000
NOTE = (
    "A tie counts a half. 95 % intervals: the wider ends of Wilson's, for independent votes, and of a bootstrap over raters "
    "and prompts."
)


@dataclass(frozen=True)
class Vote:
    """A rater's choice between the images of two runs, on the sides of a page."""

    page: str
    rater: str
    sample: int
    prompt: str
    left: str
    right: str
    choice: str

    @property
    def pair(self) -> Hashable:
        """Identify what the rater saw."""
        return self.page, self.sample, self.left, self.right

    def points(self, run: str) -> float:
        """Return 1 for a win of `run`, 0 for a loss, 0.5 for a tie."""
        return 0.5 if self.choice == "tie" else float(run == getattr(self, self.choice))


def read_votes(paths: Sequence[Path]) -> list[Vote]:
    """Read files that voters saved; a UserError names another file, one without votes, and a rater's second."""
    votes, seen = [], {}
    for path in paths:
        record = read_json(path)
        given = record.get("votes") if isinstance(record, dict) else None
        if not isinstance(given, list) or not all(map(_is_vote, given)):
            raise UserError(f"{path}: expected votes that the page of sid-core vote saved, got other JSON")
        rater, page = str(record.get("rater")), str(record.get("page"))
        if (rater, page) in seen:
            raise UserError(f"{path}: rater={rater} and page as in {seen[rater, page]}. Fix: give the later file alone")
        seen[rater, page] = path
        votes += [Vote(page, rater, **one) for one in given]
    if not votes:
        raise UserError(f"{', '.join(map(str, paths))}: no vote in them. Fix: vote, and save the votes")
    return votes


def _is_vote(one: object) -> bool:
    if not isinstance(one, dict) or one.keys() != FIELDS.keys():
        return False
    return all(isinstance(one[key], kind) for key, kind in FIELDS.items()) and one["choice"] in CHOICES


def summarise(paths: Sequence[Path]) -> str:
    """Return a plain-text table of win rates, a row for every run and opponent, and the agreement of raters."""
    votes = read_votes(paths)
    runs = sorted({name for vote in votes for name in (vote.left, vote.right)})
    rows = [["run", "against", "votes", "wins", "ties", "losses", "win rate"]]
    for run in runs:
        own = [vote for vote in votes if run in (vote.left, vote.right)]
        met = {other: [vote for vote in own if other in (vote.left, vote.right)] for other in runs if other != run}
        met = {other: some for other, some in met.items() if some}
        for other, some in (met if len(met) == 1 else {"all others": own} | met).items():
            points = Counter(vote.points(run) for vote in some)
            rate, low, high = win_rate(some, run)
            counts = [len(some), points[1.0], points[0.5], points[0.0]]
            rows.append([run, other, *map(str, counts), with_interval(rate, low, high, (high - low) / 4)])
    raters = len({vote.rater for vote in votes})
    return "\n".join([f"{len(votes)} votes, raters: {raters}", "", *aligned(rows), "", NOTE, agreement(votes)])


def win_rate(votes: Sequence[Vote], run: str) -> tuple[float, float, float]:
    """Return the mean points of `run` and the ends of its 95 % interval.

    Votes of one rater, and on one prompt, are not independent: the bootstrap draws raters and prompts anew, each with
    replacement (Owen 2007, "The pigeonhole bootstrap"). Wilson's interval has a width also where all votes agree.
    """
    points = np.array([vote.points(run) for vote in votes])
    rng = np.random.default_rng(0)
    weights = np.ones((RESAMPLES, len(votes)))
    for groups in ([vote.rater for vote in votes], [vote.prompt for vote in votes]):
        names, index = np.unique(groups, return_inverse=True)
        weights *= rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)[:, index]
    totals = weights.sum(axis=1)
    drawn = totals > 0  # few votes: a resample may have none
    found = bootstrap(points.mean(), (weights[drawn] @ points / totals[drawn]).tolist())
    low, high = wilson(points.mean(), len(votes))
    return points.mean(), min(low, found.low), max(high, found.high)


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % score interval of a rate of `count` independent votes."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def agreement(votes: Sequence[Vote]) -> str:
    """Describe the agreement of raters on the side that they chose, over the pairs with several votes."""
    by_pair: dict[Hashable, Counter[str]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, Counter())[vote.choice] += 1
    counts = [[chosen[choice] for choice in CHOICES] for chosen in by_pair.values() if chosen.total() > 1]
    if not counts:
        return "Agreement of raters: not computed, as no pair has votes of several raters."
    kappa = fleiss_kappa(counts)
    if kappa is None:
        return "Agreement of raters: not defined, as all chose the same side of every pair."
    return f"Agreement of raters: Fleiss' kappa {kappa:.2f} over {len(counts)} pairs (1: complete, 0: that of chance)."


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Compute Fleiss' kappa from numbers of votes (items, categories), at least two an item; None where it is undefined.

    Source: Fleiss (1971), "Measuring nominal scale agreement among many raters". Items may differ in their number of votes.
    """
    votes = np.asarray(counts, dtype=float)
    each = votes.sum(axis=1)
    observed = (((votes**2).sum(axis=1) - each) / (each * (each - 1))).mean()
    by_chance = ((votes.sum(axis=0) / votes.sum()) ** 2).sum()
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))
