"""Test the page to try prompts: by mouse, by keyboard, on a phone, in dark mode."""

import threading
from pathlib import Path

import pytest
from generators import write_results

from sid_core import config as c
from sid_core.serve.gallery import Gallery
from sid_core.serve.server import make_server
from sid_core.storage.files import write_json

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address(tiny_teacher, tmp_path_factory):
    """Serve an experiment with two scales and two seeds each; yield its address."""
    folder = tmp_path_factory.mktemp("results") / "x"
    values = c.merge(c.read_yaml(ROOT / "config.yaml"), {"guidance_scales": [1.5, 2], "seeds": [0, 1]})
    config = c.parse_config(values)
    write_results(folder, config, c.runs(config), tiny_teacher)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "evaluation.txt").write_text("a cat\na dog\n")
    write_json(folder / "runs" / "lsg-2" / "score.json", {"fid": 3.25, "clip": 0.5})
    server = make_server(Gallery(folder), 0)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def drawn(page, count: int, seed: int) -> list[str]:
    """Wait for `count` images and return their descriptions."""
    page.get_by_role("status").get_by_text(f"Seed {seed}: {count} drawn.").wait_for(timeout=60_000)
    return [image.get_attribute("alt") for image in page.locator("#images img").all()]


def test_scales_are_drawn_side_by_side(open_page, address):
    page = open_page(address)
    page.get_by_label("lsg-2", exact=True).wait_for()
    assert page.get_by_label("Prompt").input_value() == "a cat"
    assert not page.get_by_label("lsg-2-seed1").is_checked()  # one seed of each to begin with
    page.get_by_label("Prompt").fill("a <b>dog</b>")
    page.get_by_role("button", name="Draw").click()
    assert drawn(page, 2, 0) == ["a <b>dog</b>, by lsg-1.5, seed 0", "a <b>dog</b>, by lsg-2, seed 0"]
    assert page.locator("#images img").evaluate_all("all => all.every(image => image.naturalWidth === 128)")
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert "FID 3.25, CLIP 0.500" in page.locator("figure").nth(1).inner_text()
    assert " ms" in page.locator("figure").nth(0).inner_text()


def test_page_at_load_draws_the_first_generator(open_page, address):
    page = open_page(address)
    assert drawn(page, 1, 0) == ["a cat, by lsg-1.5, seed 0"]


def test_page_with_words_outside_the_embedded_captions_names_them(open_page, address):
    page = open_page(address)
    drawn(page, 1, 0)
    page.get_by_label("Prompt").fill("a small red Dog, on a dog")
    page.get_by_role("note").get_by_text("This teacher was never trained on: dog. It knows: a, circle, on,").wait_for()
    page.get_by_label("Prompt").fill("a small red heart")
    page.wait_for_function("document.getElementById('unknown').textContent === ''")


def test_serve_page_is_usable_by_keyboard(open_page, address):
    page = open_page(address)
    page.get_by_label("lsg-2", exact=True).wait_for()
    page.keyboard.press("Control+A")  # the prompt has the focus
    page.keyboard.type("a dog")
    page.keyboard.press("Enter")
    drawn(page, 2, 0)
    for _ in range(3):  # seed, Draw, Next seed
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert drawn(page, 2, 1) == ["a dog, by lsg-1.5, seed 1", "a dog, by lsg-2, seed 1"]
    for _ in range(5):  # four generators, then the teacher
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.get_by_label("beside them").is_checked()
    page.get_by_label("steps").fill("2")
    page.keyboard.press("Enter")
    assert drawn(page, 3, 1)[2] == "a dog, by teacher, seed 1"
    assert "DPM-Solver++, 2 steps, CFG 2" in page.locator("figure").nth(2).inner_text()


def test_mistakes_are_said_on_the_page(open_page, address):
    page = open_page(address, allow=["400"])
    page.get_by_label("lsg-2", exact=True).wait_for()
    page.get_by_label("Prompt").fill("   ")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").get_by_text("prompt of 3 characters").wait_for()
    for name in ("lsg-1.5", "lsg-2"):
        page.get_by_label(name, exact=True).uncheck()
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").get_by_text("Choose a generator").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_dark_and_light_and_accessible(open_page, accessibility, address, scheme):
    page = open_page(address, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.get_by_label("lsg-2", exact=True).wait_for()
    page.get_by_role("button", name="Draw").click()
    drawn(page, 2, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(244, 245, 247)", "dark": "rgb(14, 17, 22)"}[scheme]
    assert accessibility(page) == []
