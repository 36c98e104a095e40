"""Filter and sort the page over all experiments in a browser."""

import pytest
from made_up import make_config, write_experiment

from sid_core.config import dump
from sid_core.pipeline.inputs import Inputs
from sid_core.report import table
from sid_core.report.overview import write_overview
from sid_core.storage.files import write_text

pytestmark = pytest.mark.system


@pytest.fixture
def page(open_page, tmp_path):
    """Open the page over an experiment of two scales, one of two objectives, and one without results."""
    extra = [{"strategy": "long", "scale": 2, "objective": "dmd"}]
    for name, changes in (("small", {}), ("methods", {"extra_runs": extra}), ("new", None)):
        config = make_config(**changes or {})
        write_text(tmp_path / name / "config.yaml", dump(config))
        if changes is not None:
            write_experiment(tmp_path / name, config)
            scores = table.read_scores(Inputs.finished(config, tmp_path / name).scores)
            write_text(tmp_path / name / "summary.csv", table.to_csv(table.make_rows(config, tmp_path / name, scores)))
    write_overview(tmp_path)
    return open_page((tmp_path / "report.html").as_uri(), viewport={"width": 1300, "height": 900})


def test_overview_filters_rows_by_words_objective_and_real_images(page, accessibility):
    def shown() -> list[str]:
        return page.eval_on_selector_all(
            "table.results tbody tr:not(.group):not([hidden])", "rows => rows.map((row) => row.title)"
        )

    assert accessibility(page) == []
    assert "methods/dmd-long-2" not in shown()  # neither the best FID nor the best CLIP score
    page.get_by_label("All rows").check()
    assert page.get_by_role("status").inner_text() == "13 of 13 rows"
    page.get_by_label("Search").fill("SMALL κ")
    assert shown() == ["small/lsg-1.5", "small/lsg-3"]
    page.get_by_role("button", name="CLIP ↑").click()
    page.get_by_role("button", name="CLIP ↑").click()
    assert shown() == ["small/lsg-3", "small/lsg-1.5"]
    page.get_by_label("Search").fill("")
    page.get_by_label("Objective").select_option("dmd")
    assert len(shown()) == 1
    assert page.locator("table.results").get_by_text("Teacher", exact=True).is_hidden()
    page.get_by_label("Uses real images").select_option("yes")
    assert shown() == []
    assert page.get_by_role("heading", name="Protocol shapes").is_hidden()
    assert page.get_by_role("row", name="new no report so far").is_visible()
