"""Test the page to try prompts: images equal `sid-core sample`, one at a time, on this machine only."""

import io
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from generators import write_results
from PIL import Image

from sid_core import cli
from sid_core import config as c
from sid_core.data.shapes import captions
from sid_core.models.teacher import load_solver
from sid_core.sampling.generation import solve
from sid_core.sampling.session import InferenceSession
from sid_core.serve.gallery import Gallery
from sid_core.serve.server import make_server
from sid_core.storage.files import write_json, write_manifest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tiny_teacher, tmp_path_factory):
    """Write results/x with two finished generators (the teacher's weights) and an unfinished one."""
    folder = tmp_path_factory.mktemp("results") / "x"
    values = c.merge(c.read_yaml(ROOT / "config.yaml"), {"experiment": "x", "guidance_scales": [1.5, 2, 3]})
    config = c.parse_config(values)
    write_results(folder, config, c.runs(config)[:2], tiny_teacher)
    (folder / "prompts").mkdir()
    (folder / "prompts" / "evaluation.txt").write_text("a cat\na dog\na cat\n")
    write_json(folder / "runs" / "lsg-2" / "score.json", {"fid": 3.25, "clip": 0.5})
    record = folder / "runs" / "lsg-2" / "generator" / "generator.json"
    write_json(record, json.loads(record.read_text()) | {"uses_real_images": True})
    write_manifest(record.parent)
    return folder


@pytest.fixture
def ask(results):
    """Return ask(path, headers, **query) -> (status, body, headers) of a new server."""
    server = make_server(Gallery(results), 0)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def ask(path: str, headers: dict | None = None, **query: object) -> tuple[int, bytes, dict]:
        url = f"http://127.0.0.1:{server.server_port}{path}?{urlencode(query)}"
        try:
            with urlopen(Request(url, headers=headers or {})) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    ask.server = server
    yield ask
    server.shutdown()
    server.server_close()


def test_draw_equals_sid_core_sample_bit_for_bit(results, ask, tmp_path):
    for _ in range(2):  # loaded anew, then cached
        status, image, headers = ask("/image", run="lsg-2", prompt="a red circle", seed=7)
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert float(headers["X-Seconds"]) > 0
    generator = str(results / "runs" / "lsg-2" / "generator")
    arguments = ["--generator", generator, "--prompt", "a red circle", "--seed", "7", "--out", str(tmp_path / "x.png")]
    assert cli.main(["sample", *arguments]) == 0
    assert (tmp_path / "x.png").read_bytes() == image
    assert ask("/image", run="lsg-2", prompt="a red circle", seed=8)[1] != image


def test_draw_teacher_uses_the_noise_of_the_generator(ask):
    def teacher(**more) -> bytes:
        status, image, _ = ask("/image", prompt="a red circle", **{"steps": 2, "guidance_scale": 2, "seed": 7} | more)
        assert status == 200
        return image

    first = teacher()
    assert teacher() == first
    assert len({first, teacher(steps=3), teacher(guidance_scale=1), teacher(seed=8)}) == 4


def test_draw_teacher_uses_the_solver_of_the_baselines(ask, tiny_teacher):
    image = ask("/image", prompt="a red circle", steps=3, guidance_scale=2, seed=7)[1]
    drawn = np.asarray(Image.open(io.BytesIO(image)))
    session = InferenceSession(tiny_teacher)
    with torch.inference_mode():
        cond, uncond = session._encoder.encode(["a red circle"]), session._encoder.empty()
        dpm, ddim = (
            session._decode(
                solve(load_solver(name, tiny_teacher, 3), session.teacher, session._noises(7, 1)[0], cond, uncond, 2.0)
            )
            for name in ("dpm-solver", "ddim")
        )
    enlarged = len(drawn) // len(dpm)  # pixels of small images are repeated
    drawn = drawn[::enlarged, ::enlarged]
    assert np.array_equal(drawn, dpm)
    assert not np.array_equal(drawn, ddim)


def test_describe_lists_finished_generators_with_their_scores(ask):
    about = json.loads(ask("/experiment.json")[1])
    assert about["experiment"] == "x"
    assert about["runs"] == [
        {"name": "lsg-1.5", "seed": 0, "fid": None, "clip": None, "note": ""},
        {"name": "lsg-2", "seed": 0, "fid": 3.25, "clip": 0.5, "note": "uses real images"},
    ]
    assert about["examples"] == ["a cat", "a dog"]


def test_describe_has_the_words_of_the_embedded_teacher_alone(ask):
    words = json.loads(ask("/experiment.json")[1])["vocabulary"]
    assert {word for caption in captions.all_captions() for word in caption.split()} == set(words)
    ask.server.gallery._embedded = False  # as of a teacher of a folder or a hub
    assert json.loads(ask("/experiment.json")[1])["vocabulary"] is None


def test_gallery_before_a_request_loads_no_network(ask):
    gallery = ask.server.gallery
    assert gallery._sessions == {}
    ask("/image", run="lsg-1.5", prompt="a", seed=0)
    (session,) = gallery._sessions.values()
    assert [folder.parent.name for folder in session._generators] == ["lsg-1.5"]
    assert "teacher" not in vars(session)


def test_session_over_its_cache_keeps_the_generator_used_last(results, monkeypatch):
    from sid_core.sampling import session

    monkeypatch.setattr(session, "CACHED_GENERATORS", 1)
    gallery = Gallery(results)
    for name in ("lsg-1.5", "lsg-2"):
        gallery.draw(name, "a", 0)
    assert [folder.parent.name for folder in gallery._session(results / "teacher")._generators] == ["lsg-2"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"run": "lsg-3"}, "run=lsg-3: expected one of lsg-1.5, lsg-2"),
        ({"run": "../../teacher"}, "run=../../teacher: expected one of"),
        ({"run": "lsg-2", "prompt": " "}, "prompt of 1 characters: expected 1 to 2000"),
        ({"run": "lsg-2", "seed": "x"}, "seed=x: expected a number"),
        ({"run": "lsg-2", "seed": -1}, "seed=-1: expected 0 to 4294967295"),
        ({"run": "lsg-2", "seed": 2**32}, "seed=4294967296: expected 0 to 4294967295"),
        ({}, "steps=: expected a number"),
        ({"steps": 0, "guidance_scale": 2}, "steps=0: expected 1 to 1000"),
        ({"steps": 2, "guidance_scale": "nan"}, "guidance_scale=nan: expected more than 0"),
    ],
)
def test_draw_of_a_wrong_request_names_it(ask, query, message):
    status, body, _ = ask("/image", **{"prompt": "a cat"} | query)
    assert status == 400
    assert message in body.decode()


def test_draw_with_a_damaged_generator_names_it(results, ask):
    path = results / "runs" / "lsg-1.5" / "generator" / "unet" / "config.json"
    whole = path.read_text()
    path.write_text(whole + " ")
    assert f"{path}: differs from its recorded sha256" in ask("/image", run="lsg-1.5", prompt="a")[1].decode()
    path.write_text(whole)


def test_server_of_other_paths_answers_not_found(ask):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        status, body, headers = ask(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert body
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path in ("/server.py", "/../server.py", "/config.yaml"):
        assert ask(path)[0] == 404


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": ""}])
def test_server_rejects_requests_of_other_sites(ask, headers):
    assert ask("/experiment.json", headers)[0] == 403
    assert ask.server.server_address[0] == "127.0.0.1"


def test_server_draws_one_image_at_a_time(ask, monkeypatch):
    busy, most = [], []

    def draw(*_) -> tuple[bytes, float, float]:
        busy.append(1)
        most.append(len(busy))
        time.sleep(0.05)
        busy.pop()
        return b"png", 0.0, 0.0

    monkeypatch.setattr(ask.server.gallery, "draw", draw)
    with ThreadPoolExecutor(4) as pool:
        assert [
            answer[0] for answer in pool.map(lambda i: ask("/image", run="lsg-2", prompt="a", seed=i), range(4))
        ] == [200] * 4
    assert most == [1] * 4


def test_server_with_a_failing_draw_reports_it_in_one_line(ask, monkeypatch, capfd):
    def draw(*_) -> None:
        raise RuntimeError("CUDA out of memory.\nTried to allocate more")

    monkeypatch.setattr(ask.server.gallery, "draw", draw)
    status, body, headers = ask("/image", run="lsg-2", prompt="a", seed=0)
    assert (status, body) == (500, b"RuntimeError: CUDA out of memory.")
    assert headers["Content-Type"].startswith("text/plain")
    assert capfd.readouterr().err == "/image?run=lsg-2&prompt=a&seed=0: RuntimeError: CUDA out of memory.\n"


def test_server_with_a_closed_page_prints_no_error(ask, monkeypatch, capfd):
    drawing, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def draw(*_) -> tuple[bytes, float, float]:
        drawing.set()
        assert closed.wait(10)
        return b"p" * 10_000_000, 0.0, 0.0

    def shutdown_request(request: socket.socket) -> None:
        type(ask.server).shutdown_request(ask.server, request)
        ended.set()

    monkeypatch.setattr(ask.server.gallery, "draw", draw)
    monkeypatch.setattr(ask.server, "shutdown_request", shutdown_request)
    with socket.create_connection(ask.server.server_address) as page:
        page.sendall(b"GET /image?run=lsg-2&prompt=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert drawing.wait(10)
        page.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
    closed.set()
    assert ended.wait(10)
    assert capfd.readouterr().err == ""


def serve(capsys, results: object, port: object) -> str:
    assert cli.main(["serve", "--results", str(results), "--port", str(port)]) == 1
    return capsys.readouterr().err


def test_serve_of_missing_folders_or_taken_ports_names_them(results, ask, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert serve(capsys, nowhere, 0).startswith(f"error: --results {nowhere}: has no config.yaml; expected")
    (tmp_path / "config.yaml").write_text((results / "config.yaml").read_text())
    assert serve(capsys, tmp_path, 0).startswith(
        f"error: {tmp_path}/runs: no finished generator yet; see `sid-core status"
    )
    taken = ask.server.server_port
    assert serve(capsys, results, taken) == f"error: --port {taken}: in use; choose another, or 0 for any free one\n"
    assert serve(capsys, results, 70000).startswith("error: --port 70000: expected 0 to 65535; ")
