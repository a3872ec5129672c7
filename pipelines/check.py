"""Stage `check`: refuses a bad `params.yaml`, with every problem at once, before any other stage runs.

It also writes down what the local sources hold, a file for each, so that what reads a source runs again when its
content changes and nothing else does: DVC itself cannot watch a path that may be a hub's id instead.
"""

import json
from pathlib import Path

from compress.corpus import FILES
from pipelines.params import FILE, Params, ParamsError, load
from pipelines.stage import repository_root, run
from registry.hashing import sha256_files
from registry.manifest import fresh_folder
from registry.store import tracking_uri


def main(out: Path) -> None:
    """Writes to OUT a file for each source of `params.yaml`: its id, or the sha256 of every local file."""
    root = repository_root()
    params = in_order(root)
    tracking_uri(root)
    with fresh_folder(out) as folder:
        for name, source in _sources(params).items():
            (folder / f"{name}.json").write_text(json.dumps(_content(root, source), indent=2) + "\n", "utf8")


def in_order(root: Path) -> Params:
    """The parameters, whose text files are all there."""
    params = load(root)
    texts = {name: source for name, source in _corpora(params).items() if Path(source).suffix in FILES}
    gone = [f"{FILE}: data.{n}.source: {s} not found in {root}" for n, s in texts.items() if not (root / s).is_file()]
    if gone:
        raise ParamsError("\n".join(gone))
    return params


def _sources(params: Params) -> dict[str, str]:
    return {"base": params.base.source, **_corpora(params)}


def _corpora(params: Params) -> dict[str, str]:
    return {name: getattr(params.data, name).source for name in type(params.data).model_fields}


def _content(root: Path, source: str) -> dict[str, str]:
    place = root / source
    if not place.exists():
        return {"id": source}
    files = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
    names = [path.relative_to(place.parent).as_posix() for path in files]
    return dict(zip(names, sha256_files(files), strict=True))


if __name__ == "__main__":
    run(main)
