"""Test the doctor: each check in a good and a bad state, exit codes, and no secret in a line."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import Server, Status

from sid_core import cli, tracking
from sid_core import config as c
from sid_core.pipeline import doctor

ROOT = Path(__file__).parents[2]
SECRET = "hf_secretsecret"
USED = ("o/teacher", "o/prompts", "o/clip")


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Provide a machine without GPU, Slurm, token and results, in a folder with config.yaml; PATH is its folder bin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SID_CORE_SUBMITTER_GPU", "0")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", tmp_path / "none")
    shutil.copy(ROOT / "config.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Serve a hub with the repositories of `on_hub`."""
    for name in USED:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text("{}")
    with Server(repos={name: tmp_path / name for name in USED}) as server:
        server.use_as_hub(monkeypatch, tmp_path / "cache")
        yield server


def shipped(**over) -> c.Config:
    return c.parse_config(c.merge(c.read_yaml(ROOT / "config.yaml"), over))


def on_hub(site: Server) -> c.Config:
    """Return the settings of sd15 with repositories of this hub."""
    config = c.load_config(ROOT / "experiments" / "sd15.yaml")
    teacher = c.Teacher(source="hub", repo="o/teacher", revision=site.commit("o/teacher"))
    clip = config.evaluate.clip.model_copy(update={"source": "o/clip", "revision": site.commit("o/clip")})
    blocks = {
        "teacher": teacher,
        "teachers": {"same": teacher},
        "prompts": config.prompts.model_copy(update={"repo": "o/prompts"}),
        "evaluate": config.evaluate.model_copy(update={"clip": clip}),
    }
    return config.model_copy(update=blocks)


def lines(config: c.Config, problem: str | None = None) -> dict[str, list[str]]:
    """Return the lines of each part, by the part's name."""
    found = {}
    for finding in doctor.diagnose(config, lambda uri: (uri or "sqlite:///x", problem)):
        found.setdefault(finding.part, []).append(str(finding))
    return found


def line(part: str, config: c.Config | None = None, problem: str | None = None) -> str:
    [only] = lines(config or shipped(), problem)[part]
    return only


def install(folder: Path, name: str, script: str) -> None:
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / name).chmod(0o755)


def test_diagnose_the_embedded_experiment_finds_no_problem():
    found = [text for texts in lines(shipped()).values() for text in texts]
    assert all(text.startswith("ok ") and "\n" not in text for text in found)
    assert line("hub") == "ok       hub: not contacted; this configuration names no repository"


def test_check_python_of_another_version_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    assert line("Python").startswith("error    Python: expected >=3.11")
    assert "got 3.9.1. Fix: make setup" in line("Python")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.13.0+cu130", "ok       torch: 2.13.0+cu130, as locked"),
        ("2.14.0", "warning  torch: the lock has 2.13.0, got 2.14.0"),
        ("2.1.0", "error    torch: expected "),
    ],
)
def test_check_torch_compares_range_and_lock(monkeypatch, tmp_path, version, expected):
    (tmp_path / "lock").write_text("torch-fidelity==0.4.0 \\\ntorch==2.13.0 \\\n")
    monkeypatch.setattr(doctor, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(doctor.metadata, "version", lambda name: version)
    assert line("torch").startswith(expected)


def test_check_gpus_without_any_states_the_consequence(machine, monkeypatch):
    assert line("GPU").startswith("ok       GPU: none; this configuration requests none")
    one, eight = (shipped(resources={"distill": {"gpu": n}}) for n in (1, 8))
    assert line("GPU", one).startswith(
        "warning  GPU: none, but distill 10.4 kimg requests 1: networks would run on the CPU"
    )
    assert line("GPU", eight).startswith("error    GPU: resources.distill.gpu=8: expected at most 1")
    install(machine, "sbatch", "exit 0")
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    assert line("GPU", eight) == "ok       GPU: none here; jobs request up to 8 of Slurm"


@pytest.mark.parametrize("usable", [True, False])
def test_check_driver_compares_it_with_torch(monkeypatch, tmp_path, usable):
    import torch

    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\nGCC 12\n")
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "driver")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    expected = (
        "ok       GPU: 2 (H200), driver 570.86.15" if usable else "error    GPU: 2 with driver 570.86.15, which torch"
    )
    assert line("GPU").startswith(expected)


def test_check_memory_below_a_request_warns(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", tmp_path / "limit")
    (tmp_path / "limit").write_text("max\n")
    assert line("memory").startswith("ok       memory: ")
    (tmp_path / "limit").write_text("3000000000\n")
    assert line("memory").startswith(
        "warning  memory: 3 GB here, distill 10.4 kimg requests 5 GB: it may run out. Fix:"
    )


def test_check_disk_subtracts_the_files_that_are_there(machine, monkeypatch):
    free = SimpleNamespace(free=0.5e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: free)
    assert line("disk").startswith("error    disk: 0 GB free below results/shapes, 1.0 GB needed. Fix: make room")
    (machine / "results" / "shapes").mkdir(parents=True)
    with open(machine / "results" / "shapes" / "samples.tar", "wb") as file:
        file.truncate(900_000_000)  # sparse
    assert line("disk") == "ok       disk: 0 GB free below results/shapes, 0.1 GB needed"


def test_check_disk_of_a_read_only_folder_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    assert "expected a folder to write to. Fix: correct its permissions" in line("disk")


def test_check_hub_with_access_lists_each_repository_once(site):
    assert lines(on_hub(site))["hub"] == [
        f"ok       hub: teacher.repo=o/teacher: 1 files at {site.commit('o/teacher')}",
        f"ok       hub: prompts.repo=o/prompts: 1 files at {site.commit('o/prompts')}",
        f"ok       hub: evaluate.clip.source=o/clip: 1 files at {site.commit('o/clip')}",
    ]
    assert not [path for path in site.fetched() if "resolve" in path]


def test_check_hub_with_terms_to_accept_names_their_page(site):
    site.faults["/api/models/o/teacher/auth-check"] = [Status(403, {"X-Error-Code": "GatedRepo"})]
    teacher, _, clip = lines(on_hub(site))["hub"]
    assert teacher.startswith(
        "error    hub: teacher.repo=o/teacher: the hub answers 403, it is gated; accept its terms at "
    )
    assert f"{site.url}/o/teacher" in teacher
    assert clip.startswith("ok ")


def test_check_hub_offline_reads_the_cache_alone(site, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    config = on_hub(site)
    hf_hub_download("o/teacher", "model_index.json", revision=site.commit("o/teacher"))
    site.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    found = lines(config)
    assert found["hub"][0].endswith("in the cache, as HF_HUB_OFFLINE is set")
    assert found["hub"][2].startswith("error    hub: evaluate.clip.source=o/clip: it is not in the cache")
    assert found["token"] == ["ok       token: not checked, as HF_HUB_OFFLINE is set"]
    assert site.requests == []


def test_check_hub_that_does_not_answer_warns_if_cached(site):
    from huggingface_hub import hf_hub_download

    config = on_hub(site)
    hf_hub_download("o/teacher", "model_index.json", revision=site.commit("o/teacher"))
    for name in USED:
        site.faults[f"/api/models/{name}/revision/{site.commit(name)}"] = [Status(500)]
    teacher, _, clip = lines(config)["hub"]
    assert teacher.startswith("warning  hub: teacher.repo=o/teacher: 1 files at ")
    assert clip.startswith("error    hub: evaluate.clip.source=o/clip: the hub answers 500")


def test_check_token_asks_the_hub_for_its_user(site, monkeypatch):
    assert line("token", on_hub(site)) == "ok       token: none; gated and private repositories need HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert (
        line("token", on_hub(site))
        == "error    token: the hub answers 401. Fix: correct HF_TOKEN, or run hf auth login"
    )
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "ada"})
    assert line("token", on_hub(site)) == "ok       token: of the hub's user ada"


def test_check_slurm_without_its_plugin_warns(machine, monkeypatch):
    assert "Slurm" not in lines(shipped())
    install(machine, "sbatch", "exit 0")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert line("Slurm").startswith("warning  Slurm: its plugin is not installed. Fix: make slurm")


@pytest.mark.parametrize(
    ("sinfo", "partition", "expected"),
    [
        ("echo 'debug*'; echo long", "", "ok       Slurm: plugin installed, partition debug"),
        ("echo 'debug*'; echo long", "long", "ok       Slurm: plugin installed, partition long"),
        ("echo 'debug*'", "gpu", "error    Slurm: slurm_partition=gpu: expected one of ['debug']. Fix: correct "),
        ("echo debug", "", "warning  Slurm: no default partition. Fix: set slurm_partition in "),
        ("echo 'no controller' >&2; exit 1", "", "warning  Slurm: sinfo: no controller. Fix: run again"),
    ],
)
def test_check_slurm_compares_the_partition_of_the_profile(machine, monkeypatch, sinfo, partition, expected):
    install(machine, "sbatch", "exit 0")
    install(machine, "sinfo", sinfo)
    (machine / "profile.yaml").write_text(f"default-resources:\n  slurm_partition: {partition}\n")
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor, "ROOT", machine)
    monkeypatch.setattr(doctor, "PROFILE", machine / "profile.yaml")
    assert line("Slurm").startswith(expected)


def test_check_tracking_with_a_problem_warns():
    assert line("tracking") == "ok       tracking: MLflow at sqlite:///x"
    assert line("tracking", shipped(tracking={"enabled": False})) == "ok       tracking: off (tracking.enabled)"
    assert line("tracking", problem="no answer").startswith(
        "warning  tracking: MLflow at sqlite:///x cannot be used (no answer)"
    )


def test_check_of_a_database_needs_a_folder_to_write_to(machine):
    assert tracking.check(None) == (f"sqlite:///{machine / 'mlflow.db'}", None)
    uri, problem = tracking.check(f"sqlite:///{machine}/none/mlflow.db")
    assert (uri, problem) == (f"sqlite:///{machine}/none/mlflow.db", "no such folder, or no permission to write there")
    assert not list(machine.glob("mlflow*"))


class _Mlflow(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        allowed = self.headers.get("Authorization", "").startswith("Basic ")
        body = json.dumps({"experiments": []} if allowed else {"error_code": "UNAUTHENTICATED"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def test_main_doctor_with_a_tracking_server_hides_its_password(machine, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = HTTPServer(("127.0.0.1", 0), _Mlflow)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{SECRET}@127.0.0.1:{server.server_port}")
    assert cli.main(["doctor"]) == 0
    assert (
        f"ok       tracking: MLflow at http://***@127.0.0.1:{server.server_port}\n"
        in (alive := capsys.readouterr()).out
    )
    server.shutdown()
    server.server_close()
    assert cli.main(["doctor"]) == 0
    assert "warning  tracking: MLflow at http://***@127.0.0.1" in (dead := capsys.readouterr()).out
    assert SECRET not in alive.out + alive.err + dead.out + dead.err


def test_main_doctor_with_a_blocker_exits_with_1(machine, monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.err == "error: doctor: 1 blockers: disk. Fix: as printed with each\n"
    assert "error    disk: 0 GB free" in said.out
