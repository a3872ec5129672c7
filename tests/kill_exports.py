"""Exports one new artifact after the other, and kills the exporter at random moments with SIGKILL.

    python kill_exports.py ADDRESS KILLS LONGEST_S SEED SCRATCH SIZE_BYTES      # prints one JSON line

Each exporter is a process of its own, forked from this one, which has imported everything and opened nothing. The
artifact's number is that of the releases that are there, so what was cut short is what the next exporter goes on with.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from fake_artifacts import fake_artifact

from registry.ship import folder, s3, sftp  # noqa: F401 - imported here once, not in each child
from registry.ship.place import explained_place, open_place
from registry.ship.upkeep import releases, verify_releases
from registry.ship.verbs import export

for late in ("asyncssh.sftp", "sshfs", "s3fs", "aiobotocore.session"):
    __import__(late)


def artifact(scratch, number, size_bytes):
    """The artifact of that number, the same whoever makes it."""
    place = scratch / f"{number}-{os.getpid()}"
    fake_artifact(place, random.Random(number).randbytes(size_bytes // 200).hex())
    return place


def exporter(address, scratch, size_bytes):
    """A child that exports until it is killed; its id."""
    child = os.fork()
    if child:
        return child
    with explained_place(address):
        place = open_place(address)
        while True:
            number = len(releases(place))
            export(place, artifact(scratch, number, size_bytes), of=str(number))


def main(address, kills, longest_s, seed, scratch, size_bytes):
    chance, killed = random.Random(int(seed)), 0
    for _ in range(int(kills)):
        child = exporter(address, Path(scratch), int(size_bytes))
        time.sleep(chance.uniform(0, float(longest_s)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
    place = open_place(address)
    found = {"killed": killed, "unfinished": len(place.unfinished()), "pointer": place.pointer().digest}
    number = len(releases(place))
    last = export(place, artifact(Path(scratch), number, int(size_bytes)), of=str(number))
    whole = [listed.record.of for listed in verify_releases(place)]
    print(json.dumps(found | {"whole": sorted(map(int, whole)), "last": last.digest, "sent": last.sent_bytes}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
