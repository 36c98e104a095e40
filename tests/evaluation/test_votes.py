"""Hold win rates and agreement to scipy, to effective sample sizes and to a published example."""

import re

import pytest
from scipy.stats import binomtest

from sid_core import cli
from sid_core.evaluation.votes import Vote, fleiss_kappa, read_votes, summarise, wilson, win_rate
from sid_core.storage.files import write_json


def vote(rater: int, prompt: int, choice: str) -> Vote:
    return Vote("page", str(rater), prompt, str(prompt), "a", "b", choice)


def write_votes(path, rater: str, choices: list[str], sides: tuple[str, str] = ("a", "b")):
    votes = [
        {"sample": i, "prompt": f"prompt {i}", "left": sides[i % 2], "right": sides[1 - i % 2], "choice": choice}
        for i, choice in enumerate(choices)
    ]
    write_json(path, {"page": "0123", "rater": rater, "votes": votes})
    return path


@pytest.mark.parametrize(("wins", "count"), [(0, 7), (13, 40), (50, 50)])
def test_wilson_equals_scipy(wins, count):
    expected = binomtest(wins, count).proportion_ci(method="wilson")
    assert wilson(wins / count, count) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("cluster", ["rater", "prompt"])
def test_win_rate_of_clustered_votes_has_the_interval_of_as_many_clusters(cluster):
    """Check 40 raters (or prompts) with equal votes each: 1,600 votes have the standard error of 40."""
    pairs = [(i, j) if cluster == "rater" else (j, i) for i in range(40) for j in range(40)]
    votes = [vote(*pair, "left" if pair[cluster == "prompt"] % 2 else "right") for pair in pairs]
    rate, low, high = win_rate(votes, "a")
    assert rate == 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 40) ** 0.5, rel=0.1)


def test_win_rate_counts_ties_as_halves_and_both_runs_sum_to_one():
    votes = [vote(0, i, choice) for i, choice in enumerate(["left", "right", "tie", "tie", "left"])]
    assert win_rate(votes, "a")[0] == 0.6
    a, b = win_rate(votes, "a"), win_rate(votes, "b")
    assert (b[0], b[1], b[2]) == pytest.approx((1 - a[0], 1 - a[2], 1 - a[1]), abs=0.02)


def test_fleiss_kappa_equals_the_published_example():
    """Check 14 raters, 10 subjects and 5 categories: kappa = 0.210."""
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([(2, 0, 0), (0, 2, 0), (0, 0, 2)]) == 1
    assert fleiss_kappa([(3, 0), (3, 0)]) is None


def test_summarise_prints_a_row_for_every_run_and_opponent(tmp_path, capsys):
    first = write_votes(tmp_path / "x.json", "x", ["left", "right", "left", "tie"])  # a, a, a, equal
    second = write_votes(tmp_path / "y.json", "y", ["left", "left"])  # a, b
    assert cli.main(["votes", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 votes, raters: 2"
    assert lines[3].split()[:7] == ["a", "b", "6", "4", "1", "1", "0.75"]
    assert lines[4].split()[:7] == ["b", "a", "6", "1", "1", "4", "0.25"]
    assert lines[-1].startswith("Agreement of raters: Fleiss' kappa -0.33 over 2 pairs")  # (1/2 - 5/8) / (1 - 5/8)


def test_summarise_of_three_runs_adds_a_row_against_all_others(tmp_path):
    files = [write_votes(tmp_path / f"{b}.json", f"of {b}", ["left", "right"], ("a", b)) for b in ("b", "c")]
    rows = [re.split(r"  +", line)[:3] for line in summarise(files).splitlines()[3:-3]]
    assert rows == [["a", "all others", "4"], ["a", "b", "2"], ["a", "c", "2"], ["b", "a", "2"], ["c", "a", "2"]]
    assert "Agreement of raters: not computed" in summarise(files)


def test_read_votes_of_one_rater_twice_raises(tmp_path, capsys):
    files = [str(write_votes(tmp_path / name, "x", ["left"])) for name in ("1.json", "2.json")]
    assert cli.main(["votes", *files]) == 1
    assert "2.json: rater=x and page as in " in capsys.readouterr().err


@pytest.mark.parametrize(
    "votes", [{}, [{}], [{"sample": "0", "prompt": "", "left": "a", "right": "b", "choice": "tie"}]]
)
def test_read_votes_of_another_file_raises(tmp_path, capsys, votes):
    write_json(tmp_path / "x.json", {"page": "0", "rater": "x", "votes": votes})
    assert cli.main(["votes", str(tmp_path / "x.json")]) == 1
    assert "x.json: expected votes that the page of sid-core vote saved" in capsys.readouterr().err


def test_read_votes_without_a_vote_raises(tmp_path, capsys):
    assert cli.main(["votes", str(write_votes(tmp_path / "x.json", "x", []))]) == 1
    assert "x.json: no vote in them" in capsys.readouterr().err
    assert len(read_votes([write_votes(tmp_path / "y.json", "x", ["tie"])])) == 1
