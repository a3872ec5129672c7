"""Stage `check`: refuses a bad `params.yaml`, with every problem at once, before any other stage runs.

It also writes down what the local sources hold, a file for each, so that what reads a source runs again when its
content changes and nothing else does: DVC itself cannot watch a path that may be a hub's id instead.
"""

import json
from pathlib import Path

from pipelines.params import Params, load
from pipelines.stage import repository_root, run
from registry.hashing import sha256_files
from registry.manifest import fresh_folder
from registry.store import tracking_uri


def main(out: Path) -> None:
    """Writes to OUT a file for each source of `params.yaml`: its id, or the sha256 of every local file."""
    root = repository_root()
    params = load(root)
    tracking_uri(root)
    with fresh_folder(out) as folder:
        for name, source in _sources(params).items():
            (folder / f"{name}.json").write_text(json.dumps(_content(root, source), indent=2) + "\n", "utf8")


def _sources(params: Params) -> dict[str, str]:
    data = params.data
    corpora = {name: getattr(data, name).source for name in type(data).model_fields}
    return {"base": params.base.source, **corpora}


def _content(root: Path, source: str) -> dict[str, str]:
    place = root / source
    if not place.exists():
        return {"id": source}
    files = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
    names = [path.relative_to(place.parent).as_posix() for path in files]
    return dict(zip(names, sha256_files(files), strict=True))


if __name__ == "__main__":
    run(main)
