"""A place in a bucket of any server that speaks S3, through fsspec's file system for it.

There are no folders and no renames: files are put under `releases/<digest>/`, the record last, and readers follow
`current.json`, which is replaced in one step. Large files go in parts whose MD5 the server checks on arrival and
keeps; a killed upload goes on with the parts that are there. What lies there is compared by the ETag, which is made
of these sums, and read back where a server has other ETags (encryption by key).
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from registry.errors import RegistryError
from registry.manifest import File
from registry.ship.place import RELEASES, Advance, Pointer, needs
from registry.ship.release import RECORD

CURRENT = "current.json"
PART_BYTES = 16 << 20  # at least 5 MiB, says S3
MOST_PARTS = 9000  # and at most 10,000
KEYS_AT_ONCE = 1000  # that one call deletes


class S3Place:
    """Releases under a prefix of a bucket. Keys and end point are those that AWS's own tools would use."""

    is_far = True

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.url, self.bucket, self.prefix = address.rstrip("/"), parts.netloc, parts.path.strip("/")
        if not self.bucket:
            raise RegistryError(f"{address}: names no bucket; write s3://BUCKET/FOLDER")
        try:
            from s3fs import S3FileSystem  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise needs(address, "s3", error) from error
        self._system = S3FileSystem(skip_instance_cache=True, use_listings_cache=False)

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._system.cat_file(f"{self.bucket}/{self._key(name)}")
        except FileNotFoundError:
            self._call("head_bucket")  # a bucket that is not there is no empty place
            return None
        return content

    def digests(self) -> list[str]:
        return sorted({key.split("/")[0] for key in self.sizes(RELEASES)})

    def unfinished(self) -> list[str]:
        files = self.sizes(RELEASES)
        whole = {key.split("/")[0] for key in files if key.endswith(f"/{RECORD}")}
        begun = {key.split("/")[0] for key in files} | {_digest(key) for key, _ in self._uploads(RELEASES)}
        return [f"{RELEASES}/{digest}" for digest in sorted(begun - whole)]

    def sizes(self, folder: str) -> dict[str, int]:
        prefix = self._key(folder) + "/"
        pages = self._pages("list_objects_v2", "ContinuationToken", "NextContinuationToken", Prefix=prefix)
        entries = (entry for page in pages for entry in page.get("Contents", []))
        return {entry["Key"].removeprefix(prefix): entry["Size"] for entry in entries}

    def incoming(self, digest: str) -> str:
        return f"{RELEASES}/{digest}"  # what has no record yet is no release

    def take(self, name: str, old: str) -> bool:
        """The server copies, if it is asked for no more than S3 copies in one call."""
        if self._size(old) > 5 << 30:
            return False
        source = {"Bucket": self.bucket, "Key": self._key(old)}
        self._call("copy_object", Key=self._key(name), CopySource=source)
        return True

    def send(self, source: Path, name: str, file: File, advance: Advance) -> None:
        if self.holds(name, file, source):
            advance(file.size_bytes)
            return
        if file.size_bytes <= PART_BYTES:
            content = source.read_bytes()
            self._call("put_object", Key=self._key(name), Body=content, ContentMD5=_base64(_md5(content)))
            advance(len(content))
        else:
            self._send_parts(source, name, file, advance)
        if not self.holds(name, file, source):
            raise RegistryError(f"{self.url}/{name}: arrived altered; look at the store there")

    def _send_parts(self, source: Path, name: str, file: File, advance: Advance) -> None:
        key = self._key(name)
        upload, there = self._begun(key) or (self._call("create_multipart_upload", Key=key)["UploadId"], {})
        parts = []
        for number, content in enumerate(_pieces(source, file.size_bytes), 1):
            etag = there.get(number, "")
            if etag.strip('"') != _md5(content).hex():
                said = {"PartNumber": number, "UploadId": upload, "ContentMD5": _base64(_md5(content))}
                etag = self._call("upload_part", Key=key, Body=content, **said)["ETag"]
            parts.append({"PartNumber": number, "ETag": etag})
            advance(len(content))
        self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    def _begun(self, key: str) -> tuple[str, dict[int, str]] | None:
        """The upload of this file that a killed call left, and the parts that have arrived."""
        for _, upload in [found for found in self._uploads_of_key(key) if found[0] == key]:
            pages = self._pages("list_parts", "PartNumberMarker", "NextPartNumberMarker", Key=key, UploadId=upload)
            return upload, {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
        return None

    def _uploads(self, folder: str) -> list[tuple[str, str]]:
        return self._uploads_of_key(self._key(folder) + "/")

    def _uploads_of_key(self, prefix: str) -> list[tuple[str, str]]:
        """Key and id of every upload that was begun and not completed."""
        found = self._call("list_multipart_uploads", Prefix=prefix).get("Uploads", [])
        return [(upload["Key"], upload["UploadId"]) for upload in found]

    def holds(self, name: str, file: File, source: Path | None = None) -> bool:
        try:
            head = self._call("head_object", Key=self._key(name))
        except FileNotFoundError:
            return False
        if head["ContentLength"] != file.size_bytes:
            return False
        if source is not None and head["ETag"].strip('"') in _etags(source, file.size_bytes):
            return True
        return self._hash_of_what_comes_back(name, file.size_bytes) == file.sha256

    def _hash_of_what_comes_back(self, name: str, size_bytes: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size_bytes, PART_BYTES):
            digest.update(self.piece(name, start, min(PART_BYTES, size_bytes - start)))
        return digest.hexdigest()

    def piece(self, name: str, start: int, size_bytes: int) -> bytes:
        place = f"{self.bucket}/{self._key(name)}"
        content: bytes = self._system.cat_file(place, start=start, end=start + size_bytes)
        return content

    def settle(self, digest: str, record: bytes) -> None:
        self._put(f"{RELEASES}/{digest}/{RECORD}", record)

    def pointer(self) -> Pointer:
        content = self.read(CURRENT)
        if content is None:
            return Pointer(None, ())
        try:
            said = json.loads(content)
            return Pointer(str(said["digest"]), tuple(map(str, said["before"])))
        except (ValueError, KeyError, TypeError):
            raise RegistryError(f"{self.url}/{CURRENT}: is not ours to replace; move it away") from None

    def point(self, pointer: Pointer) -> None:
        said = {"digest": pointer.digest, "path": f"{RELEASES}/{pointer.digest}", "before": pointer.before}
        self._put(CURRENT, (json.dumps(said, indent=2) + "\n").encode())

    def remove(self, folder: str) -> None:
        """The record first: what has none is no release."""
        for key, upload in self._uploads(folder):
            self._call("abort_multipart_upload", Key=key, UploadId=upload)
        names = sorted(self.sizes(folder), key=lambda name: name != RECORD)
        for start in range(0, len(names), KEYS_AT_ONCE):
            doomed = [{"Key": self._key(f"{folder}/{name}")} for name in names[start : start + KEYS_AT_ONCE]]
            self._call("delete_objects", Delete={"Objects": doomed})

    def free_bytes(self) -> int | None:
        return None

    def _put(self, name: str, content: bytes) -> None:
        self._call("put_object", Key=self._key(name), Body=content, ContentMD5=_base64(_md5(content)))

    def _size(self, name: str) -> int:
        size: int = self._call("head_object", Key=self._key(name))["ContentLength"]
        return size

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _call(self, method: str, **said: Any) -> Any:
        return self._system.call_s3(method, Bucket=self.bucket, **said)

    def _pages(self, method: str, asked: str, told: str, **said: Any) -> Iterator[Any]:
        page = self._call(method, **said)
        yield page
        while page.get("IsTruncated") and page.get(told):
            page = self._call(method, **said, **{asked: page[told]})
            yield page


def _digest(key: str) -> str:
    """The release that a key under `releases/` belongs to."""
    return key.split(f"{RELEASES}/", 1)[1].split("/", maxsplit=1)[0]


def _part_bytes(size_bytes: int) -> int:
    return max(PART_BYTES, -(-size_bytes // MOST_PARTS))


def _pieces(source: Path, size_bytes: int) -> Iterator[bytes]:
    with source.open("rb") as file:
        while piece := file.read(_part_bytes(size_bytes)):
            yield piece


def _etags(source: Path, size_bytes: int) -> set[str]:
    """What S3 calls a file that was sent as `send` sends it, and one that the server copied."""
    sums, whole = [], hashlib.md5(usedforsecurity=False)
    for piece in _pieces(source, size_bytes):
        sums.append(_md5(piece))
        whole.update(piece)
    return {whole.hexdigest(), f"{_md5(b''.join(sums)).hex()}-{len(sums)}"}


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
