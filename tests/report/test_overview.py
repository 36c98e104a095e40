import json
from html.parser import HTMLParser

import pytest
from made_up import PROTOCOL_HASH, make_config, write_experiment

from sid_core import cli
from sid_core.config import dump
from sid_core.errors import UserError
from sid_core.pipeline.inputs import Inputs
from sid_core.report import table
from sid_core.report.overview import write_overview
from sid_core.storage.files import write_text


def write(folder, protocol_hash: str = PROTOCOL_HASH, place: str = ".", **changes):
    """Write an experiment's settings, scores and summary.csv, and an empty report."""
    config = make_config(**changes)
    folder.mkdir()
    write_experiment(folder, config)
    write_text(folder / "config.yaml", dump(config))
    for path in folder.glob("*/*/score.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol_hash": protocol_hash}))
    rows = table.make_rows(config, folder, table.read_scores(Inputs.finished(config, folder).scores))
    write_text(folder / place / "summary.csv", table.to_csv(rows))
    write_text(folder / place / "report.html", "")
    return rows


class Tables(HTMLParser):
    """Every table as a list of rows of texts, and the targets of all links."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.links, self.inside = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "a":
            self.links.append(dict(attrs)["href"])
        self.inside = tag in ("td", "th") or (self.inside and tag != "table")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Make finished, unfinished and broken experiments, of two protocols."""
    folder = tmp_path_factory.mktemp("project") / "results"
    folder.mkdir()
    write(folder / "one", seeds=[0, 1])
    write(folder / "two", guidance_scales=[2.0])
    write(folder / "other", "f" * 64, place="so-far")
    write_text(folder / "new" / "config.yaml", dump(make_config()))
    write(folder / "cut")
    text = (folder / "cut" / "summary.csv").read_text()
    (folder / "cut" / "summary.csv").write_text(text[: text.index("\nlsg-3,") + 40])
    write_text(folder / "empty" / "summary.csv", text.splitlines()[0])
    write(folder / "words")
    path = folder / "words" / "summary.csv"
    path.write_text(path.read_text().replace(",12.8,", ",<b>many</b>,"))
    (folder / "README.md").write_text("about\n")
    return folder


def test_read_summary_inverts_to_csv(tmp_path):
    rows, found = write(tmp_path / "x", seeds=[0, 1]), table.read_summary(tmp_path / "x" / "summary.csv")
    assert [row for row in found if row.kind != "published"] == [row for row in rows if row.kind != "published"]
    assert table.to_csv(found) == table.to_csv(rows)


def test_overview_tables_rows_of_one_protocol_hash_each(results):
    assert cli.main(["report", "--all", "--results", str(results)]) == 0
    page = Tables((results / "report.html").read_text(encoding="utf-8"))
    first, second, _ = page.tables
    assert {row[1] for row in first[1:] if len(row) > 1} == {"one", "two"}
    assert {row[1] for row in second[1:] if len(row) > 1} == {"other"}
    rows = {(row[1], row[0]): row for row in first if len(row) > 1}
    assert rows["one", "SiD-LSG κ = 1.5"][2] == "31.0 ± 1.4"  # seeds 0 and 1: 30 and 32
    assert rows["two", "SiD-LSG κ = 2"][-2:] == ["sid", "no"]
    assert not any("published" in cell for row in first for cell in row)
    generators = [row for row in first if len(row) > 1 and row[0].startswith("SiD")]
    assert [row[0] for row in generators] == ["SiD-LSG κ = 1.5", "SiD-LSG κ = 2", "SiD-LSG κ = 3"]  # by FID
    assert set(page.links[1:]) == {"one/report.html", "two/report.html", "other/so-far/report.html"}


def test_overview_lists_broken_and_unfinished_experiments(results):
    write_overview(results)
    html = (results / "report.html").read_text(encoding="utf-8")
    states = {row[0]: row[1] for row in Tables(html).tables[-1][1:]}
    assert states.keys() == {"one", "two", "other", "new", "cut", "empty", "words"}
    assert (states["one"], states["other"], states["new"]) == ("finished", "unfinished", "no report so far")
    assert "cut/summary.csv: expected a summary, got Row.__init__() missing" in states["cut"]
    assert "empty/summary.csv: expected a summary, got no row of a run" in states["empty"]
    assert "words/summary.csv: expected a summary, got could not convert" in states["words"]
    assert "<b>many" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("place", "message"), [("one", "one: is one experiment"), ("one/runs", "runs: has no experiment")]
)
def test_overview_of_another_folder_raises(results, place, message):
    with pytest.raises(UserError, match=message):
        write_overview(results / place)
    assert not (results / "one" / "runs" / "report.html").exists()


def test_report_with_settings_needs_results(results, capsys):
    assert cli.main(["report", "--settings", str(results / "one" / "config.yaml")]) == 1
    assert "expected --results too" in capsys.readouterr().err
