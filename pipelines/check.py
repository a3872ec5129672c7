"""Stage `check`: refuses a bad `params.yaml`, with every problem at once, before any other stage runs.

It also writes down what the local sources hold, a file for each, so that what reads a source runs again when its
content changes and nothing else does: DVC itself cannot watch a path that may be a hub's id instead. Stage
`register-base`, which runs every time, asks `changed_sources` whether what was written down still holds.
"""

import json
from pathlib import Path

from compress.corpus import FILES, CorpusRecipe
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
        for name, sources in _sources(params).items():
            content = {source: _content(root, source) for source in sources.values()}
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf8")


def changed_sources(root: Path, params: Params, folder: Path) -> list[str]:
    """A line for each local source that no longer holds what `main` wrote to FOLDER; ids are taken at their word."""
    remedy = "run `dvc repro --force check`, then `dvc repro`"
    return [
        f"{FILE}: {place}: {source} has changed since it was read; {remedy}"
        for name, sources in _sources(params).items()
        for place, source in sources.items()
        if _content(root, source) != json.loads((folder / f"{name}.json").read_text("utf8")).get(source)
    ]


def in_order(root: Path) -> Params:
    """The parameters, with all that DVC reads of them, whose text files are all there."""
    params = load(root)
    if params.unsaid:
        raise ParamsError(
            "\n".join(f"{FILE}: {place}: missing; write data: calibration, or another text" for place in params.unsaid)
        )
    texts = {place: source for name in _corpora(params).values() for place, source in name.items()}
    gone = {p: s for p, s in texts.items() if Path(s).suffix in FILES and not (root / s).is_file()}
    if gone:
        raise ParamsError("\n".join(f"{FILE}: {place}: {source} not found in {root}" for place, source in gone.items()))
    return params


def _sources(params: Params) -> dict[str, dict[str, str]]:
    """What each stage reads: place in the file → source."""
    return {"base": {"base.source": params.base.source}, **_corpora(params)}


def _corpora(params: Params) -> dict[str, dict[str, str]]:
    return {name: _places(f"data.{name}.source", getattr(params.data, name)) for name in type(params.data).model_fields}


def _places(place: str, recipe: CorpusRecipe) -> dict[str, str]:
    if isinstance(recipe.source, str):
        return {place: recipe.source}
    return {f"{place}.{number}.source": part.source for number, part in enumerate(recipe.parts)}


def _content(root: Path, source: str) -> dict[str, str]:
    place = root / source
    if not place.exists():
        return {"id": source}
    files = sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file())
    names = [path.relative_to(place.parent).as_posix() for path in files]
    return dict(zip(names, sha256_files(files), strict=True))


if __name__ == "__main__":
    run(main)
