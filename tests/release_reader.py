"""A server's eyes: reads the current release again and again, whole, and counts what was amiss.

    python release_reader.py FOLDER              # until its stdin closes, then one JSON line
    python release_reader.py s3://BUCKET/PREFIX

Every release that can be seen must be whole as well. It knows nothing of the exporter's code, only the layout.
"""

import hashlib
import json
import os
import sys
import threading
from pathlib import Path


class FolderReader:
    def __init__(self, address):
        self.root = Path(address)

    def current(self):
        """The release that the link means now, None before there is one; resolved once, as a server does."""
        try:
            return os.readlink(self.root / "current")
        except FileNotFoundError:
            return None

    def visible(self):
        folder = self.root / "releases"
        return [f"releases/{name}" for name in os.listdir(folder) if name[0] != "."] if folder.exists() else []

    def get(self, name):
        return (self.root / name).read_bytes()


class S3Reader:
    def __init__(self, address):
        import boto3

        self.bucket, _, self.prefix = address.removeprefix("s3://").partition("/")
        self.client = boto3.client("s3")

    def current(self):
        try:
            return json.loads(self.get("current.json"))["path"]
        except self.client.exceptions.NoSuchKey:
            return None

    def visible(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        ends = "/release.json"
        return [key.removeprefix(self.prefix + "/").removesuffix(ends) for key in keys if key.endswith(ends)]

    def get(self, name):
        return self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"].read()


def faults(reader, release):
    """What is not as the release's own record says."""
    record = json.loads(reader.get(f"{release}/release.json"))
    for name, file in record["files"].items():
        content = reader.get(f"{release}/{name}")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            yield f"{release}/{name} is not what was sealed"


def look(reader, found, every=5):
    """One look; at every fifth also at each release that can be seen."""
    try:
        release = reader.current()
        if release is not None:
            found["reads"] += 1
            found["releases"].add(release)
            found["misses"] += list(faults(reader, release))
        if found["looks"] % every == 0:
            for seen in reader.visible():
                found["misses"] += list(faults(reader, seen))
    except Exception as error:
        found["misses"].append(repr(error))
    found["looks"] += 1


def main(address):
    reader = S3Reader(address) if address.startswith("s3://") else FolderReader(address)
    found, stop = {"looks": 0, "reads": 0, "releases": set(), "misses": []}, threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    while not stop.is_set():
        look(reader, found)
    print(json.dumps(found | {"releases": sorted(found["releases"])}))


if __name__ == "__main__":
    main(sys.argv[1])
