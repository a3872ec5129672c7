"""What lies at a place: its records, and whether the files are what these say."""

from concurrent.futures import ThreadPoolExecutor

from registry.errors import RegistryError
from registry.ship.place import RELEASES, Place
from registry.ship.release import RECORD, Record, parse_record

AT_ONCE = 4  # files


def records(place: Place) -> list[Record]:
    names = {digest: f"{RELEASES}/{digest}/{RECORD}" for digest in place.digests()}
    found = [(digest, content) for digest, name in names.items() if (content := place.read(name)) is not None]
    return [_checked(place, digest, content) for digest, content in found]


def record_of(place: Place, digest: str) -> Record:
    content = place.read(f"{RELEASES}/{digest}/{RECORD}")
    if content is None:
        raise RegistryError(f"{place.url}/{RELEASES}/{digest}: is no whole release; export it again")
    return _checked(place, digest, content)


def _checked(place: Place, digest: str, content: bytes) -> Record:
    where = f"{place.url}/{RELEASES}/{digest}/{RECORD}"
    record = parse_record(where, content)
    if record.digest != digest:
        raise RegistryError(f"{where}: is the record of {record.digest}; remove that release")
    return record


def refuse_incomplete(place: Place, record: Record, folder: str | None = None) -> None:
    folder = folder or f"{RELEASES}/{record.digest}"
    sizes = place.sizes(folder)
    wrong = sorted(name for name, file in record.files.items() if sizes.get(name) != file.size_bytes)
    unknown = sorted(sizes.keys() - record.files.keys() - {RECORD})
    if wrong or unknown:
        told = [f"{name} has {sizes.get(name, 'no')} bytes" for name in wrong] + [f"{n} is not of it" for n in unknown]
        raise RegistryError(f"{place.url}/{folder}: {'; '.join(told)}; remove that folder and run again")


def verify_release(place: Place, record: Record) -> None:
    """Reads every byte of a release where it lies."""
    folder = f"{RELEASES}/{record.digest}"
    refuse_incomplete(place, record)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        right = pool.map(lambda item: place.holds(f"{folder}/{item[0]}", item[1]), record.files.items())
        altered = [name for name, is_right in zip(record.files, right, strict=True) if not is_right]
    if altered:
        raise RegistryError(f"{place.url}/{folder}: {', '.join(altered)} altered; remove that release, export again")
