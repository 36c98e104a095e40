import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from made_up import CAPTION, PROTOCOL_HASH, make_config, write_experiment
from PIL import Image

from sid_core.errors import UserError
from sid_core.pipeline.inputs import Inputs
from sid_core.report import write_report
from sid_core.report.table import columns
from sid_core.storage.files import write_json, write_text


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


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    config = make_config(seeds=[0, 1])
    folder = write_experiment(tmp_path_factory.mktemp("results"), config)
    write_report(config, Inputs.finished(config, folder))
    return folder


def test_write_report_writes_every_file_and_a_self_contained_page(experiment):
    assert (experiment / "summary.csv").read_text().splitlines()[0].split(",") == columns()
    assert (experiment / "summary.md").read_text().startswith("# shapes\n")
    sizes = {}
    for path in (experiment / "figures").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            sizes[path.stem] = image.size
    assert sizes["fid_clip"] == (2200, 920)
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


def test_page_of_hostile_captions_escapes_them(experiment):
    html = (experiment / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "<script>alert" not in html
    assert "<b>" not in html
    assert CAPTION in page.text
    tips = {attrs["data-run"]: attrs["data-tip"] for _, attrs in page.tags if "data-tip" in attrs}
    assert tips["teacher-dpm-solver-karras-cfg3-8steps"].startswith("teacher, DPM-Solver++ Karras, 8 steps, CFG 3\nFID")
    assert tips["lsg-3"].startswith("SiD-LSG κ = 3\nFID")
    assert tips["lsg-3"].endswith("\nlsg-3")
    assert tips["real"].startswith("real images\nFID")
    assert "a guided step of the teacher takes two" in page.text
    assert "<b>not bold</b>" in page.text
    captions = [attrs["alt"] for tag, attrs in page.tags if tag == "img" and CAPTION in attrs["alt"]]
    assert len(captions) == 4 + 3  # teacher, two scales, real images; the first prompts once more without the latter
    for part in (
        PROTOCOL_HASH,
        "a" * 64,
        "2.14.1",
        "guidance_scales",
        "Few seeds",
        "Not comparable",
        "Skipped: SiD-LSG κ = 1.5, seed 1",
        "one attribute word in ten is random by design",
    ):
        assert part in page.text


def test_page_without_data_for_a_figure_names_the_reason(tmp_path):
    config = make_config()
    folder = write_experiment(tmp_path, config)
    for log in folder.glob("runs/*/training.jsonl"):
        points = [json.loads(line) for line in log.read_text().splitlines()]
        kept = [{key: value for key, value in point.items() if "proxy" not in key} for point in points]
        log.write_text("".join(json.dumps(point) + "\n" for point in kept))
    (folder / "figures").mkdir()
    (folder / "figures" / "convergence.png").write_bytes(b"of an earlier report")
    write_report(config, Inputs.finished(config, folder))
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    assert "Convergence: nothing was measured during training" in text
    assert not list((folder / "figures").glob("convergence.*"))


def test_page_of_one_method_has_no_section_and_figure_of_methods(experiment):
    page = Page((experiment / "report.html").read_text(encoding="utf-8"))
    assert not any({"methods", "#methods"} & {*attrs.values()} for _, attrs in page.tags)
    assert not list((experiment / "figures").glob("methods.*"))


def test_page_embeds_every_image_whole(experiment):
    page = Page((experiment / "report.html").read_text(encoding="utf-8"))
    uris = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(uris) == 4 * 24 + 3 * 3  # three prompts once more, without real images
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))) as image:
            image.load()


def test_write_report_of_an_unfinished_experiment_shows_finished_runs(make_experiment):
    """Check one scale scored, one ended by an alarm, a third in training, the last not started."""
    config = make_config(guidance_scales=[1.5, 2, 3, 4.5])
    folder = make_experiment(config)
    for name in ("lsg-2", "lsg-3", "lsg-4.5"):
        (folder / "state" / name).mkdir(parents=True)
        (folder / "runs" / name / "training.jsonl").rename(folder / "state" / name / "training.jsonl")
        shutil.rmtree(folder / "runs" / name)
    write_json(
        folder / "state" / "lsg-2" / "ended.json", {"how": "aborted", "iteration": 3, "why": "lsg-2: latent_std=9"}
    )
    with open(folder / "state" / "lsg-3" / "training.jsonl", "a") as log:
        log.write('{"nimg": 19')  # a line under way
    write_text(folder / "state" / "lsg-4.5" / "training.jsonl", "")
    shutil.rmtree(folder / "baselines" / "vae")
    before = {path for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="lsg-2"):
        write_report(config, Inputs.finished(config, folder))
    (folder / "so-far").mkdir()
    for name in ("pairs.csv", "seeds.csv"):
        shutil.copy(folder / name, folder / "so-far")
    write_report(config, Inputs.so_far(config, folder))
    text = Page((folder / "so-far" / "report.html").read_text(encoding="utf-8")).text
    missing = "SiD-LSG κ = 2; SiD-LSG κ = 3; SiD-LSG κ = 4.5; VAE reconstructions"
    assert f"Unfinished: not scored so far, and missing here: {missing}." in text
    assert (
        "Aborted: an alarm ended the training of SiD-LSG κ = 2, which therefore has no row: lsg-2: latent_std=9" in text
    )
    assert re.search(r"SiD-LSG κ = 1\.5 finished 1,600", text)
    assert re.search(r"SiD-LSG κ = 3 unfinished 1,600", text)
    assert not re.search(r"κ = 4\.5 (un)?finished", text)
    lines = (folder / "so-far" / "summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:4]] == [
        "lsg-1.5",
        "teacher-dpm-solver-karras-cfg1-8steps",
        "teacher-dpm-solver-karras-cfg3-8steps",
    ]
    after = {path for path in folder.rglob("*") if path.is_file()}
    assert all(path.is_relative_to(folder / "so-far") for path in after - before)


def test_write_report_without_a_score_names_status(make_experiment):
    config = make_config()
    folder = make_experiment(config)
    shutil.rmtree(folder / "runs")
    with pytest.raises(UserError, match="no run is scored yet; sid-core status --results"):
        write_report(config, Inputs.so_far(config, folder))


@pytest.mark.parametrize("name", ["pairs.csv", "seeds.csv"])
def test_write_report_without_differences_names_the_file(make_experiment, name):
    config = make_config()
    folder = make_experiment(config)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file. Fix: run sid-core pairs"):
        write_report(config, Inputs.finished(config, folder))
    assert not (folder / "report.html").exists()


def test_import_of_report_loads_no_torch():
    check = "import sys, sid_core.report; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_write_report_of_imports_alone_lists_them(tmp_path):
    config = make_config(
        guidance_scales=[], imports=[{"name": "official-2", "file": "a.pkl", "scale": 2, "train_kimg": 4812}]
    )
    folder = write_experiment(tmp_path, config)
    write_report(config, Inputs.finished(config, folder))
    assert "official-2" in (folder / "summary.md").read_text()
