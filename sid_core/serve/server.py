"""Serve the page on 127.0.0.1, sampling one image at a time."""

import errno
import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from ..errors import UserError
from .gallery import Gallery

HERE = Path(__file__).parent
HOST = "127.0.0.1"
FILES = {"/": ("page.html", "html"), "/page.css": ("page.css", "css"), "/page.js": ("page.js", "javascript")}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:"


def serve(results: Path, port: int) -> None:
    """Serve the page until Ctrl-C; raises UserError as `Gallery` and `make_server` do."""
    server = make_server(Gallery(results), port)
    print(f"{server.gallery.experiment}: http://{HOST}:{server.server_port}/ (Ctrl-C ends)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def make_server(gallery: Gallery, port: int) -> "Server":
    """Bind a server; raises UserError where the port is taken, forbidden or invalid."""
    try:
        return Server(gallery, port)
    except (OSError, OverflowError) as error:
        known = {errno.EADDRINUSE: "in use", errno.EACCES: "not allowed"}
        problem = known.get(getattr(error, "errno", None), "expected 0 to 65535")
        raise UserError(f"--port {port}: {problem}; choose another, or 0 for any free one") from None


class Server(ThreadingHTTPServer):
    """A server of one gallery that samples one image at a time."""

    daemon_threads = True

    def __init__(self, gallery: Gallery, port: int):
        self.gallery, self.drawing = gallery, Lock()
        super().__init__((HOST, port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore pages that were closed or reloaded while they waited."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Routes: / (the page), /experiment.json, and /image?run=… or /image?steps=…&guidance_scale=… with prompt and seed."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    hosts: ClassVar = (HOST, "localhost")

    def do_GET(self) -> None:
        # other sites must neither read this page (DNS rebinding) nor occupy the machine
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in self.hosts or self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this page answers to its own machine only")
        url = urlsplit(self.path)
        try:
            if url.path in FILES:
                name, kind = FILES[url.path]
                return self._answer(HTTPStatus.OK, f"text/{kind}", (HERE / name).read_bytes())
            if url.path == "/experiment.json":
                text = json.dumps(self.server.gallery.describe())
                return self._answer(HTTPStatus.OK, "application/json", text.encode())
            if url.path == "/image":
                png, load_s, draw_s = self._draw({key: values[-1] for key, values in parse_qs(url.query).items()})
                return self._answer(HTTPStatus.OK, "image/png", png, {"X-Load-Seconds": load_s, "X-Seconds": draw_s})
        except UserError as error:
            return self._answer(HTTPStatus.BAD_REQUEST, "text/plain", str(error).encode())
        except ConnectionError:
            raise
        except Exception as error:  # such as out of GPU memory: the next image may fit
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            print(f"{self.path}: {problem}", file=sys.stderr, flush=True)
            return self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", problem.encode())
        return self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page")

    def _draw(self, asked: dict[str, str]) -> tuple[bytes, float, float]:
        def number(key: str, kind: type, default: str = "") -> float:
            try:
                return kind(asked.get(key, default))
            except ValueError:
                raise UserError(f"{key}={asked.get(key, '')}: expected a number") from None

        prompt, seed, gallery = asked.get("prompt", ""), number("seed", int, "0"), self.server.gallery
        with self.server.drawing:
            if "run" in asked:
                return gallery.draw(asked["run"], prompt, seed)
            return gallery.draw_teacher(prompt, seed, number("steps", int), number("guidance_scale", float))

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, times: dict[str, float] | None = None) -> None:
        headers = {
            "Content-Type": kind if kind.startswith("image/") else f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            **{name: f"{seconds:.4f}" for name, seconds in (times or {}).items()},
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing: the page shows errors."""
