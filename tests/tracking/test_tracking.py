"""MLflow mirrors files: nothing lost, nothing twice, and never in the way. Read back through its own client."""

import base64
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mirrored import make_settings
from PIL import Image
from serving import Server

from sid_core import cli, tracking
from sid_core import config as c
from sid_core.config import dump
from sid_core.errors import UserError
from sid_core.models.teacher import teacher_sha256
from sid_core.storage.files import read_json, write_json, write_manifest
from sid_core.storage.lease import lease
from sid_core.tracking import mirror as mirroring
from sid_core.tracking import record as syncing
from sid_core.tracking import registry, views
from sid_core.tracking import store as places
from sid_core.tracking.run import FILES, MirroredRun, generator_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Make a database in a folder of its own, as `tracking_init` leaves it."""
    path = tmp_path_factory.mktemp("mlflow") / "state" / "tracking.json"
    tracking.init("shapes", f"sqlite:///{path.parents[1] / 'mlflow.db'}", path)
    return json.loads(path.read_text()) | {"path": path}


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store["uri"])


def write_log(path: Path, first: int, last: int) -> None:
    """Points of iterations first .. last of batch 8; two metrics, one of them missing at the second."""
    with open(path, "a", encoding="utf-8") as handle:
        for i in range(first, last + 1):
            point = {"nimg": 8 * i, "iteration": i, "elapsed_s": 0.5 * i, "score_gap": None if i == 2 else 1 / i}
            handle.write(json.dumps(point) + "\n")


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


# --- where -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "environment", "configured", "expected"),
    [
        (None, None, None, "sqlite:///{here}/mlflow.db"),
        (None, None, "sqlite:///runs.db", "sqlite:///{here}/runs.db"),
        (None, None, "sqlite:////data/runs.db", "sqlite:////data/runs.db"),
        (None, None, "http://server:5000", "http://server:5000"),
        (None, "http://server:5000", "sqlite:///runs.db", "http://server:5000"),
        ("sqlite:///asked.db", "http://server:5000", "sqlite:///runs.db", "sqlite:///{here}/asked.db"),
    ],
)
def test_resolve_uri_of_each_source_is_absolute_and_prefers_an_option_then_the_environment(
    monkeypatch, tmp_path, asked, environment, configured, expected
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert tracking.resolve_uri(configured, asked) == expected.format(here=tmp_path)


def test_resolve_uri_with_a_password_hides_it_from_records_alone(tmp_path, monkeypatch, capsys):
    with Server() as server:
        whole, shown = (server.url.replace("//", f"//{user}@") for user in ("me:hidden", "***"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
        uri = tracking.resolve_uri(None)
        assert uri == shown
        (tmp_path / "state").mkdir()
        tracking.init("shapes", tracking.resolve_uri(uri), tmp_path / "state" / "tracking.json")
        assert server.requests[0].headers["Authorization"] == "Basic " + base64.b64encode(b"me:hidden").decode()
    said, record = capsys.readouterr().out, (tmp_path / "state" / "tracking.json").read_text()
    assert f"MLflow at {shown} cannot be used" in said
    assert "hidden" not in said + record
    assert json.loads(record)["uri"] == shown


def test_make_client_without_the_password_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"MLflow at http://\*\*\*@host: .* Fix: set MLFLOW_TRACKING_URI"):
        places.make_client("http://***@host")


def test_resolve_uri_of_a_configured_password_raises(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"http://\*\*\*@host: expected .* Fix: set MLFLOW_TRACKING_URI") as caught:
        tracking.resolve_uri("http://me:hidden@host")
    assert "hidden" not in str(caught.value)


def test_sync_with_a_uri_prefers_it_to_the_environment(results, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{results / 'other.db'}")
    assert sync(results, "http://127.0.0.1:9") == 1
    assert "MLflow at http://127.0.0.1:9 cannot be used" in capsys.readouterr().out


def test_links_of_a_server_with_a_password_name_the_host_alone():
    links = syncing._links({"uri": "http://***@server:8080/", "experiment_id": "7"})
    assert all(link.startswith("http://server:8080/#/") for link in links.values())


def test_init_of_a_database_lets_many_processes_write(store, client, capsys):
    assert store["problem"] is None
    database = store["uri"].removeprefix("sqlite:///")
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not list(Path.cwd().glob("mlruns"))
    assert client.get_experiment(store["experiment_id"]).tags["mlflow.experimentKind"] == "custom_model_development"
    again = store["path"].with_name("again.json")
    tracking.init("shapes", store["uri"], again)
    assert json.loads(again.read_text())["experiment_id"] == store["experiment_id"]
    assert capsys.readouterr().out == ""


def test_init_by_four_processes_at_a_fresh_database_tracks_all(tmp_path):
    code = (
        "import pathlib, sys; from sid_core import tracking\n"
        "print(tracking.init(f'e{sys.argv[2]}', f'sqlite:///{sys.argv[1]}/mlflow.db', pathlib.Path(sys.argv[1], sys.argv[2]))['problem'])"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    assert [job.communicate()[0].splitlines()[-1] for job in jobs] == ["None"] * 4


@pytest.mark.parametrize(
    ("strategy", "kappas", "scale"),
    [
        ("short", (0.5, 1, 1), "0.5"),
        ("long", (1, 1, 3), "3"),
        ("lsg", (2, 2, 2), "2"),
        ("custom", (1, 1.5, 3), "1/1.5/3"),
    ],
)
def test_generator_run_of_each_strategy_tags_its_scale(store, client, strategy, kappas, scale):
    settings = make_settings()
    over = dict(zip(("fake_train", "fake_eval", "teacher"), map(float, kappas), strict=True)) | {"strategy": strategy}
    settings = settings.model_copy(update={"run": settings.run.model_copy(update=over)})
    assert client.get_run(generator_run(store, settings).id).data.tags["scale"] == scale


def test_generator_run_with_real_images_is_tagged(store, client):
    for name, gan, tag in (("plain", None, "no"), ("gan", c.Adversarial(start_nimg=0), "yes")):
        settings = make_settings()
        run = settings.run.model_copy(update={"name": name, "adversarial": gan})
        run_id = generator_run(store, settings.model_copy(update={"run": run})).id
        assert client.get_run(run_id).data.tags["real_images"] == tag
        assert client.get_run(run_id).info.run_name.endswith("uses real images (gan)" if gan else "(plain)")


def test_attempt_after_a_failure_is_another_until_one_succeeds(tmp_path, capsys):
    first = tmp_path / "state" / "tracking.json"
    assert places.attempt(tmp_path) == 1
    tracking.init("shapes", "nonsense://x", first)
    assert places.attempt(tmp_path) == 2
    tracking.init("shapes", f"sqlite:///{tmp_path}/mlflow.db", first, 2)
    assert places.attempt(tmp_path) == 2
    write_json(tmp_path / "tracking.json", read_json(first) | {"problem": "stopped answering"})
    assert places.attempt(tmp_path) == 3
    tracking.init("shapes", None, first, 3)
    assert places.attempt(tmp_path) == 3


def test_init_with_a_leftover_file_store_ignores_it(tmp_path, monkeypatch):
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("name: Default\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.init("shapes", tracking.resolve_uri(None), tmp_path / "tracking.json")
    assert json.loads((tmp_path / "tracking.json").read_text())["problem"] is None


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////dev/null/mlflow.db", "nonsense://x"])
def test_init_of_an_unreachable_uri_warns_once(tmp_path, capsys, uri):
    started = time.monotonic()
    tracking.init("shapes", uri, tmp_path / "first.json")
    assert time.monotonic() - started < 60
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"MLflow at {uri} cannot be used (")
    assert "Traceback" not in said
    # nothing more is tried and nothing more is said
    (tmp_path / "summary.csv").write_text("run,kind\n")
    track(tmp_path, tmp_path / "first.json")
    with tracking.Mirror(tmp_path / "first.json", make_settings(), tmp_path) as mirror:
        mirror._sync()
    assert mirror.run is None
    assert capsys.readouterr().out == ""


def test_init_without_a_uri_prints_nothing(tmp_path, capsys):
    tracking.init("shapes", None, tmp_path / "first.json")
    (tmp_path / "summary.csv").write_text("run,kind\n")
    track(tmp_path, tmp_path / "first.json")
    assert json.loads((tmp_path / "tracking.json").read_text())["runs"] == {}
    assert capsys.readouterr().out == ""


def test_init_of_a_silent_server_gives_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        record = tracking.init("shapes", f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "first.json")
    assert "Timeout" in record["problem"]
    assert "sid-core track --sync --results" in capsys.readouterr().out


MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,relatime 0 0
/dev/sdb1 /home/fast xfs rw 0 0
10.0.0.1@tcp:/scratch /scratch lustre rw 0 0
x /with\\040blank fuse.sshfs rw 0 0
/dev/sdc1 /covered nfs rw 0 0
/dev/sdd1 /covered ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/home/me/mlflow.db", "nfs4 at /home"),
        ("/home/fast/mlflow.db", None),
        ("/homes/mlflow.db", None),
        ("/scratch/a/b/mlflow.db", "lustre at /scratch"),
        ("/with blank/mlflow.db", "fuse.sshfs at /with blank"),
        ("/covered/mlflow.db", None),
        ("/var/mlflow.db", None),
    ],
)
def test_shared_file_system_of_a_path_names_its_mount(path, where):
    assert places.shared_file_system(Path(path), MOUNTS) == where


def test_init_of_sqlite_on_a_shared_file_system_records_the_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(places, "shared_file_system", lambda *_: "nfs4 at /home")
    record = tracking.init("shapes", f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "first.json")
    assert record["problem"].startswith("nfs4 at /home is shared between machines")
    assert "MLFLOW_TRACKING_URI to a server" in capsys.readouterr().out
    assert not (tmp_path / "mlflow.db").exists()


# --- one run ---------------------------------------------------------------------------------------------------------------


def test_points_of_a_growing_log_are_logged_once(store, client, tmp_path):
    log = tmp_path / "training.jsonl"
    write_log(log, 1, 120)
    for _ in range(2):
        MirroredRun(store, "points", {"lr": 1}, {}).points(log)
    write_log(log, 121, 130)
    with open(log, "a") as handle:
        handle.write('{"nimg": 1048, "itera')  # the writer is in the middle of a line
    run = MirroredRun(store, "points", {"lr": 1}, {})
    run.points(log)
    assert history(client, run.id, "training/iteration") == [(8 * i, i) for i in range(1, 131)]
    assert history(client, run.id, "training/score_gap") == [(8 * i, 1 / i) for i in range(1, 131) if i != 2]


def test_grids_of_a_folder_are_logged_once_as_images_over_steps(store, client, tmp_path):
    for nimg in (0, 32):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{nimg:08d}.png")
    for _ in range(2):
        run = MirroredRun(store, "grids", {}, {})
        run.grids(tmp_path)
    names = [Path(artifact.path).name for artifact in client.list_artifacts(run.id, "images")]
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) == 2
    assert {int(name.replace("%", "+").split("+step+")[1].split("+")[0]) for name in pictures} == {0, 32}


def test_files_after_a_change_are_uploaded_again(store, client, tmp_path):
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "weights").write_text("1")
    run = MirroredRun(store, "files", {}, {})
    run.files(tmp_path / "generator")
    before = client.get_run(run.id).data.tags[FILES]
    (tmp_path / "generator" / "weights").write_text("2")
    run.files(tmp_path / "generator")
    assert client.get_run(run.id).data.tags[FILES] != before
    assert [artifact.path for artifact in client.list_artifacts(run.id, "generator")] == ["generator/weights"]


def test_sync_of_other_settings_or_protocols_makes_other_runs(store):
    def run(lr: float, protocol: str | None) -> str:
        mirrored = MirroredRun(store, "identity", {"lr": lr}, {}, protocol)
        mirrored.params({"protocol_hash": protocol})
        return mirrored.id

    while_training = run(1, None)
    assert run(1, "p") == while_training
    assert run(1, "q") != while_training
    assert run(1, "p") == while_training
    assert run(2, "p") != while_training


def test_mirrored_run_of_a_users_name_is_found_and_keeps_it(store, client):
    def run(label: str | None) -> str:
        return MirroredRun(store, "named", {}, {}, None, label).id

    run_id = run(None)
    assert client.get_run(run_id).info.run_name == "named"
    assert run("SiD-LSG κ = 2") == run_id
    assert client.get_run(run_id).info.run_name == "SiD-LSG κ = 2"
    client.update_run(run_id, name="my best")
    assert run("SiD-LSG κ = 2") == run_id
    assert client.get_run(run_id).info.run_name == "my best"


def test_save_of_a_changed_view_leaves_it(store, client, results):
    track(results, store["path"])
    assert "metrics.`clip`" in client.get_experiment(store["experiment_id"]).tags[views.TAG]
    client.set_experiment_tag(store["experiment_id"], views.TAG, "changed")
    track(results, store["path"])
    assert client.get_experiment(store["experiment_id"]).tags[views.TAG] == "changed"


def test_generator_run_of_other_code_is_another_run(store, tmp_path):
    generator, identity = tmp_path / "generator.json", tmp_path / "identity.json"
    made_from = {"teacher": "t", "prompts": "p", "code": "old"}

    def run() -> str:
        return generator_run(store, make_settings(lr=3e-5), None, generator, identity).id

    write_json(identity, made_from | {"distill.lr": 3e-5})
    while_training = run()
    write_json(generator, {"trained_from": made_from})
    assert run() == while_training
    for key in made_from:
        write_json(generator, {"trained_from": made_from | {key: "new"}})
        assert run() != while_training


def test_mirror_beside_an_earlier_trainings_log_waits(store, state):
    write_json(state / "identity.json", {"teacher": "t", "prompts": "p", "code": "old"})
    write_log(state / "training.jsonl", 1, 4)
    mirror = tracking.Mirror(store["path"], make_settings(lr=4e-5), state)
    mirror._sync()
    assert mirror.run is None
    time.sleep(0.01)
    write_json(state / "identity.json", {"teacher": "t", "prompts": "p", "code": "new"})
    mirror._sync()
    assert mirror.run.run.data.params.get("trained_from.code", "new") == "new"


def test_points_by_four_processes_at_once_are_complete(store, client, tmp_path):
    write_log(tmp_path / "training.jsonl", 1, 300)
    code = (
        "import json, pathlib, sys; from sid_core.tracking.run import MirroredRun\n"
        "store, log = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "MirroredRun(store, f'job-{sys.argv[3]}', {}, {}).points(log)"
    )
    described = json.dumps({key: value for key, value in store.items() if key != "path"})
    jobs = [  # importing mlflow is most of it
        subprocess.Popen([sys.executable, "-c", code, described, str(tmp_path / "training.jsonl"), str(i)])
        for i in range(4)
    ]
    assert [job.wait() for job in jobs] == [0] * 4
    for i in range(4):
        run = MirroredRun(store, f"job-{i}", {}, {})
        assert len(history(client, run.id, "training/iteration")) == 300


# --- while it trains ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state" / "grids").mkdir(parents=True)
    return tmp_path / "state"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("error", "status"), [(UserError("diverged"), "FAILED"), (RuntimeError("SIGTERM"), "KILLED")])
def test_mirror_follows_a_training_and_its_continuation(store, client, state, monkeypatch, error, status):
    monkeypatch.setattr(mirroring, "PERIOD_S", 0.05)
    monkeypatch.setattr(mirroring, "GOODBYE_S", 60)
    settings = make_settings(lr={"FAILED": 1e-6, "KILLED": 2e-6}[status])  # a run of its own

    def train(first: int, last: int, error: Exception | None) -> str:
        mirror = tracking.Mirror(store["path"], settings, state)
        with suppress(type(error)), mirror:
            write_log(state / "training.jsonl", first, last)
            wait_for(lambda: mirror.run and client.get_run(mirror.run.id).data.metrics.get("training/nimg") == 8 * last)
            assert client.get_run(mirror.run.id).info.status == "RUNNING"
            if error:
                raise error
        return mirror.run.id

    run_id = train(1, 4, error)
    assert client.get_run(run_id).info.status == status
    (state / "training.jsonl").unlink()
    write_log(state / "training.jsonl", 1, 2)  # the state was saved before the last points: they are made again
    assert train(3, 5, None) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(client, run_id, "training/nimg") == [(8 * i, 8 * i) for i in range(1, 6)]


def test_mirror_never_stops_or_delays_training(store, state, monkeypatch):
    monkeypatch.setattr(mirroring, "PERIOD_S", 0.01)
    monkeypatch.setattr(mirroring, "GOODBYE_S", 0.1)
    waiting, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(mirroring, "generator_run", lambda *_: (waiting.set(), answer.wait()))
    with tracking.Mirror(store["path"], make_settings(), state) as mirror:
        assert waiting.wait(60)
    assert mirror._thread.is_alive()  # the training has ended, and did not wait for the answer
    answer.set()

    monkeypatch.setattr(mirroring, "generator_run", lambda *_: 1 / 0)
    with tracking.Mirror(store["path"], make_settings(), state):
        time.sleep(0.1)
    with tracking.Mirror(state / "not-there.json", make_settings(), state):
        time.sleep(0.1)


@pytest.mark.parametrize(("uri", "mirrored"), [("sqlite:////data/mlflow.db", False), ("http://server:5000", True)])
def test_mirror_on_another_machine_opens_no_database(store, state, monkeypatch, uri, mirrored):
    asked = []
    monkeypatch.setattr(mirroring, "generator_run", lambda *_: asked.append(1) or 1 / 0)
    write_json(state / "tracking.json", read_json(store["path"]) | {"uri": uri, "host": "submit"})
    with suppress(ZeroDivisionError):
        tracking.Mirror(state / "tracking.json", make_settings(), state)._sync()
    assert bool(asked) == mirrored


# --- when all is done --------------------------------------------------------------------------------------------------------


def track(results: Path, tracked: Path) -> None:
    """Run the pipeline's last step, where `tracked` is what its first wrote."""
    (results / "state").mkdir(exist_ok=True)
    shutil.copy(tracked, results / "state" / "tracking.json")
    if not (results / "config.yaml").is_file():
        write_config(results)
    tracking.track(results)


def write_config(results: Path, **over) -> None:
    values = c.merge(c.read_yaml(ROOT / "config.yaml"), {"guidance_scales": [1.5]})
    (results / "config.yaml").write_text(dump(c.parse_config(c.merge(values, over))))


@pytest.fixture
def results(tmp_path):
    """Write what `track` reads of a finished experiment: one generator, one teacher baseline, one published row."""
    write_config(tmp_path)
    (tmp_path / "teacher").mkdir()
    write_manifest(tmp_path / "teacher")
    run, baseline = tmp_path / "runs" / "lsg-1.5", tmp_path / "baselines" / "teacher-dpm-solver-karras-cfg2-8steps"
    for folder in (run / "grids", run / "generator", baseline):
        folder.mkdir(parents=True)
    (run / "settings.yaml").write_text(dump(make_settings(lr=7e-6)))
    for path in (run / "generate.yaml", run / "score.json", run / "generator" / "weights", baseline / "generate.yaml"):
        path.write_text("{}")
    (baseline / "score.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(run / "grids" / "00000008.png")
    write_manifest(run / "generator")
    write_log(run / "training.jsonl", 1, 4)
    (tmp_path / "summary.csv").write_text(
        "run,label,kind,teacher,strategy,kappa_fake_train,kappa_fake_eval,kappa_teacher,alpha,seed,solver,steps,nfe,train_kimg,samples,"
        "fid,fid_se,fid_inf,clip,clip_se,kid,precision,recall,teacher_eps_error,images_per_s,protocol,protocol_hash,not_comparable,generator_sha256\n"
        "lsg-1.5,SiD-LSG κ = 1.5,generator,embedded,lsg,1.5,1.5,1.5,1.0,0,,1,1,0.032,80,20.5,1.5,19,0.5,0.01,0.1,0.9,0.8,0.05,99,shapes,abc,,def\n"
        'teacher-dpm-solver-karras-cfg2-8steps,"teacher, 8 steps, CFG 2",teacher,embedded,,,,2.0,,,dpm-solver,8,16,,80,10.5,1.5,9,0.6,0.01,0.1,0.9,0.8,0.05,9,shapes,abc,,\n'
        "published-x,published x,published,sd15,lsg,2.0,2.0,2.0,,,,1,1,4812.0,30000,9.56,,,0.313,,,,,,,coco2014-30k,,protocol shapes,\n"
    )
    return tmp_path


def test_track_twice_uploads_every_row_once(store, client, results, capsys):
    track(results, store["path"])
    record = json.loads((results / "tracking.json").read_text())
    assert set(record["runs"]) == {"lsg-1.5", "teacher-dpm-solver-karras-cfg2-8steps", "published-x"}
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:5000/#/experiments/{store['experiment_id']}/runs?viewStateShareKey=" in said
    assert all(link in said for link in record["links"].values())
    assert "make ui" in said

    track(results, store["path"])
    assert json.loads((results / "tracking.json").read_text())["runs"] == record["runs"]

    run = client.get_run(record["runs"]["lsg-1.5"])
    assert (run.info.run_name, run.info.status) == ("SiD-LSG κ = 1.5", "FINISHED")
    tags = {
        "run": "lsg-1.5",
        "sweep": "shapes",
        "kind": "generator",
        "strategy": "lsg",
        "scale": "1.5",
        "generator_sha256": "def",
    }
    assert tags.items() <= run.data.tags.items()
    params = {"kappa_fake_train": "1.5", "kappa_teacher": "1.5", "alpha": "1.0", "seed": "0", "protocol_hash": "abc"}
    assert params.items() <= run.data.params.items()
    assert {
        "teacher": "embedded",
        "distill.lr": "7e-06",
        "distill.alarms.patience": "2",
    }.items() <= run.data.params.items()
    assert run.data.metrics["fid"] == 20.5
    assert len(client.get_metric_history(run.info.run_id, "fid")) == 1
    assert history(client, run.info.run_id, "training/nimg") == [(8 * i, 8 * i) for i in range(1, 5)]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {
        "generator",
        "settings.yaml",
        "score.json",
        "images",
    }

    teacher = client.get_run(record["runs"]["teacher-dpm-solver-karras-cfg2-8steps"])
    assert teacher.info.run_name == "teacher, 8 steps, CFG 2"
    teacher = teacher.data.params
    assert (teacher["solver"], teacher["steps"], teacher["nfe"]) == ("dpm-solver", "8", "16")
    published = client.get_run(record["runs"]["published-x"])
    assert published.data.tags["kind"] == "published"
    assert (published.data.metrics["fid"], published.data.params["train_kimg"]) == (9.56, "4812.0")
    assert "fid_se" not in published.data.metrics


def test_track_of_large_weights_records_their_path(store, client, results, monkeypatch):
    monkeypatch.setattr(syncing, "LARGEST_UPLOAD", 1)
    monkeypatch.setattr(registry, "LARGEST_UPLOAD", 1)
    (results / "runs" / "lsg-1.5" / "settings.yaml").write_text(dump(make_settings(lr=8e-6)))
    track(results, store["path"])
    run_id = json.loads((results / "tracking.json").read_text())["runs"]["lsg-1.5"]
    assert "generator" not in {a.path for a in client.list_artifacts(run_id)}
    assert client.get_run(run_id).data.tags["generator"] == str(results / "runs" / "lsg-1.5" / "generator")


def test_sync_to_a_server_that_stops_prints_one_line(store, results, monkeypatch, capsys):
    monkeypatch.setattr(syncing, "_sync_row", lambda *_: 1 / 0)
    track(results, store["path"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "stopped answering (ZeroDivisionError: division by zero)" in said
    record = json.loads((results / "tracking.json").read_text())
    assert (record["runs"], record["links"]) == ({}, {})


def test_links_of_a_server_open_its_saved_view():
    links = syncing._links({"uri": "http://server:8080/", "experiment_id": "7"})
    page = "http://server:8080/#/experiments/7/runs?viewStateShareKey=sid-core&compareRunsMode="
    assert list(links.values()) == [f"{page}TABLE", f"{page}CHART"]


def test_make_client_disables_usage_statistics(store):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


# --- later -------------------------------------------------------------------------------------------------------------------


def sync(results: Path, uri: str) -> int:
    return cli.main(["track", "--sync", "--results", str(results), "--uri", uri])


def test_sync_after_an_outage_adds_missing_points_once(store, client, results, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (results / "runs" / "lsg-1.5" / "settings.yaml").write_text(dump(make_settings(lr=9e-6)))
    assert sync(results, "http://127.0.0.1:9") == 1
    assert capsys.readouterr().err.startswith("error: nothing more was mirrored: ")
    assert tracking.track(results)["runs"] == {}
    seen = []
    for _ in range(2):
        assert sync(results, store["uri"]) == 0
        seen.append(read_json(results / "tracking.json"))
    assert seen[0] == seen[1]
    assert set(seen[0]["runs"]) == {"lsg-1.5", "teacher-dpm-solver-karras-cfg2-8steps", "published-x"}
    run_id = seen[0]["runs"]["lsg-1.5"]
    assert history(client, run_id, "training/nimg") == [(8 * i, 8 * i) for i in range(1, 5)]
    assert len(client.get_metric_history(run_id, "clip")) == 1


def test_sync_of_an_unfinished_experiment_mirrors_its_progress(store, client, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_config(tmp_path)
    for name in ("begun", "waiting"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        settings = make_settings(lr=1e-5)
        settings = settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})
        (tmp_path / "runs" / name / "settings.yaml").write_text(dump(settings))
    state = tmp_path / "state" / "begun"
    state.mkdir(parents=True)
    write_log(state / "training.jsonl", 1, 3)

    def status() -> str:
        assert sync(tmp_path, store["uri"]) == 0
        runs = read_json(tmp_path / "tracking.json")["runs"]
        assert set(runs) == {"begun"}
        assert history(client, runs["begun"], "training/nimg") == [(8 * i, 8 * i) for i in range(1, 4)]
        return client.get_run(runs["begun"]).info.status

    with lease(state):
        assert status() == "RUNNING"
    assert status() == "KILLED"
    write_json(tmp_path / "runs" / "begun" / "generator" / "generator.json", {})
    assert status() == "FINISHED"


def test_sync_of_a_moved_folder_names_a_working_remedy(results, tmp_path_factory, monkeypatch, capsys):
    """The database holds absolute places, where MLflow would find no file and not say so."""
    base = tmp_path_factory.mktemp("projects")
    old, new = base / "old", base / "new"
    shutil.copytree(results, old / "results")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert sync(old / "results", f"sqlite:///{old / 'mlflow.db'}") == 0
    shutil.move(old, new)
    capsys.readouterr()

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow keeps the last one there, in this process
    assert sync(new / "results", f"sqlite:///{new / 'mlflow.db'}") == 1
    said = "".join(capsys.readouterr())
    assert (
        f"its files are recorded in {old}: the folder was moved or copied. Fix: delete mlflow.db* and mlartifacts"
        in said
    )
    assert f"sid-core track --sync --results {new / 'results'}" in said

    for path in new.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(new / "mlartifacts")
    # processes of their own: MLflow keeps a database open, also one that is deleted
    command = ["track", "--sync", "--results", str(new / "results"), "--uri", f"sqlite:///{new / 'mlflow.db'}"]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    subprocess.run([sys.executable, "-m", "sid_core", *command], check=True, env=environment)
    record = json.loads((new / "results" / "tracking.json").read_text())
    code = (
        "import sys; from sid_core.tracking.store import make_client\n"
        "print(make_client(sys.argv[1]).download_artifacts(sys.argv[2], 'score.json'))"
    )
    download = [sys.executable, "-c", code, record["uri"], record["runs"]["lsg-1.5"]]
    done = subprocess.run(download, check=True, capture_output=True, text=True, env=environment)
    assert Path(done.stdout.strip()).read_text() == (new / "results" / "runs" / "lsg-1.5" / "score.json").read_text()


def test_track_without_an_experiment_names_the_folder(tmp_path, capsys):
    assert cli.main(["track", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: --results {tmp_path}: has no config.yaml; ")


# --- the best generator --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny_teacher, tmp_path):
    """Results of two generators that draw, each the best by one rule; not yet in a table of their own."""
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    for name in ("lsg-1.5", "lsg-2"):
        run = tmp_path / "runs" / name
        shutil.copytree(tiny_teacher / "unet", run / "generator" / "unet")
        record = {"t_init": 625, "num_steps": 1, "teacher_sha256": teacher_sha256(tiny_teacher)}
        write_json(run / "generator" / "generator.json", record)
        write_manifest(run / "generator")
    return tmp_path


ROWS = [
    {"run": "lsg-1.5", "kind": "generator", "fid": "2.5", "clip": "0.5", "generator_sha256": "a"},
    {"run": "lsg-2", "kind": "generator", "fid": "3.5", "clip": "0.6", "generator_sha256": "b"},
    {"run": "teacher", "kind": "teacher", "fid": "0.5", "clip": "0.9", "generator_sha256": ""},
    {"run": "unscored", "kind": "generator", "fid": "", "clip": "", "generator_sha256": "c"},
]


@pytest.fixture
def register(store, client, trained):
    """register(rule) -> what `register_best` says, with a run for each row."""
    write_config(trained)
    name = f"x.{trained.name}"
    ids = {row["run"]: MirroredRun(store, row["run"], {"at": str(trained)}, {}).id for row in ROWS}
    return lambda rule: registry.register_best(store | {"experiment": name}, rule, ROWS, ids, trained)


def versions(client, said: dict) -> list[dict]:
    name = said["uri"].removeprefix("models:/").removesuffix("@best")
    return [
        version.tags for version in client.search_model_versions(f"name = '{name}'", order_by=["version_number ASC"])
    ]


def test_register_best_follows_the_rule_and_registers_once(client, register):
    assert register(None) is None
    for _ in range(2):
        said = register("fid")
        assert said["run"] == "lsg-1.5"
        assert "." not in said["uri"]
        assert len(versions(client, said)) == 1
    assert register("clip")["run"] == "lsg-2"
    assert register("fid")["run"] == "lsg-1.5"
    first, second = versions(client, said)
    assert (first["run"], first["rule"], first["generator_sha256"]) == ("lsg-1.5", "lowest fid", "a")
    assert (second["run"], second["rule"]) == ("lsg-2", "highest clip")
    name = said["uri"].removeprefix("models:/").removesuffix("@best")
    assert int(client.get_model_version_by_alias(name, "best").version) == 1


@pytest.mark.parametrize("copied", [True, False])
def test_registered_model_equals_sid_core_sample(store, register, trained, monkeypatch, copied):
    import mlflow
    import pandas as pd

    monkeypatch.setattr(registry, "LARGEST_UPLOAD", 10**9 if copied else 0)
    uri = register("fid")["uri"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store["uri"])
    mlflow.set_tracking_uri(store["uri"])
    where = Path(mlflow.artifacts.download_artifacts(uri))
    assert not [path for path in where.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert bool(list(where.rglob("*.safetensors"))) == copied
    model = mlflow.pyfunc.load_model(uri)
    images = model.predict(pd.DataFrame({"prompt": ["a red circle", "a red circle"], "seed": [7, 8]}))
    assert (images.shape, images.dtype) == ((2, 16, 16, 3), "uint8")
    assert (images[0] != images[1]).any()
    out = trained / "x.png"
    options = {"generator": trained / "runs" / "lsg-1.5" / "generator", "prompt": "a red circle", "seed": 7, "out": out}
    assert cli.main(["sample", *(str(text) for key, value in options.items() for text in (f"--{key}", value))]) == 0
    with Image.open(out) as image:
        assert (np.asarray(image)[::8, ::8] == images[0]).all()
    assert (model.predict(pd.DataFrame({"prompt": ["a red circle"]}))[0] != images[0]).any()  # seed 0
    if not copied:
        (trained / "runs" / "lsg-1.5" / "generator" / "manifest.json").write_text("{}")
        with pytest.raises(UserError, match="changed since this model was registered"):
            mlflow.pyfunc.load_model(uri)
