"""One connection that brings the rest of a file: what `downloads` tries until the file is there.

Bytes are appended to a part; a note beside it holds url, ETag and length, so that the rest is asked for with Range and If-Range
and a file that changed meanwhile starts over.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .files import read_json, write_json
from .progress import Progress

if TYPE_CHECKING:
    from requests import Response

STALL_S = 60.0  # without a byte, or with fewer than SLOWEST bytes/s over this time: connect again
SLOWEST = 1000
CHUNK = 1 << 20
REMEDIES = {
    401: "it needs an account; put user and password into ~/.netrc, or download it by hand and give its path",
    403: "it is not public; download it by hand and give its path",
    404: "it has moved; give its new URL, or the path of a copy",
    410: "it is gone; give another URL, or the path of a copy",
}
TRANSIENT = {408, 425, 429}  # and 5xx


class Interrupted(Exception):
    """Worth another try; `wait_s` is what the server asked for."""

    def __init__(self, cause: str, wait_s: float | None = None):
        super().__init__(cause)
        self.wait_s = wait_s


def receive(url: str, part: Path, size: int | None) -> None:
    """Append to `part` what it lacks. Returns when it is complete.

    Raises:
        Interrupted: before that.
        UserError: the server refuses, the length is wrong, or the disk is full.
    """
    import requests

    note = _read_note(url, part)
    if note and note["total"] == part.stat().st_size:
        return
    try:
        response = requests.get(url, headers=_headers(note, part), stream=True, timeout=(min(30, STALL_S), STALL_S))
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Interrupted(f"no connection ({_reason(error)})") from None
    except requests.RequestException as error:
        raise UserError(f"{url}: {_reason(error)}; correct the URL, or give the path of a copy") from None
    with response:
        if response.status_code == 416:  # nothing after what we have: start over
            part.unlink(missing_ok=True)
            raise Interrupted("the file is not what it was", 0)
        _check_answer(url, response)
        offset = _offset(url, part, response)
        total = _total(response, offset)
        if size is not None and total not in (None, size):
            raise UserError(
                f"{url}: has {total} bytes, expected {size}; it is another file: correct its URL or the size"
            )
        total = size if total is None else total
        if total is None and response.headers.get("Transfer-Encoding") != "chunked":
            raise UserError(f"{url}: the server does not say how long it is; download it by hand and give its path")
        _write(url, response, part, offset, total)


def note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(url: str, part: Path) -> dict | None:
    """What was noted of the file whose beginning lies in `part`: {"url", "validator", "total"}."""
    note = read_json(note_of(part)) if note_of(part).is_file() and part.is_file() else None
    return note if note and note["url"] == url else None


def _headers(note: dict | None, part: Path) -> dict[str, str]:
    """Of the request: for the rest of what we have, if the server can tell that it is of the same file."""
    headers = {"Accept-Encoding": "identity"}
    if note and note["validator"] and part.stat().st_size:
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": note["validator"]}
    return headers


def _check_answer(url: str, response: "Response") -> None:
    status = response.status_code
    if status in TRANSIENT or status >= 500:
        raise Interrupted(f"the server answers {status}", _retry_after(response))
    if status not in (200, 206):
        raise UserError(f"{url}: the server answers {status}; {REMEDIES.get(status, 'check the URL')}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url}: the server insists on packing it; download it by hand and give its path")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(
            f"{url}: the server answers with a web page, no file; check the URL, or give the path of a copy"
        )


def _retry_after(response: "Response") -> float | None:
    """Seconds that the server asks to wait, which it gives as a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _offset(url: str, part: Path, response: "Response") -> int:
    """Where the answer's bytes belong: at the end of what we have, or at 0, with a new note of the file's identity."""
    headers = response.headers
    if response.status_code == 206:
        have, validator = part.stat().st_size, read_json(note_of(part))["validator"]
        start = headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        if start == str(have) and validator in (headers.get("ETag"), headers.get("Last-Modified")):
            return have
        part.unlink()
        raise Interrupted("the server sends another part than asked for", 0)
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    part.unlink(missing_ok=True)
    write_json(note_of(part), {"url": url, "validator": validator, "total": _total(response, 0)})
    return 0


def _total(response: "Response", offset: int) -> int | None:
    """Length of the whole file."""
    length = response.headers.get("Content-Length")
    return offset + int(length) if length is not None else None


def _write(url: str, response: "Response", part: Path, offset: int, total: int | None) -> None:
    done = offset
    progress = Progress(part.name[1:-5], total, "B", offset)
    try:
        if total is not None and shutil.disk_usage(part.parent).free < total - offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open(part, "ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                progress.update(done)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        need = f"{total - done} more bytes are needed" if total else "what has arrived is kept"
        raise UserError(
            f"{url}: cannot be written to {part.parent}: {(error.strerror or str(error)).lower()} ({need}); make room, or set "
            "SID_CORE_CACHE to another folder, and run again"
        ) from None
    if total is not None and done < total:
        raise Interrupted(f"the connection ended after {done} of {total} bytes")
    if total is not None and done > total:
        part.unlink()
        raise UserError(
            f"{url}: {done} bytes arrived, the server promised {total}; give another URL or the path of a copy"
        )


def _chunks(response: "Response") -> Iterator[bytes]:
    """Bytes as they come; a connection that stalls or trickles is an interruption."""
    from urllib3.exceptions import HTTPError

    since, got = time.monotonic(), 0
    while True:
        try:
            # read1 returns what is there; read would wait for a full chunk, at a byte a minute for weeks
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except (HTTPError, OSError) as error:
            raise Interrupted(f"the connection was lost ({_reason(error)})") from None
        if not chunk:
            return
        yield chunk
        got += len(chunk)
        if time.monotonic() - since > STALL_S:
            if got < SLOWEST * STALL_S:
                raise Interrupted(f"only {got} bytes arrived in {STALL_S:.0f} s")
            since, got = time.monotonic(), 0


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
