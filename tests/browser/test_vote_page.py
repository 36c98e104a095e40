"""Vote by keyboard in a browser: undo, reload, save; the saved file is what `sid-core votes` reads."""

import json

import pytest
from made_up import make_config, write_experiment

from sid_core import cli
from sid_core.evaluation.votes import read_votes

pytestmark = pytest.mark.system


def test_vote_page_by_keyboard_saves_votes_with_the_names_of_the_runs(open_page, accessibility, tmp_path):
    folder = write_experiment(tmp_path, make_config())
    runs = [str(folder / "runs" / name) for name in ("lsg-1.5", "lsg-3")]
    assert cli.main(["vote", *runs, "--out", str(tmp_path / "vote.html"), "--count", "4"]) == 0
    page = open_page((tmp_path / "vote.html").as_uri(), viewport={"width": 1300, "height": 900}, accept_downloads=True)
    status, rater = page.get_by_role("status"), page.get_by_label("Your name")
    shown = "images => images.map((image) => image.src)"
    prompts, images = [], []
    for key in ("ArrowLeft", "ArrowRight", "Backspace", "ArrowDown", "ArrowRight"):
        assert page.eval_on_selector_all("#sides img", "images => images.every((image) => image.naturalWidth > 0)")
        prompts.append(page.locator("#prompt").inner_text())
        images.append(page.eval_on_selector_all("#sides img", shown))
        page.keyboard.press(key)
    assert status.inner_text() == "Pair 4 of 4"
    assert prompts[1] == prompts[3]  # undone, and voted on again
    box = page.locator("#pair").bounding_box()
    assert box["y"] + box["height"] <= 900
    assert accessibility(page) == []
    page.reload()
    assert status.inner_text() == "Pair 4 of 4"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # nothing is left to vote on
    assert status.inner_text().startswith("All 4 pairs are voted on.")
    page.keyboard.type("A. B.")  # the field has the focus
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "votes-A-B-.json"
    votes = read_votes([download.value.path()])
    assert [vote.choice for vote in votes] == ["left", "tie", "right", "left"]
    assert [vote.prompt for vote in votes[:3]] == [prompts[0], prompts[1], prompts[4]]
    assert rater.input_value() == "A. B."
    data = json.loads(page.locator("#data").text_content())
    places = dict(zip(data["images"], range(8), strict=True))
    assert [places[uri] for uri in images[0]] == data["pairs"][0]["images"]
    assert all({vote.left, vote.right} == {"lsg-1.5", "lsg-3"} for vote in votes)
