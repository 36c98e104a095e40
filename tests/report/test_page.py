import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made_up import CAPTION, PROTOCOL_HASH, make_config, write_experiment
from PIL import Image

from sid_core.errors import UserError
from sid_core.files import write_text
from sid_core.report import compare
from sid_core.report.table import COLUMNS


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(html)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.open = self.open[: len(self.open) - 1 - self.open[::-1].index(tag)]

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


GRADIENTS = """network,precision,t_low,t_high,cosine,relative_error,norm_ratio
fake score,bfloat16,20,500,0.9992,0.046,1.03
fake score,bfloat16,500,980,0.9972,0.075,1.04
fake score,bfloat16,20,980,0.99939,0.0461,1.0312
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    config = make_config(seeds=[0, 1])
    folder = write_experiment(tmp_path_factory.mktemp("results"), config)
    write_text(folder / "precision" / "gradients.csv", GRADIENTS)
    compare(config, folder)
    return folder


def test_compare_writes_everything_and_the_page_stands_alone(experiment):
    assert (experiment / "summary.csv").read_text().splitlines()[0].split(",") == COLUMNS
    assert (experiment / "summary.md").read_text().startswith("# shapes\n")
    sizes = {}
    for path in (experiment / "figures").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            sizes[path.stem] = image.size
    assert sizes["fid_clip"] == (1320, 980)
    assert sizes["training"] == (2200, 1080)
    assert sizes["samples"][0] > 10 * 192
    assert {path.stem for path in (experiment / "figures").glob("*.svg")} == sizes.keys() - {"samples"}
    leftovers = list(experiment.rglob(".*"))
    assert leftovers == []

    html = (experiment / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    resources = [
        value
        for _, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "data", "action") and not value.startswith("#")
    ]
    assert resources
    assert all(value.startswith("data:") for value in resources)
    assert all(attrs.get("type") in (None, "application/json") for tag, attrs in page.tags if tag == "script")
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_page_escapes_what_it_shows(experiment):
    html = (experiment / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "<script>alert" not in html
    assert "<b>" not in html
    assert CAPTION in page.text
    assert "<b>not bold</b>" in page.text
    captions = [attrs["alt"] for tag, attrs in page.tags if tag == "img" and CAPTION in attrs["alt"]]
    assert len(captions) == 4  # teacher, two scales, real images
    for part in (
        PROTOCOL_HASH,
        "a" * 64,
        "2.14.1",
        "guidance_scales",
        "Few seeds",
        "Not comparable",
        "Skipped: lsg-1.5-seed1",
    ):
        assert part in page.text


def test_the_page_shows_what_16_bits_do_and_names_what_it_cannot_draw(experiment):
    text = Page((experiment / "report.html").read_text(encoding="utf-8")).text
    assert "fake score bfloat16 0.99939 4.6 % 1.0312" in text
    assert "Strategies of guidance: one strategy alone was trained (lsg)" in text
    assert "Not drawn: one strategy alone" in (experiment / "figures" / "strategies.svg").read_text()


def test_images_of_the_page_are_whole(experiment):
    page = Page((experiment / "report.html").read_text(encoding="utf-8"))
    uris = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(uris) == 4 * 24
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
            image.load()


@pytest.mark.parametrize("name", ["pairs.csv", "seeds.csv"])
def test_missing_differences_are_named(make_experiment, name):
    config = make_config()
    folder = make_experiment(config)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file; run sid-core pairs"):
        compare(config, folder)
    assert not (folder / "report.html").exists()


def test_report_does_not_import_torch():
    check = "import sys, sid_core.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_imports_alone_are_compared(tmp_path):
    config = make_config(
        guidance_scales=[], imports=[{"name": "official-2", "file": "a.pkl", "scale": 2, "train_kimg": 4812}]
    )
    folder = write_experiment(tmp_path, config)
    compare(config, folder)
    assert "official-2" in (folder / "summary.md").read_text()
