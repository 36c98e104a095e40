"""Test downloads from a misbehaving server: each gives the right file or an error that names URL, cause and remedy."""

import base64
import multiprocessing
import random
import threading
from types import SimpleNamespace

import pytest
from serving import Corrupt, Drop, NoRange, Page, Promise, Redirect, Server, Status, Trickle, disk_is_full

from sid_core.errors import UserError
from sid_core.storage import downloads, transfer
from sid_core.storage.downloads import cached, download
from sid_core.storage.files import sha256_file

SIZE = 300_000
PATH = "/files/data.bin"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF_S", 0.001)
    monkeypatch.setattr(downloads, "PROGRESS", 10_000)
    monkeypatch.setattr(transfer, "CHUNK", 10_000)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data.bin").write_bytes(random.Random(0).randbytes(SIZE))
    with Server(files=tmp_path / "served") as server:
        yield server


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "data.bin"


@pytest.fixture
def sha256(server):
    return sha256_file(server.files / "data.bin")


def refused(server, out, **expected) -> str:
    """Return the error of a download that must fail and leave nothing under the final name."""
    with pytest.raises(UserError) as caught:
        download(server.url + PATH, out, **expected)
    assert not out.exists()
    assert server.url + PATH in str(caught.value)
    return str(caught.value)


def test_download_again_fetches_nothing(server, out, sha256):
    assert download(server.url + PATH, out, sha256, SIZE) == sha256
    assert download(server.url + PATH, out, sha256, SIZE) == sha256
    assert sha256_file(out) == sha256
    assert len(server.requests) == 1
    assert [p.name for p in out.parent.iterdir() if p.suffix != ".lock"] == ["data.bin"]


def test_download_takes_user_and_password_from_netrc(server, out, sha256, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert download(server.url + PATH, out) == sha256
    assert server.requests[0].headers["Authorization"] == "Basic " + base64.b64encode(b"me:hidden").decode()


def test_download_of_an_empty_file_succeeds(server, out):
    (server.files / "data.bin").write_bytes(b"")
    assert download(server.url + PATH, out) == sha256_file(out)
    assert out.stat().st_size == 0


# --- what is overcome ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_download_after_dropped_connections_resumes(server, out, sha256, seed):
    drops = [random.Random(seed).randrange(SIZE) for _ in range(4)]
    server.faults[PATH] = [Drop(drop) for drop in drops]
    assert download(server.url + PATH, out, sha256) == sha256
    sent = [r.headers.get("Range") for r in server.requests]
    assert sent[0] is None
    assert sent[-1] not in (None, "bytes=0-")  # the last connection went on where an earlier one ended


@pytest.mark.parametrize(
    "faults",
    [
        [Status(500), Status(502), Status(503)],
        [Status(429, {"Retry-After": "0"})],
        [Status(429, {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"})],
        [Redirect("/files/data.bin")],
        [Drop(100_000), Redirect("/files/data.bin"), Drop(50_000)],
        [Drop(100_000), NoRange()],
        [Drop(0), Drop(0)],
        [Promise(1000)],
    ],
    ids=str,
)
def test_download_after_transient_errors_succeeds(server, out, sha256, faults):
    server.faults[PATH] = faults
    assert download(server.url + PATH, out) == sha256
    assert out.stat().st_size == SIZE


def test_download_with_retry_after_waits(server, out, sha256, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.faults[PATH] = [Status(429, {"Retry-After": "7"}), Status(500)]
    assert download(server.url + PATH, out) == sha256
    assert waits[0] == 7
    assert waits[1] < 1


def test_download_from_a_slow_server_reconnects(server, out, sha256, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_S", 0.3)
    server.faults[PATH] = [Trickle(50_000), Trickle(60_000, pause_s=5)]
    assert download(server.url + PATH, out) == sha256
    assert len(server.requests) == 3


def test_download_again_after_an_interruption_resumes(server, out, sha256):
    server.faults[PATH] = [Drop(100_000), *[Status(500)] * downloads.TRIES]
    assert "100000 bytes are kept" in refused(server, out)
    assert download(server.url + PATH, out) == sha256
    assert server.requests[-1].headers["Range"] == "bytes=100000-"


def test_download_with_a_complete_part_fetches_nothing(server, out, sha256, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(downloads.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download(server.url + PATH, out)
    assert download(server.url + PATH, out) == sha256
    assert len(server.requests) == 1


def test_download_of_a_changed_file_starts_over(server, out):
    server.faults[PATH] = [Drop(100_000), *[Status(500)] * downloads.TRIES]
    refused(server, out)
    (server.files / "data.bin").write_bytes(random.Random(1).randbytes(SIZE))
    assert download(server.url + PATH, out) == sha256_file(server.files / "data.bin") == sha256_file(out)


def test_download_with_a_damaged_part_starts_over(server, out, sha256):
    server.faults[PATH] = [Drop(100_000), *[Status(500)] * downloads.TRIES]
    refused(server, out)
    part = out.with_name(".data.bin.part")
    part.write_bytes(bytes(100_000))
    assert download(server.url + PATH, out, sha256) == sha256


def test_download_with_a_part_of_another_url_starts_over(server, out, sha256):
    (server.files / "other.bin").write_bytes(random.Random(2).randbytes(SIZE))
    server.faults["/files/other.bin"] = [Drop(100_000), *[Status(500)] * downloads.TRIES]
    with pytest.raises(UserError):
        download(f"{server.url}/files/other.bin", out)
    assert download(server.url + PATH, out) == sha256


# --- what is refused, by name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([Status(404)], "answers 404; it has moved"),
        ([Status(401)], "answers 401; put user and password"),
        ([Status(403)], "answers 403; it is not public"),
        ([Status(500)] * 6, "answers 500, 6 times in a row"),
        ([Status(429, {"Retry-After": "9999"})], "asks to wait 9999 s"),
        ([Drop(0)] * 6, "6 times in a row"),
        ([Page()], "a web page. Fix: check the URL"),
        ([Promise(None)], "the server sends no length"),
        ([Redirect(PATH)] * 40, "redirects"),
    ],
    ids=str,
)
def test_download_with_a_permanent_error_names_it(server, out, faults, message):
    server.faults[PATH] = faults
    assert message in refused(server, out)


def test_download_of_a_wrong_hash_raises(server, out, sha256):
    assert f"expected sha256 {'0' * 64}, got {sha256}" in refused(server, out, sha256="0" * 64)
    assert not out.with_name(".data.bin.part").exists()


def test_download_of_a_damaged_transfer_raises(server, out, sha256):
    server.faults[PATH] = [Corrupt(1234)]
    assert "expected sha256" in refused(server, out, sha256=sha256)
    assert download(server.url + PATH, out, sha256) == sha256


def test_download_of_a_wrong_length_raises(server, out):
    assert f"has {SIZE} bytes, expected 5" in refused(server, out, size=5)
    assert download(server.url + PATH, out, size=SIZE)


def test_download_of_a_short_content_length_gets_that_much(server, out, sha256):
    """Accept what the protocol cuts to a Content-Length that is too small: only a hash shows it."""
    server.faults[PATH] = [Promise(-1000)]
    assert "expected sha256" in refused(server, out, sha256=sha256)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://no-such-host.invalid/x"])
def test_download_without_a_server_raises(tmp_path, url):
    with pytest.raises(UserError, match="no connection") as caught:
        download(url, tmp_path / "x")
    assert url in str(caught.value)


def test_download_to_a_small_disk_raises_before_fetching(server, out, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    assert f"no space left on device ({SIZE} more bytes are needed). Fix: make room" in refused(server, out)


def test_download_to_a_full_disk_raises(server, out, sha256, monkeypatch):
    with monkeypatch.context() as small:
        disk_is_full(small, after=100_000)
        assert "no space left on device" in refused(server, out)
    assert download(server.url + PATH, out, sha256) == sha256


def test_download_over_a_wrong_file_raises(server, out, sha256):
    out.parent.mkdir()
    out.write_bytes(b"something else")
    with pytest.raises(UserError, match="delete it"):
        download(server.url + PATH, out, sha256)
    assert out.read_bytes() == b"something else"


# --- two at once ---------------------------------------------------------------------------------------------------------


def _fetch(url, out):
    download(url, out)


def test_download_by_two_processes_fetches_once(server, out, sha256):
    server.faults[PATH] = [Trickle(100_000, pause_s=0.01, most=50)]  # slow enough for the second to come
    processes = [
        multiprocessing.get_context("spawn").Process(target=_fetch, args=(server.url + PATH, out)) for _ in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sha256_file(out) == sha256
    assert sum(r.headers.get("Range") is None for r in server.requests) == 1


def test_download_by_two_threads_fetches_once(server, out, sha256):
    threads = [threading.Thread(target=_fetch, args=(server.url + PATH, out)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sha256_file(out) == sha256
    assert len(server.requests) == 1


# --- the shared cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_CORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cached_again_fetches_once_and_always_verifies(server, cache, sha256):
    path = cached(server.url + PATH, None, "a.key")
    assert path.name == "data.bin"
    assert cached(server.url + PATH, None, "a.key") == path
    assert len(server.requests) == 1
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"when it was downloaded {sha256}; delete"):
        cached(server.url + PATH, None, "a.key")


def test_cached_with_a_hash_set_later_keeps_the_file(server, cache, sha256):
    path = cached(server.url + PATH, None, "a.key")
    assert cached(server.url + PATH, sha256, "a.key") == path
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="expected sha256"):
        cached(server.url + PATH, "0" * 64, "a.key")


def test_cached_without_a_hash_logs_it(server, cache, sha256, caplog):
    caplog.set_level("INFO")
    cached(server.url + PATH, None, "evaluate.reference_sha256")
    assert f"recorded sha256 {sha256}; set evaluate.reference_sha256" in caplog.text


def test_progress_without_a_terminal_logs_lines(server, out, caplog):
    caplog.set_level("INFO")
    download(server.url + PATH, out)
    lines = [line for line in caplog.messages if line.startswith("data.bin: ")]
    assert 5 <= len(lines) <= 10
    assert lines[-1] == "data.bin: 0.3 of 0.3 MB"
