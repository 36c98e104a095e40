import base64
import json
import re

import pytest
from made_up import CAPTION, make_config, write_experiment

from sid_core import cli


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return write_experiment(tmp_path_factory.mktemp("results"), make_config())


def write_page(experiment, out, *more: str, runs: tuple = ("runs/lsg-1.5", "runs/lsg-3")) -> int:
    return cli.main(["vote", *(str(experiment / run) for run in runs), "--out", str(out), *more])


def read_page(path) -> tuple[dict, list[list[str]]]:
    """Return what the page shows, and the names of the runs left and right."""
    html = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])
    return data, json.loads(base64.b64decode(data["sealed"]))


def test_vote_page_shows_equal_prompts_on_sides_of_the_seed(experiment, tmp_path):
    for name, seed in (("a", "7"), ("again", "7"), ("other", "8")):
        assert write_page(experiment, tmp_path / name, "--seed", seed, "--count", "20") == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "again").read_bytes()
    data, sides = read_page(tmp_path / "a")
    assert read_page(tmp_path / "other")[1] != sides
    assert len(data["pairs"]) == len({pair["prompt"] for pair in data["pairs"]}) == 20
    assert all(sorted(names) == ["lsg-1.5", "lsg-3"] for names in sides)
    assert 3 < sum(names[0] == "lsg-3" for names in sides) < 17
    assert sorted(number for pair in data["pairs"] for number in pair["images"]) == list(range(40))
    assert all(uri.startswith("data:image/png;base64,") for uri in data["images"])


def test_vote_page_has_no_readable_name_and_no_resource_from_elsewhere(experiment, tmp_path):
    assert write_page(experiment, tmp_path / "vote.html") == 0
    html = re.sub(r"data:image/png;base64,[^\"]*", "", (tmp_path / "vote.html").read_text(encoding="utf-8"))
    assert "lsg" not in html
    assert "<script>alert" not in html
    assert CAPTION in [pair["prompt"] for pair in read_page(tmp_path / "vote.html")[0]["pairs"]]
    assert not re.search(r"https?://|url\(|@import|src=", html)
    assert "default-src 'none'" in html


def test_vote_page_of_three_rows_has_every_pair(experiment, tmp_path):
    third = "baselines/teacher-dpm-solver-karras-cfg3-8steps"
    assert write_page(experiment, tmp_path / "x", "--count", "3", runs=("runs/lsg-1.5", "runs/lsg-3", third)) == 0
    data, sides = read_page(tmp_path / "x")
    assert len(data["images"]) == len(data["pairs"]) == 9
    assert {frozenset(names) for names in sides} == {
        frozenset(pair) for pair in (("lsg-1.5", "lsg-3"), ("lsg-1.5", third[10:]), ("lsg-3", third[10:]))
    }


def test_vote_with_samples_of_other_seeds_raises(tmp_path, capsys):
    folder = write_experiment(tmp_path, make_config())
    path = folder / "runs" / "lsg-3" / "samples" / "00000.json"
    path.write_text(path.read_text().replace('"seed": 4,', '"seed": 99,'))
    assert write_page(folder, tmp_path / "vote.html") == 1
    assert "have samples of other captions or seeds" in capsys.readouterr().err
    assert not (tmp_path / "vote.html").exists()


@pytest.mark.parametrize(
    ("runs", "more", "message"),
    [
        (("runs/lsg-3", "runs/lsg-3"), (), "vote: expected two or more different runs"),
        (("runs/lsg-3", "runs/lsg-4"), (), "lsg-4: no samples/00000.tar; expected a run with samples"),
        (("runs/lsg-3", "runs/lsg-1.5"), ("--count", "0"), "--count 0: expected 1 or more prompts"),
    ],
)
def test_vote_with_wrong_arguments_raises(experiment, tmp_path, capsys, runs, more, message):
    assert write_page(experiment, tmp_path / "vote.html", *more, runs=runs) == 1
    assert message in capsys.readouterr().err
