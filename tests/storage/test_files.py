"""Test that writes are atomic, that readers detect changes, and that a folder has one writer."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from sid_core.errors import UserError
from sid_core.storage import files, heartbeat


def test_atomic_path_of_a_failed_writer_leaves_nothing(tmp_path):
    (tmp_path / "old.txt").write_text("before")

    def fail():
        with files.atomic_path(tmp_path / "old.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "before"


def make_folder(path, name, *marks):
    """Write a result of one file."""
    with files.atomic_path(path, *marks) as temporary:
        temporary.mkdir()
        (temporary / name).write_text(name)
        files.write_manifest(temporary)


def test_atomic_path_replaces_a_folder_whole(tmp_path):
    make_folder(tmp_path / "folder", "first")
    make_folder(tmp_path / "folder", "second")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == ["manifest.json", "second"]


WRITER = """
import os, signal, sys, time
from sid_core.storage import files, heartbeat
heartbeat.PERIOD_S = 0.05
with files.atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writes", flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else time.sleep(60)
"""


def begin(path, how, *before):
    """Start a process that writes `path`, and is "killed" in the middle or "slow"."""
    writer = subprocess.Popen(
        [*before, sys.executable, "-c", WRITER, str(path), how], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writes\n"
    if how == "killed":
        assert writer.wait() == -9
    return writer


def test_atomic_path_after_a_killed_write_removes_its_folder(tmp_path):
    begin(tmp_path / "00000.tar", "killed")
    (tmp_path / ".00000.tar.original").mkdir()  # somebody's, of a name as those of ours have
    files.write_text(tmp_path / "00001.tar", "another place")
    assert len(list(tmp_path.iterdir())) == 3
    with files.atomic_path(tmp_path / "00000.tar") as temporary:
        assert len(list(tmp_path.iterdir())) == 3  # before this one needs the room
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".00000.tar.original", "00000.tar", "00001.tar"]


@pytest.mark.parametrize(
    "apart", [(), ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")]
)
def test_atomic_path_beside_a_live_writer_keeps_its_files(tmp_path, monkeypatch, apart):
    if apart and subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user make namespaces")
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.05)
    slow, other = begin(tmp_path / "00000.tar", "slow", *apart), begin(tmp_path / "00001.tar", "slow")
    time.sleep(0.5)
    try:
        for name in ("00000.tar", "00001.tar"):
            files.write_text(tmp_path / name, "whole")
        assert len(list(tmp_path.glob(".0000*/0000*.tar"))) == 2
    finally:
        slow.kill(), other.kill()
        slow.wait(), other.wait()


def test_atomic_path_watches_the_heartbeat_of_a_writer_on_another_machine(tmp_path, monkeypatch):
    begin(tmp_path / "00000.tar", "killed")
    [folder] = tmp_path.iterdir()
    monkeypatch.setattr(files, "place", lambda: "another machine")
    monkeypatch.setattr(heartbeat, "PERIOD_S", 100)
    for age_s, left in ((300, 2), (500, 1)):
        os.utime(folder, times=(time.time() - age_s,) * 2)
        files.write_text(tmp_path / "00000.tar", "whole")
        assert len(list(tmp_path.iterdir())) == left


def test_atomic_path_while_writing_updates_its_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.02)
    with files.atomic_path(tmp_path / "x") as temporary:
        temporary.touch()
        os.utime(temporary.parent, (0, 0))
        deadline = time.monotonic() + 5
        while temporary.parent.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_atomic_path_on_a_file_system_without_locks_works_and_trusts_the_heartbeat(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with files.atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("slow")
        files.write_text(tmp_path / "x", "fast")
        assert temporary.read_text() == "slow"
    assert (tmp_path / "x").read_text() == "slow"


def tree(folder) -> dict[str, str | None]:
    """Return the contents of all files below a folder, hidden ones included, by path."""
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Make a user's folder with a repository, as the working folder."""
    (tmp_path / "work" / ".git").mkdir(parents=True)
    (tmp_path / "work" / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (tmp_path / "work" / "notes").mkdir()
    (tmp_path / "work" / "notes" / "a.txt").write_text("mine")
    (tmp_path / "work" / "file").write_text("mine")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("name", [".", "..", "./", "notes/..", "notes", "../work", "file/x", "file/x/y"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_atomic_path_over_other_files_keeps_them(work, name, kind):
    before = tree(work)
    with pytest.raises(UserError):
        files.write_text(name, "x") if kind == "file" else make_folder(name, "x")
    assert tree(work) == before


def test_atomic_path_of_another_kind_raises(work):
    make_folder("own", "first")
    os.symlink("own", "link")
    before = tree(work)
    for name in ("own", "link"):
        with pytest.raises(UserError, match="own: expected a file, got a folder"):
            files.write_text(name, "x")
    with pytest.raises(UserError, match="file: expected a folder, got a file"):
        make_folder("file", "x")
    assert tree(work) == before


def test_atomic_path_of_a_link_replaces_its_target(work):
    make_folder("own", "first")
    os.symlink("own", "link")
    make_folder("link", "second")
    assert os.readlink("link") == "own"
    assert sorted(p.name for p in (work / "work" / "own").iterdir()) == ["manifest.json", "second"]


WEB = {"name": "site", "start_url": "/", "icons": [{"src": "icon.png"}]}


@pytest.mark.parametrize(
    "content", [WEB, WEB | {"files": ["a.js"]}, WEB | {"files": {"a.js": "sha256-…"}}, ["a.js"], None]
)
@pytest.mark.parametrize("marks", [(), ("generator.json",)])
def test_atomic_path_of_a_foreign_manifest_raises(work, content, marks):
    for name in ("manifest.json", "generator.json"):
        (work / "work" / "notes" / name).write_text("{" if content is None else json.dumps(content))
    before = tree(work)
    with pytest.raises(UserError, match="notes: exists and is not created by sid-core"):
        make_folder("notes", "x", *marks)
    assert tree(work) == before


@pytest.mark.parametrize("name", [".git/HEAD", "notes.txt", "unet/mine.safetensors"])
def test_atomic_path_of_a_folder_with_user_files_raises(work, name):
    make_folder("own", "first")
    (work / "work" / "own" / ".snakemake_timestamp").touch()
    files.check_place("own")
    (work / "work" / "own" / name).parent.mkdir(exist_ok=True)
    (work / "work" / "own" / name).write_text("mine")
    before = tree(work)
    with pytest.raises(UserError, match=f"{name} in it"):
        make_folder("own", "second")
    assert tree(work) == before


def test_atomic_path_of_a_folder_with_known_names_replaces_it(work):
    for given in ("00000000.png", "00000008.png", ".snakemake_timestamp"):
        (work / "work" / "grids").mkdir(exist_ok=True)
        (work / "work" / "grids" / given).touch()
    only = r"\d{8}\.png"
    files.check_place("grids", only=only)
    (work / "work" / "grids" / "holiday.png").touch()
    with pytest.raises(UserError, match=r"holiday\.png in it"), files.atomic_path("grids", only=only):
        pass
    files.check_place("file", only=only)


def test_atomic_path_of_a_folder_of_another_kind_raises(work):
    make_folder("teacher", "x")
    with pytest.raises(UserError, match=r"no recipe\.json in it"):
        make_folder("teacher", "x", "recipe.json")


def test_atomic_path_of_a_folder_without_some_listed_files_replaces_it(work):
    """Replace a folder whose declared outputs Snakemake removed before the stage runs again."""
    make_folder("generator", "generator.json", "generator.json")
    (work / "work" / "generator" / "generator.json").unlink()
    make_folder("generator", "generator.json", "generator.json")
    (work / "work" / "generator" / "generator.json").unlink()
    (work / "work" / "generator" / "notes.txt").write_text("mine")
    before = tree(work)
    with pytest.raises(UserError, match=r"notes\.txt in it"):
        make_folder("generator", "generator.json", "generator.json")
    assert tree(work) == before


def test_atomic_path_of_a_folder_without_a_manifest_keeps_its_files(work):
    make_folder("teacher", "x")
    (work / "work" / "teacher.settings.yaml").touch()
    (work / "work" / "teacher" / "manifest.json").unlink()
    before = tree(work)
    with pytest.raises(UserError, match=r"no manifest\.json of its kind in it"):
        make_folder("teacher", "x")
    assert tree(work) == before


def test_atomic_path_of_empty_folders_replaces_them(work):
    (work / "work" / "teacher" / "tokenizer").mkdir(parents=True)
    make_folder("teacher", "x")
    assert sorted(p.name for p in (work / "work" / "teacher").iterdir()) == ["manifest.json", "x"]


def test_write_json_of_nan_raises(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_read_json_of_a_missing_or_damaged_file_names_it(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json"):
        files.read_json(path)


def test_read_json_names_the_file_when_a_missing_key_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"vae": {"in_channels": 4}, "sizes": [{}]}')
    values = files.read_json(path)
    with pytest.raises(UserError, match=r"config\.json: 'sample_size' is missing, beside in_channels"):
        values["vae"]["sample_size"]
    with pytest.raises(UserError, match=r"config\.json: 0 is missing, beside no key"):
        values["sizes"][0][0]
    assert values.get("other") is None
    assert values == {"vae": {"in_channels": 4}, "sizes": [{}]}


# --- manifests and sidecars ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights").write_bytes(b"0123456789")
    (tmp_path / "config.json").write_text("{}")
    files.write_manifest(tmp_path, {"made": "here"})
    return tmp_path


def test_verify_manifest_of_a_finished_folder_returns_its_record(folder):
    assert files.verify_manifest(folder) == {"made": "here"}


def test_verify_manifest_with_an_added_file_passes(folder):
    (folder / ".snakemake_timestamp").touch()
    files.verify_manifest(folder)


@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b"01234"), lambda p: p.write_bytes(b"012345678X"), os.unlink]
)
def test_verify_manifest_of_a_changed_file_with_its_old_time_raises(folder, damage):
    path = folder / "unet" / "weights"
    times = (path.stat().st_atime, path.stat().st_mtime)
    damage(path)
    if path.exists():
        os.utime(path, times)
    with pytest.raises(UserError, match="unet/weights"):
        files.verify_manifest(folder)


def test_verify_manifest_without_a_manifest_raises(tmp_path):
    with pytest.raises(UserError, match="not a finished result"):
        files.verify_manifest(tmp_path)


def test_verify_sidecar_returns_its_record_or_raises_for_damage(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(b"samples")
    with pytest.raises(UserError, match="without its record"):
        files.verify_sidecar(path)
    files.write_sidecar(path, {"start": 0})
    assert files.verify_sidecar(path)["record"] == {"start": 0}
    path.write_bytes(b"sample")
    with pytest.raises(UserError, match=r"00000\.tar"):
        files.verify_sidecar(path)


# --- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a dog\n\na cat\n", "line 2: blank"),
        (b"a dog\n\xff\xfe\n", "line 2: not UTF-8"),
        (b"x" * 10_000_000, "line 1: 10,000,000 characters"),
        (None, "no such caption file"),
    ],
)
def test_read_lines_of_invalid_text_names_file_line_and_reason(tmp_path, content, message):
    path = tmp_path / "captions.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_lines(path, "caption")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_read_lines_strips_and_keeps_case(tmp_path):
    (tmp_path / "captions.txt").write_bytes("  A Dög \r\nx\n".encode())
    assert files.read_lines(tmp_path / "captions.txt", "caption") == ["A Dög", "x"]
