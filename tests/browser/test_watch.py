"""Test the fixtures: a bad page fails, a good one passes."""

import pytest

pytestmark = pytest.mark.system

BAD = """<!doctype html><title>bad</title><img src="https://example.org/x.png"><p style="color: #ddd">pale</p>
<script>console.error("oh"); throw new Error("no")</script>"""
GOOD = '<!doctype html><html lang="en"><title>good</title><main><h1>good</h1><p>plain</p></main>'


@pytest.fixture
def write_page(tmp_path):
    def write_page(html: str) -> str:
        path = tmp_path / "page.html"
        path.write_text(html)
        return path.as_uri()

    return write_page


def test_open_page_of_a_good_page_passes(open_page, accessibility, write_page):
    page = open_page(write_page(GOOD))
    assert page.title() == "good"
    assert accessibility(page) == []


def test_open_page_of_a_bad_page_fails(open_page, complaints, accessibility, write_page):
    page = open_page(write_page(BAD))
    said = "\n".join(complaints)
    complaints.clear()
    for part in (
        "outside: https://example.org/x.png",
        "failed: https://example.org/x.png",
        "console: oh",
        "thrown: no",
    ):
        assert part in said
    assert {line.split()[0] for line in accessibility(page)} >= {"color-contrast", "image-alt", "html-has-lang"}


def test_open_page_with_an_allowed_complaint_passes(open_page, write_page):
    open_page(write_page(BAD), allow=["example.org", "^console: oh$", "^thrown: no", "Failed to load resource"])
