"""A real OpenSSH server and a real S3 server, started by the tests that need them and ended with them."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only-tests", "AWS_DEFAULT_REGION": "us-east-1"}
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host_key
PidFile none
AuthorizedKeysFile {home}/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
{more}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}: {log.read_text()}")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(timeout=20)


@dataclass
class SshServer:
    """An sshd of its own keys, and a home whose owner knows them."""

    home: Path
    port: int

    @property
    def authority(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"


def start_sshd(home: Path, more: str = "") -> tuple[SshServer, subprocess.Popen]:
    if SSHD is None:
        pytest.skip("sshd is not installed: apt-get install openssh-server")
    port, ssh = free_port(), home / ".ssh"
    ssh.mkdir(parents=True)
    for key in (home / "host_key", ssh / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    shutil.copy(ssh / "id_ed25519.pub", home / "authorized_keys")
    public = " ".join((home / "host_key.pub").read_text().split()[:2])
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    (home / "sshd_config").write_text(CONFIG.format(port=port, home=home, more=more))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates its privileges; without it, it does not start
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(home / "sshd_config")], stdout=log, stderr=log)
    wait_for(port, process, home / "log")
    return SshServer(home, port), process


def start_s3(home: Path) -> tuple[int, subprocess.Popen]:
    pytest.importorskip("moto", reason="moto is not installed: make install")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    wait_for(port, process, home / "log")
    return port, process


def s3_environment(port: int) -> dict[str, str]:
    return KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
