"""A team's registry: MLflow's own server over a real PostgreSQL and a real S3 server, for the tests that need one."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from ship_servers import free_port, s3_environment, start_s3, stop, wait_for


@dataclass
class Team:
    """What a machine of the team must know: one address."""

    uri: str
    s3_port: int
    postgres_port: int


def postgres_tool(name: str) -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(newest[-1]) if newest else None)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install postgresql")
    return str(Path(found).resolve())


def start_postgres(home: Path) -> tuple[int, subprocess.Popen]:
    """A server of its own on loopback; PostgreSQL refuses to run as root, so root lends it the account postgres."""
    initdb, postgres, port = postgres_tool("initdb"), postgres_tool("postgres"), free_port()
    account = {}
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("there is no account postgres: apt-get install postgresql")
        os.chown(home, owner.pw_uid, owner.pw_gid)
        account = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    (home / "password").write_text("only-tests")
    (home / "password").chmod(0o644)
    made = [initdb, "-D", home / "data", "-U", "mlflow", "--pwfile", home / "password", "-A", "scram-sha-256"]
    subprocess.run(list(map(str, made)), check=True, capture_output=True, cwd=home, **account)
    command = [postgres, "-D", home / "data", "-p", port, "-c", "listen_addresses=127.0.0.1", "-k", ""]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=home, **account)
    wait_for(port, process, home / "log")
    return port, process


def start_mlflow(home: Path, postgres_port: int, s3_port: int, bucket: str) -> tuple[str, subprocess.Popen]:
    port = free_port()
    store = f"postgresql://mlflow:only-tests@127.0.0.1:{postgres_port}/postgres"
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "2", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", store, "--artifacts-destination", f"s3://{bucket}/mlflow",
    ]  # fmt: skip
    endpoint = {"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}"}
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | quiet | endpoint | s3_environment(s3_port), stdout=log, stderr=log, cwd=home
        )
    await_health(f"http://127.0.0.1:{port}/health", process, home / "mlflow.log")
    return f"http://127.0.0.1:{port}", process


def await_health(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def make_bucket(s3_port: int, name: str) -> None:
    import boto3

    said = s3_environment(s3_port)
    client = boto3.client(
        "s3", endpoint_url=said["AWS_ENDPOINT_URL"], region_name=said["AWS_DEFAULT_REGION"],
        aws_access_key_id=said["AWS_ACCESS_KEY_ID"], aws_secret_access_key=said["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    client.create_bucket(Bucket=name)
    client.close()


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    """The three servers; what they hold is shared by a module's tests."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: make install")
    home, running = Path(tempfile.mkdtemp(prefix="team-")), []
    try:
        postgres_port, process = start_postgres(home)
        running.append(process)
        s3_port, process = start_s3(tmp_path_factory.mktemp("s3"))
        running.append(process)
        make_bucket(s3_port, "artifacts")
        uri, process = start_mlflow(tmp_path_factory.mktemp("mlflow"), postgres_port, s3_port, "artifacts")
        running.append(process)
        yield Team(uri, s3_port, postgres_port)
    finally:
        for process in reversed(running):
            stop(process)
        shutil.rmtree(home)
