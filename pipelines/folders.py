"""What people name on the command line: a variant's key, a folder, NAME@ALIAS, or a bare config.json."""

from pathlib import Path

from pipelines.params import ParamsError
from pipelines.stage import repository_root


def model_folder(model: str) -> Path:
    """The folder that a variant's key, a path or a registered version means."""
    if "@" in model:
        from registry.resolve import resolve  # noqa: PLC0415 - MLflow is slow to import

        return resolve(model, root=repository_root())
    places = [Path(model)]
    if "/" not in model:
        places.append(repository_root() / "models" / model)
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ParamsError(f"{model}: no model in {' or '.join(map(str, places))}; run `dvc repro` or give a folder")


def configuration(model: str) -> Path:
    """The config.json of a model; a path to such a file stands for itself."""
    path = Path(model)
    return path if path.is_file() else model_folder(model) / "config.json"
