"""What comes to a place: an artifact as a release, bytes past all checks, and who counts them."""

from registry.ship import s3 as s3_module
from registry.ship.verbs import export


def ship(place, folder, made=None):
    return export(place, folder, of=folder.name, made=made)


def put(place, name, content, tmp_path):
    """Writes bytes to a place past all checks, as a disk or a person may."""
    if isinstance(place, s3_module.S3Place):
        place._put(name, content)
        return
    path = tmp_path / "server" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


class Counting:
    def __init__(self):
        self.total = self.arrived = 0

    def begin(self, total_bytes):
        self.total = total_bytes

    def advance(self, arrived_bytes):
        self.arrived += arrived_bytes
