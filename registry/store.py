"""The way to MLflow: which store, made once, without chatter and without a second to lose.

A store is either a server (MLFLOW_TRACKING_URI=http://…) or one SQLite file in the repository, never the current
directory: a DVC experiment runs in a folder that is removed afterwards, and DVC_ROOT is what still names the
repository then. The SQLite schema is built in a sibling under a lock and renamed, because two processes that meet
an empty database break it for good.

MLflow is imported inside `_client` and nowhere earlier. Importing it and opening a store takes 2.3 s plainly and
1.3 s here: the garbage collector looks again and again through a million objects that all stay, and does so once
more at exit.
"""

import errno
import gc
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from registry.errors import RegistryError
from registry.locks import held

if TYPE_CHECKING:
    from mlflow import MlflowClient

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # no call to anybody but the store
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
FULL = "database or disk is full"  # in SQLite's words
MAX_RETRIES = "3"  # MLflow's own 7 wait four minutes before they say that nobody listens
CHOICE = "set MLFLOW_TRACKING_URI to a server (http://host:5000) or to sqlite:////absolute/path.db, or unset it"


@dataclass(frozen=True)
class Store:
    uri: str
    client: "MlflowClient"
    database: Path | None  # the SQLite file; None where a server answers

    @property
    def artifacts(self) -> Path | None:
        """Where a local store keeps its files; a server decides that itself."""
        return self.database and self.database.parent / "mlartifacts"

    def alone(self) -> AbstractContextManager[None]:
        """SQLite has one writer at a time, so writers queue here; a server orders its own."""
        return held(_lock(self.database)) if self.database else nullcontext()


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI where it names a store that lasts, else the database in the repository."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return _lasting(given)
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    for old in home.glob("mlruns/*/meta.yaml"):
        remedy = "move mlruns/ away (mlflow migrate-filestore takes it along), or set MLFLOW_TRACKING_URI"
        raise RegistryError(f"{old.parent.parent}: is an MLflow file store, which MLflow 3 does not open; {remedy}")
    return f"sqlite:///{home / 'mlflow.db'}"


def connect(root: Path) -> Store:
    """The store as it is; a reader makes none."""
    uri = tracking_uri(root)
    database = _database(uri)
    if database and not database.exists():
        raise RegistryError(f"{database}: nothing was registered here yet; run: dvc repro")
    with explained(uri):
        return Store(uri, _client(uri), database)


def prepare(root: Path) -> Store:
    """The store, its database made first where there is none."""
    database = _database(tracking_uri(root))
    if database and not database.exists():
        database.parent.mkdir(parents=True, exist_ok=True)
        with held(_lock(database)):
            if not database.exists():
                _create(database)
    return connect(root)


def experiment_id(store: Store, name: str) -> str:
    """The experiment of that name, made if need be, its files where this store keeps files."""
    found = store.client.get_experiment_by_name(name)
    if found is None:
        with unless_it_exists():
            store.client.create_experiment(name, store.artifacts and store.artifacts.as_uri())
        found = store.client.get_experiment_by_name(name)
    if found.lifecycle_stage == "deleted":
        raise RegistryError(f"{store.uri}: experiment {name!r} is deleted; run: mlflow experiments restore")
    if store.artifacts and local_path(found.artifact_location) != store.artifacts:
        remedy = f"move it back, or remove {store.database} and run: dvc repro"
        raise RegistryError(f"{store.uri}: was moved; its files lie at {found.artifact_location}; {remedy}")
    return str(found.experiment_id)


def local_path(uri: str) -> Path | None:
    """The folder a location names on this machine, or None where it names none."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """MLflow's process-wide store is `uri` inside and what it was outside.

    A version's source models:/m-… is looked up there, whatever store the client was made for.
    """
    import mlflow  # noqa: PLC0415 (loaded by now)

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # set_tracking_uri writes it too
        if given is not None:
            os.environ["MLFLOW_TRACKING_URI"] = given


@contextmanager
def unless_it_exists() -> Iterator[None]:
    """Lets a creation pass that somebody else has just done."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What MLflow or the disk refuses comes out in one line that names the place."""
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 (a second, unless loaded)

        if not isinstance(error, MlflowException | OSError):
            raise
        if _is_full(error):
            raise RegistryError(f"{place}: the disk is full; free space there and run again") from error
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise RegistryError(f"{place}: refused: {reason}; mend that and run again") from error


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk began it: MLflow wraps what SQLite says, and a failing clean-up hides what failed first."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or FULL in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _lasting(uri: str) -> str:
    parts = urlsplit(uri)
    is_server = parts.scheme in ("http", "https") and parts.hostname
    is_database = parts.scheme == "sqlite" and parts.path.startswith("//")
    if not (is_server or is_database):
        raise RegistryError(f"MLFLOW_TRACKING_URI={uri}: names no store that lasts; {CHOICE}")
    return uri


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def _lock(database: Path) -> Path:
    return database.with_name(f"{database.name}.lock")


def _create(database: Path) -> None:
    """Builds the schema in a program of its own, so that no open connection to the unfinished file is left here."""
    # A name of its own: the program that a killed maker started may still be writing to the one before.
    incoming = database.with_name(f"{database.name}.incoming-{os.getpid()}")
    for stale in database.parent.glob(f"{database.name}.incoming*"):  # journals too, or SQLite would replay them
        stale.unlink()
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{incoming}"]
    made = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        incoming.unlink(missing_ok=True)
        if FULL in made.stderr:
            raise RegistryError(f"{database}: the disk is full; free space there and run again")
        reason = (re.findall(r"^[\w.]+: .+", made.stderr, re.MULTILINE) or ["no reason given"])[-1]
        raise RegistryError(f"{database}: MLflow could not make its tables: {reason}; mend that and run again")
    os.replace(incoming, database)


def _client(uri: str) -> "MlflowClient":
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", MAX_RETRIES)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints a traceback of all that it raises
    with nullcontext() if "mlflow" in sys.modules else _no_collection():
        from mlflow import MlflowClient  # noqa: PLC0415 (a second, so not before it is needed)

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Holds the garbage collector still while modules load, and hides from it afterwards what they made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
