"""What registering, verifying and exporting cost, on an artifact of the size of InternLM2-1.8B in 4 bits, and what they
survive.

    python benchmarks/shipping.py                    # all of it, about a quarter of an hour on two cores
    python benchmarks/shipping.py speed|switches|kills|'register kills'

Writes benchmarks/results/shipping.json. Each speed stands beside a reference that was timed in turn with it: `cp` for
an export, `openssl dgst -sha256` on as many cores for a verification. Kills and switches are counted against real
servers, which this starts (OpenSSH, and moto for S3), with a reader in a process of its own all the while.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
RESULT = ROOT / "benchmarks" / "results" / "shipping.json"
SHARDS, SHARD_BYTES = 26, 50_000_000  # 24 decoder layers, the embeddings and the head
ROUNDS = 3
SWITCHES = 1000
REGISTER_KILLS = 80
sys.path.insert(0, str(TESTS))


def make_artifact(folder: Path, seed: int = 0) -> Path:
    """A sealed folder of 1.3 GB."""
    from registry.manifest import seal

    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for n in range(SHARDS):
        (folder / f"model-{n:05d}.safetensors").write_bytes(generator.bytes(SHARD_BYTES))
    shutil.copyfile(RESULT.with_name("internlm2_chat_1_8b.json"), folder / "config.json")
    origin = {"source": "benchmarks/shipping.py"}
    seal(folder, kind="quantized", recipe={}, parents={}, data={}, seed=seed, origin=origin, versions={})
    return folder


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def used_bytes(folder: Path) -> int:
    """Bytes on the disk below a folder, a file that has two names counted once."""
    seen = {(s.st_dev, s.st_ino): s.st_blocks * 512 for p in folder.rglob("*") for s in [p.lstat()]}
    return sum(seen.values())


def turbopress(*arguments: object, cwd: Path) -> None:
    command = [str(Path(sys.executable).parent / "turbopress"), *map(str, arguments)]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, env=environment())


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))}
    return kept | {"PYTHONPATH": str(ROOT)}


def speed(work: Path) -> dict[str, object]:
    """Seconds, each the median of rounds in which ours and the reference take turns."""
    from fake_artifacts import fake_report

    from registry.manifest import verify
    from registry.publish import publish
    from registry.ship.place import open_place
    from registry.ship.verbs import export

    root = work / "repository"
    folder = make_artifact(root / "models" / "awq-w4")
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")  # export asks it what servers are told
    shards = sorted(map(str, folder.glob("*.safetensors")))
    size_bytes = sum(Path(p).stat().st_size for p in shards)
    sums = ["xargs", "-0", f"-P{os.cpu_count()}", "-n1", "openssl", "dgst", "-sha256"]

    def sha256() -> None:
        subprocess.run(sums, input="\0".join(shards).encode(), check=True, capture_output=True)

    def copy(synced: bool) -> None:
        to = work / "copied"
        subprocess.run(["cp", "-r", str(folder), str(to)], check=True)
        if synced:
            subprocess.run(["sync", "-f", str(to)], check=True)

    def ship() -> None:
        export(open_place(str(work / "server")), folder, of="benchmark")

    rows: dict[str, list[float]] = {}
    sha256()  # into memory
    for _ in range(ROUNDS):
        for name, do, undo in (
            ("sha256", sha256, None),
            ("verify", lambda: verify(folder), None),
            ("cp", lambda: copy(False), work / "copied"),
            ("export", ship, work / "server"),
            ("cp and sync", lambda: copy(True), work / "copied"),
        ):
            rows.setdefault(name, []).append(timed(do))
            if undo:
                shutil.rmtree(undo)
                subprocess.run(["sync", "-f", str(work)], check=True)
    before = used_bytes(root)
    started = time.perf_counter()
    published = publish(folder, fake_report("awq-w4"), root=root, model="demo", variant="awq-w4")
    register_s = time.perf_counter() - started
    grown = used_bytes(root) - before
    turbopress("export", "demo@awq-w4", "--to", work / "server", cwd=root)
    no_op = [timed(lambda: turbopress("export", "demo@awq-w4", "--to", work / "server", cwd=root)) for _ in range(5)]
    median = {name: statistics.median(values) for name, values in rows.items()}
    return {
        "artifact_bytes": size_bytes,
        "seconds": {name: {"median": median[name], "all": values} for name, values in rows.items()},
        "verify_over_sha256": median["verify"] / median["sha256"],
        "export_over_cp": median["export"] / median["cp"],
        "export_over_cp_and_sync": median["export"] / median["cp and sync"],
        "register": {"seconds": register_s, "files": published.placed, "grown_bytes": grown},
        "no_op_export_seconds": {"median": statistics.median(no_op), "all": no_op},
    }


class Reader:
    """The reader of tests/release_reader.py in a process of its own."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, str(TESTS / "release_reader.py"), address]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def found(self) -> dict[str, object]:
        said = json.loads(self._process.communicate("")[0])
        return {"reads": said["reads"], "misses": len(said["misses"]), "first_miss": (said["misses"] or [None])[0]}


def switches(work: Path) -> dict[str, object]:
    """Switches between two small releases while a reader reads whatever is current."""
    from fake_artifacts import fake_artifact

    from registry.ship.place import open_place
    from registry.ship.verbs import export

    folders = [work / "models" / name for name in ("one", "two")]
    for folder in folders:
        fake_artifact(folder, folder.name)
    place = open_place(str(work / "server"))
    export(place, folders[0], of="one")
    reader = Reader(str(work / "server"))
    elapsed_s = timed(lambda: [export(place, folders[n % 2], of="again") for n in range(1, SWITCHES + 1)])
    return {"switches": SWITCHES, "elapsed_s": elapsed_s, **reader.found()}


def kills(work: Path) -> dict[str, object]:
    """Exporters killed at random, at three kinds of place."""
    from ship_servers import s3_environment, start_s3, start_sshd, stop

    server, sshd = start_sshd(work / "ssh")
    port, s3 = start_s3(work)
    os.environ.update(s3_environment(port), HOME=str(server.home))
    os.environ.pop("SSH_AUTH_SOCK", None)
    try:
        import boto3

        boto3.client("s3").create_bucket(Bucket="benchmark")
        local = {name: str(work / name) for name in ("folder", "sftp")}
        return {
            "export to a folder": _export_kills(local["folder"], local["folder"], 40, 0.6, work / "a"),
            "export to sftp": _export_kills(
                f"sftp://{server.authority}{local['sftp']}", local["sftp"], 40, 2.0, work / "b"
            ),
            "export to s3": _export_kills("s3://benchmark/models", "s3://benchmark/models", 40, 2.0, work / "c"),
        }
    finally:
        stop(sshd)
        stop(s3)


def _export_kills(address: str, seen_at: str, count: int, longest_s: float, scratch: Path) -> dict[str, object]:
    reader = Reader(seen_at)
    command = [sys.executable, TESTS / "kill_exports.py", address, count, longest_s, 1, scratch, 4 << 20]
    said = _json(command)
    whole = said["whole"]
    return {
        "kills": said["killed"], "releases": len(whole), "lost": len(whole) - len(set(whole)),
        "left_unfinished_by_the_last_kill": said["unfinished"], **reader.found(),
    }  # fmt: skip


def register_kills(work: Path) -> dict[str, object]:
    """Registrations killed at random; after each a reader verifies every version that can be seen."""
    (work / "repository").mkdir()
    return _json([sys.executable, TESTS / "kill_registers.py", work / "repository", REGISTER_KILLS, 1.5, 1])


def _json(command: list[object]) -> dict:
    done = subprocess.run(list(map(str, command)), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parts = {"speed": speed, "switches": switches, "kills": kills, "register kills": register_kills}
    asked = sys.argv[1:] or list(parts)
    result = json.loads(RESULT.read_text("utf8")) if RESULT.exists() else {}
    for name in asked:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as work:
            load_before = os.getloadavg()[0]
            found = parts[name](Path(work))
        result[name] = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": load_before,
            **found,
        }
        RESULT.write_text(json.dumps(result, indent=2) + "\n", "utf8")
        print(json.dumps({name: result[name]}, indent=2))


if __name__ == "__main__":
    main()
