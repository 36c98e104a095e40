"""Serve files and a tiny model hub on 127.0.0.1, which misbehave on request.

    with Server(files=folder, repos={"owner/name": folder}) as server:
        server.use_as_hub(monkeypatch, cache)            # huggingface_hub in this process; environment() is for others
        server.faults["/files/a.bin"] = [Drop(1000), Status(503)]
        download(f"{server.url}/files/a.bin", out)
        server.requests                                  # [Request(method, path, headers), ...]

A path is plain, without host and query: /files/NAME for files, /OWNER/NAME/resolve/COMMIT/FILE and
/api/models/OWNER/NAME/revision/REVISION for repositories. Faults are used up in order, by one request each.
"""

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PIECE = 1 << 16
LARGE = (".safetensors", ".bin", ".pt", ".pkl", ".ckpt", ".tar")  # a hub names these by sha256, the rest by git's sha1


@dataclass(frozen=True)
class Status:
    """Answer with a status and no file."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """Close the connection after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Trickle:
    """Send a byte, wait, send a byte, ... after so many bytes at full speed; give up after `most` of them."""

    after: int
    pause_s: float = 0.05
    most: int = 1000


@dataclass(frozen=True)
class Corrupt:
    """Flip a bit of the byte at a place of the file."""

    at: int


@dataclass(frozen=True)
class Promise:
    """Say another Content-Length than that of the body, by so many bytes; None: do not say it."""

    off_by: int | None


@dataclass(frozen=True)
class Redirect:
    to: str


@dataclass(frozen=True)
class NoRange:
    """Send the whole file whatever was asked for."""


@dataclass(frozen=True)
class Page:
    """A web page in place of the file, as a login or a captive portal sends."""


Fault = Status | Drop | Trickle | Corrupt | Promise | Redirect | NoRange | Page


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


class Server:
    """Serves while its context is open.

    Args:
        files: folder served below /files/.
        repos: folders of repositories by OWNER/NAME.
        gated: repositories that answer 403 to everyone.
        commits: of repositories that settings pin; a repository's own is made from its files' names and contents.
    """

    def __init__(
        self,
        files: Path | None = None,
        repos: dict[str, Path] | None = None,
        gated: tuple[str, ...] = (),
        commits: dict[str, str] | None = None,
    ):
        self.files, self.repos, self.gated = files, dict(repos or {}), gated
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self._commits = dict(commits or {})
        self._lock = threading.Lock()

    def __enter__(self) -> "Server":
        handler = type("Handler", (_Handler,), {"site": self})
        self._server = _Quiet(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @cached_property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repo: str) -> str:
        """Return the full commit of a repository, constant also when its files change."""
        if repo not in self._commits:
            listed = [(str(path.relative_to(self.repos[repo])), path.read_bytes()) for path in self.contents(repo)]
            self._commits[repo] = hashlib.sha1(repr([repo, listed]).encode()).hexdigest()
        return self._commits[repo]

    def contents(self, repo: str) -> list[Path]:
        return sorted(path for path in self.repos[repo].rglob("*") if path.is_file())

    def environment(self, cache: Path) -> dict[str, str]:
        """Return environment variables for a process that uses this hub and separate caches."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache / "hf"),
            "SID_CORE_CACHE": str(cache / "sid_core"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def use_as_hub(self, monkeypatch, cache: Path) -> None:
        """Use this hub in this process, where huggingface_hub has already read its environment."""
        from huggingface_hub import constants

        for name, value in self.environment(cache).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def fetched(self, prefix: str = "/") -> list[str]:
        """Return the paths of GET requests, in order."""
        return [
            request.path for request in self.requests if request.method == "GET" and request.path.startswith(prefix)
        ]

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            waiting = self.faults.get(path)
            return waiting.pop(0) if waiting else None


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_) -> None:
        """Ignore disconnected clients: the tests provoke them."""


class _Handler(BaseHTTPRequestHandler):
    site: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.site.requests.append(Request(self.command, path, dict(self.headers)))
        fault = self.site.take_fault(path)
        if isinstance(fault, Status):
            return self._send(fault.code, b"refused", fault.headers)
        if isinstance(fault, Redirect):
            return self._send(302, b"", {"Location": fault.to})
        if isinstance(fault, Page):
            return self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        if path.startswith("/files/"):
            return self._send_file(self.site.files / path.removeprefix("/files/"), {}, fault)
        owner, _, rest = path.removeprefix("/api/models").removeprefix("/").partition("/")
        name, _, rest = rest.partition("/")
        return self._repository(f"{owner}/{name}", rest, path.startswith("/api/"), fault)

    def _repository(self, repo: str, rest: str, api: bool, fault: Fault | None) -> None:
        if repo not in self.site.repos:  # as the hub does, which does not tell whether a repository is private or none
            return self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        if repo in self.site.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        what, _, rest = rest.partition("/")
        revision, _, file = rest.partition("/")
        commit = self.site.commit(repo)
        if revision not in (commit, "main", ""):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        folder = self.site.repos[repo]
        if api:
            names = [str(path.relative_to(folder)) for path in self.site.contents(repo)]
            info = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
            answer = [_listed(folder, name) for name in names] if what == "tree" else info
            return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        if not (folder / file).is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send_file(folder / file, {"X-Repo-Commit": commit}, fault, hub=True)

    def _send_file(self, path: Path, headers: dict, fault: Fault | None, hub: bool = False) -> None:
        if not path.is_file():
            return self._send(404, b"", {})
        data = path.read_bytes()
        etag = f'"{_hub_hash(path.name, data) if hub else hashlib.md5(data).hexdigest()}"'
        headers |= {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if isinstance(fault, Corrupt):
            data = data[: fault.at] + bytes([data[fault.at] ^ 1]) + data[fault.at + 1 :]
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range", etag)
        if asked is None or condition != etag or isinstance(fault, NoRange):
            return self._send(200, data, headers, fault)
        start = int(asked.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self._send(206, data[start:], headers, fault)

    def _send(self, code: int, body: bytes, headers: dict, fault: Fault | None = None) -> None:
        length = len(body)
        if isinstance(fault, Promise):
            length = None if fault.off_by is None else length + fault.off_by
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if length != len(body):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self._send_body(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send_body(self, body: bytes, fault: Fault | None) -> None:
        if isinstance(fault, Drop | Trickle):
            self.close_connection = True
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            for byte in body[fault.after :][: getattr(fault, "most", 0)]:
                time.sleep(fault.pause_s)
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            return
        for start in range(0, len(body), PIECE):
            self.wfile.write(body[start : start + PIECE])


def _hub_hash(name: str, data: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _listed(folder: Path, name: str) -> dict:
    data = (folder / name).read_bytes()
    entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def disk_is_full(monkeypatch, after: int = 0) -> None:
    """Let files opened for writing take `after` bytes each, and then fail as a full disk does."""
    import builtins
    import errno
    import io

    genuine = builtins.open

    def limited(file, mode="r", *args, **kwargs):
        handle = genuine(file, mode, *args, **kwargs)
        if "b" in mode and set(mode) & set("wax"):
            write, left = handle.write, [after]

            class Limited:
                def __getattr__(self, name):
                    return getattr(handle, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    handle.close()

                def write(self, data):
                    if len(data) > left[0]:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    left[0] -= len(data)
                    return write(data)

            return Limited()
        return handle

    for module in (builtins, io):  # pathlib opens by io.open
        monkeypatch.setattr(module, "open", limited)
