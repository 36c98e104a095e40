"""Test MLflow's pages at the printed addresses: scores, trade-off, curves, grids and the best model."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from PIL import Image

from sid_core import config as c
from sid_core import tracking
from sid_core.storage.files import write_manifest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
# of MLflow's own page: it asks who is logged in, where nobody can be, redraws while it resizes, and draws charts that have no size yet
THEIRS = ["404", "ResizeObserver", "ERR_ABORTED", r"Error: <\w+> attribute"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Track an experiment of two scales and a teacher row, with curves and grids."""
    folder = tmp_path_factory.mktemp("project") / "results" / "shapes"
    values = c.merge(c.read_yaml(ROOT / "config.yaml"), {"guidance_scales": [1.5, 2]})
    config = c.parse_config(values)
    for settings in c.distillations(config):
        run = folder / "runs" / settings.run.name
        (run / "grids").mkdir(parents=True)
        (run / "settings.yaml").write_text(c.dump(settings))
        for name in ("generate.yaml", "score.json"):
            (run / name).write_text("{}")
        (run / "generator").mkdir()
        write_manifest(run / "generator")
        points = [{"nimg": 320 * i, "elapsed_s": i, "score_gap": 1 / i, "latent_std": 1.0} for i in range(1, 6)]
        (run / "training.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        for nimg in (0, 1600):
            Image.new("RGB", (64, 64), "teal").save(run / "grids" / f"{nimg:08d}.png")
    baseline = folder / "baselines" / "teacher-dpm-solver-karras-cfg2-8steps"
    baseline.mkdir(parents=True)
    for name in ("generate.yaml", "score.json"):
        (baseline / name).write_text("{}")
    (folder / "teacher").mkdir()
    write_manifest(folder / "teacher")
    (folder / "config.yaml").write_text(c.dump(config))
    (folder / "summary.csv").write_text(
        "run,label,kind,teacher,strategy,kappa_fake_train,kappa_fake_eval,kappa_teacher,seed,nfe,train_kimg,samples,fid,clip,precision,recall,"
        "protocol,protocol_hash,generator_sha256\n"
        "lsg-1.5,SiD-LSG κ = 1.5,generator,embedded,lsg,1.5,1.5,1.5,0,1,19.2,80,2.5,0.60,0.9,0.6,shapes,abc,a\n"
        "lsg-2,SiD-LSG κ = 2,generator,embedded,lsg,2.0,2.0,2.0,0,1,19.2,80,3.5,0.65,0.9,0.5,shapes,abc,b\n"
        'teacher-dpm-solver-karras-cfg2-8steps,"teacher, 8 steps, CFG 2",teacher,embedded,,,,2.0,,16,,80,2.0,0.64,0.9,0.7,shapes,abc,\n'
        "published-x,published x,published,sd15,lsg,2.0,2.0,2.0,,1,4812,30000,9.56,0.313,,,coco2014-30k,,\n"
    )
    return folder


@pytest.fixture(scope="module")
def links(results):
    """Return what `track` printed, with a server that stores its files in the project's folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    base, project = f"http://127.0.0.1:{port}", results.parents[1]
    store = f"sqlite:///{project}/mlflow.db"
    tracking.init("shapes", store, results / "state" / "tracking.json")
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(project / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "--backend-store-uri", store],
            cwd=project,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    record = tracking.track(results)
    assert record["problem"] is None
    deadline = time.monotonic() + 240
    while True:
        try:
            urlopen(f"{base}/health").close()
            break
        except URLError:
            assert server.poll() is None, (project / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (project / "server.log").read_text()[-2000:]
            time.sleep(0.5)
    yield {name: link.replace("http://127.0.0.1:5000", base) for name, link in record["links"].items()} | {"base": base}
    os.killpg(server.pid, 15)
    server.wait()


@pytest.fixture
def visit(open_page):
    def visit(url: str):
        page = open_page("about:blank", allow=THEIRS, viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(90_000)  # its page is several MB of script
        page.goto(url)
        return page

    return visit


def test_runs_page_of_the_link_shows_scores_sorted_by_fid(visit, links):
    page = visit(links["runs by FID"])
    page.get_by_role("link", name="SiD-LSG κ = 2").wait_for()
    for column in ("fid", "clip", "recall"):
        page.get_by_text(column, exact=True).first.wait_for()
    runs = [name for name in page.get_by_role("link").all_inner_texts() if name.startswith(("SiD", "teacher,", "publ"))]
    assert runs == ["teacher, 8 steps, CFG 2", "SiD-LSG κ = 1.5", "SiD-LSG κ = 2"]  # not the published row


def test_charts_page_of_the_link_shows_trade_off_curves_and_grids(visit, links):
    page = visit(links["FID against CLIP score, curves, samples"])
    page.get_by_role("link", name="SiD-LSG κ = 2").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    for chart in ("clip vs. fid", "clip vs. recall"):
        assert page.get_by_text(chart).first.is_visible()
    page.mouse.move(800, 700)
    curve, score = page.get_by_text("training/score_gap").first, page.get_by_text("fid", exact=True).first
    grid = page.locator("img[src^='blob:'], img[src*='get-artifact'], img[src*='artifact']").first
    for element in (grid, score, curve):  # from top to bottom; charts out of sight are not in the page
        for _ in range(60):
            if element.count() and element.is_visible():
                break
            page.mouse.wheel(0, 200)
            page.wait_for_timeout(300)
        assert element.is_visible()
        if element is grid:  # before it is scrolled out of the page
            assert grid.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_mlflow_model_page_shows_the_best_generator(visit, links):
    page = visit(f"{links['base']}/#/models/shapes/versions/1")
    for text in ("lsg-1_5", "lowest fid", "@ best"):
        page.get_by_text(text).first.wait_for()
