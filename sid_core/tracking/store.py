"""Create MLflow's store, a server or a local database, before several processes write to it."""

import fcntl
import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HIDDEN, UserError, redact
from ..pipeline.paths import Results
from ..storage.files import read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
TRAINING_PAGE = {"mlflow.experimentKind": "custom_model_development"}  # otherwise links open the page for conversations
# names of shared file systems in /proc/mounts: SQLite's locks do not hold between machines
SHARED = re.compile(
    "nfs4?|lustre|gpfs|beegfs.*|ceph|cifs|smb.*|afs|gfs2|ocfs2|panfs|wekafs|pvfs2|orangefs|glusterfs"
    "|fuse[.](sshfs|glusterfs|ceph.*|juicefs|beegfs.*|.*lustre.*)"
)


def resolve_uri(configured: str | None, asked: str | None = None) -> str:
    """Return the store's URI: the one asked for, else MLFLOW_TRACKING_URI, else the configured one, else mlflow.db here.

    SQLite paths are made absolute: a relative one would follow each process's working folder. A password in
    MLFLOW_TRACKING_URI is replaced by ***, since records and command lines contain the URI; `make_client` takes the password
    from the environment again.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    uri = asked or environment or configured or f"{SQLITE}mlflow.db"
    if uri != environment and redact(uri) != uri:
        raise UserError(f"{uri}: expected a URI without user, password or token. Fix: set MLFLOW_TRACKING_URI to it")
    return f"{SQLITE}{_database(uri).resolve()}" if _database(uri) else redact(uri)


def init(experiment: str, uri: str | None, out: Path, attempt: int = 1) -> dict:
    """Create database and experiment unless `uri` is None, write their location to `out`, and return it.

    If several processes open a fresh SQLite file, one creates it while the others wait. A problem is printed once, here, and
    the pipeline continues. A server that does not answer costs 20 seconds.
    """
    record = {"uri": uri, "host": socket.gethostname(), "experiment": experiment, "experiment_id": None}
    record |= {"problem": None, "attempt": attempt}
    if uri is None:
        record["problem"] = "switched off (tracking.enabled)"
    else:
        try:
            with _alone(_database(uri)):
                record["experiment_id"] = _open_experiment(experiment, uri)
        except Exception as error:
            record["problem"] = problem = first_line(error)
            print(f"MLflow at {uri} cannot be used ({problem}): this run is not tracked. {later(out.parents[1])}")
    write_json(out, record)
    return record


def check(configured: str | None) -> tuple[str, str | None]:
    """Return the store's URI without password, and why it cannot be used, if so; a server is asked, nothing is created."""
    uri = resolve_uri(configured)
    database = _database(uri)
    try:
        if database is None:
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
            make_client(uri).search_experiments(max_results=1)
        else:
            _check_local(database)
            if not os.access(database if database.exists() else database.parent, os.W_OK):
                raise UserError("no such folder, or no permission to write there")
    except Exception as error:
        return uri, first_line(error)
    return uri, None


def attempt(results: Path) -> int:
    """Return the number of the next attempt to open the store: the last one, plus one if that failed."""
    paths = (Results(results).store, Results(results).mirrored)
    records = [read_json(path) for path in paths if path.is_file()]
    last = max((record.get("attempt", 1) for record in records), default=1)
    failed = (r["problem"] and r["uri"] is not None and r.get("attempt", 1) == last for r in records)
    return last + any(failed)


def later(results: Path) -> str:
    """Return the advice to mirror the files later."""
    return f"The files hold everything; to mirror them later: sid-core track --sync --results {results}"


def is_reachable(store: dict) -> bool:
    """Return whether this machine can write to the store: a database is on the disk of one machine."""
    return _database(store["uri"]) is None or store.get("host") in (None, socket.gethostname())


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Lock a database while this process opens it, since MLflow creates its tables without a lock."""
    if database is None:
        yield
        return
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _open_experiment(name: str, uri: str) -> str:
    database = _database(uri)
    if database:
        _check_local(database)
    client = make_client(uri)
    experiment = client.get_experiment_by_name(name)
    if database:
        # readers and writers no longer wait for each other: 300 to 460 points/s from four writers against 57 to 210
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    files = database and (database.parent / "mlartifacts" / name).as_uri()
    if experiment is None:
        return client.create_experiment(name, files, TRAINING_PAGE)
    if experiment.lifecycle_stage != "active":
        raise UserError(f"experiment {name!r} was deleted there; restore it, or give this experiment another name")
    if database:
        _check_not_moved(database, experiment.artifact_location, files)
    return experiment.experiment_id


def _check_local(database: Path) -> None:
    if where := shared_file_system(database, Path("/proc/mounts").read_text()):
        raise UserError(
            f"{where} is shared between machines, where SQLite's locks do not hold and the file would be destroyed; set "
            f"MLFLOW_TRACKING_URI to a server (mlflow server --host …), or tracking.uri to {SQLITE}/PATH on a local disk"
        )


def _check_not_moved(database: Path, recorded: str, expected: str) -> None:
    """Reject a database that was moved or copied with its folder.

    It has the absolute path of every file and registered model: MLflow would find none, and download empty folders without an
    error. A path that this program did not write is the user's own.
    """
    own = f"/mlartifacts/{expected.rsplit('/', 1)[1]}"
    if recorded != expected and recorded.endswith(own):
        place = recorded.removesuffix(own).removeprefix("file://")
        raise UserError(
            f"its files are recorded in {place}: the folder was moved or copied. Fix: delete {database.name}* and mlartifacts here "
            "(results/ hold everything but changes made by hand), then track --sync each experiment"
        )


def shared_file_system(path: Path, mounts: str) -> str | None:
    """Return the shared file system of a path by the text of /proc/mounts ('nfs4 at /home'), or None."""
    mount, kind = "", ""
    for line in mounts.splitlines():
        _, place, name, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        covers = path.resolve().is_relative_to(place)
        if covers and len(place) >= len(mount):  # of two mounts at one path the later one covers the other
            mount, kind = place, name
    return f"{kind} at {mount}" if SHARED.fullmatch(kind) else None


def make_client(uri: str) -> "MlflowClient":
    """Return MLflow's client; its defaults block for minutes on a dead server, and send usage statistics."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    whole = with_password(uri)
    return MlflowClient(tracking_uri=whole, registry_uri=whole)


def with_password(uri: str) -> str:
    """Return a recorded URI with the password from MLFLOW_TRACKING_URI if the record hides it."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if HIDDEN not in uri:
        return uri
    if redact(given) != uri:
        raise UserError(f"MLflow at {uri}: its password is in no file. Fix: set MLFLOW_TRACKING_URI to the whole URI")
    return given


def first_line(error: Exception) -> str:
    """Return an error's message in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return redact(text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")
