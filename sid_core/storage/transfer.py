"""Receive the missing rest of a file over one connection; `downloads` retries.

Bytes are appended to a partial file. A note next to it holds url, ETag and length for Range and If-Range.
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

from ..errors import UserError, one_line
from .files import read_json, write_json
from .progress import Progress

if TYPE_CHECKING:
    from requests import Response

STALL_S = 60.0  # reconnect after this time without a byte, or with fewer than SLOWEST bytes/s
SLOWEST = 1000
CHUNK = 1 << 20
REMEDIES = {
    401: "put user and password into ~/.netrc, or download it by hand and give its path",
    403: "it is not public; download it by hand and give its path",
    404: "it has moved; give its new URL, or the path of a copy",
    410: "it is gone; give another URL, or the path of a copy",
}
TRANSIENT = {408, 425, 429}  # and 5xx


class TransferInterrupted(Exception):
    """A failure to retry, after the `wait_s` seconds that the server requests."""

    def __init__(self, cause: str, wait_s: float | None = None):
        super().__init__(cause)
        self.wait_s = wait_s


def receive(url: str, part: Path, size: int | None) -> None:
    """Append the missing bytes to `part`.

    Raises:
        TransferInterrupted: the connection ended before the file was complete.
        UserError: the server rejects the request, the length is wrong, or the disk is full.
    """
    import requests

    note = _read_note(url, part)
    if note and note["total"] == part.stat().st_size:
        return
    try:
        response = requests.get(url, headers=_headers(note, part), stream=True, timeout=(min(30, STALL_S), STALL_S))
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TransferInterrupted(f"no connection ({one_line(error)})") from None
    except requests.RequestException as error:
        raise UserError(f"{url}: {one_line(error)}. Fix: correct the URL, or give the path of a copy") from None
    with response:
        if response.status_code == 416:  # the file is no longer than `part`: start over
            part.unlink(missing_ok=True)
            raise TransferInterrupted("the file has changed", 0)
        _check_answer(url, response)
        offset = _offset(url, part, response)
        total = _total(response, offset)
        if size is not None and total not in (None, size):
            raise UserError(f"{url}: has {total} bytes, expected {size}. Fix: correct the URL or the size")
        total = size if total is None else total
        if total is None and response.headers.get("Transfer-Encoding") != "chunked":
            raise UserError(f"{url}: the server sends no length. Fix: download it by hand and give its path")
        _write(url, response, part, offset, total)


def note_path(part: Path) -> Path:
    """Return the path of the note next to a partial file: {"url", "validator", "total"}."""
    return part.with_name(f"{part.name}.json")


def _read_note(url: str, part: Path) -> dict | None:
    note = read_json(note_path(part)) if note_path(part).is_file() and part.is_file() else None
    return note if note and note["url"] == url else None


def _headers(note: dict | None, part: Path) -> dict[str, str]:
    """Return request headers, with a range if the server can check that the file is unchanged."""
    headers = {"Accept-Encoding": "identity"}
    if note and note["validator"] and part.stat().st_size:
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": note["validator"]}
    return headers


def _check_answer(url: str, response: "Response") -> None:
    status = response.status_code
    if status in TRANSIENT or status >= 500:
        raise TransferInterrupted(f"the server answers {status}", _retry_after(response))
    if status not in (200, 206):
        raise UserError(f"{url}: the server answers {status}; {REMEDIES.get(status, 'check the URL')}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url}: the server compresses it. Fix: download it by hand and give its path")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(f"{url}: the server answers with a web page. Fix: check the URL, or give the path of a copy")


def _retry_after(response: "Response") -> float | None:
    """Return the seconds that the server requests to wait, sent as a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _offset(url: str, part: Path, response: "Response") -> int:
    """Return the response's position in the file: the end of `part`, or 0 after writing a new note."""
    headers = response.headers
    if response.status_code == 206:
        have, validator = part.stat().st_size, read_json(note_path(part))["validator"]
        start = headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
        if start == str(have) and validator in (headers.get("ETag"), headers.get("Last-Modified")):
            return have
        part.unlink()
        raise TransferInterrupted("the server sends another range than requested", 0)
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    part.unlink(missing_ok=True)
    write_json(note_path(part), {"url": url, "validator": validator, "total": _total(response, 0)})
    return 0


def _total(response: "Response", offset: int) -> int | None:
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
        need = f"{total - done} more bytes are needed" if total else "the bytes so far are kept"
        raise UserError(
            f"{url}: cannot be written to {part.parent}: {(error.strerror or str(error)).lower()} ({need}). "
            "Fix: make room, or set SID_CORE_CACHE to another folder"
        ) from None
    if total is not None and done < total:
        raise TransferInterrupted(f"the connection ended after {done} of {total} bytes")
    if total is not None and done > total:
        part.unlink()
        raise UserError(f"{url}: {done} bytes arrived, expected {total}. Fix: give another URL or the path of a copy")


def _chunks(response: "Response") -> Iterator[bytes]:
    """Yield bytes as they arrive; raise TransferInterrupted for a slow or lost connection."""
    from urllib3.exceptions import HTTPError

    since, got = time.monotonic(), 0
    while True:
        try:
            # read1 returns the available bytes; read would wait for a full chunk
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except (HTTPError, OSError) as error:
            raise TransferInterrupted(f"the connection was lost ({one_line(error)})") from None
        if not chunk:
            return
        yield chunk
        got += len(chunk)
        if time.monotonic() - since > STALL_S:
            if got < SLOWEST * STALL_S:
                raise TransferInterrupted(f"only {got} bytes arrived in {STALL_S:.0f} s")
            since, got = time.monotonic(), 0
