"""The one engine profile of a model: `serve:` of params.yaml, what a person adds, and what the artifact itself says.

`serve`, `export`, `chat` and `web` all ask here, so that what is refused for one is refused for all.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from pipelines.params import ParamsError, load
from pipelines.stage import repository_root
from serving.profile import EngineProfile, backend, fitted, require_lmdeploy_s
from serving.shape import read_shape

FLAGS = {  # of an option, what `serve` calls it
    "cache_max_entry_count": "--cache",
    "quant_policy": "--kv",
    "tp": "--tp",
    "session_len": "--session-len",
    "max_batch_size": "--max-batch",
    "enable_prefix_caching": "--prefix-caching",
}


def default_profile() -> EngineProfile:
    """What params.yaml says under `serve`; LMDeploy's own defaults outside a repository."""
    try:
        root = repository_root()
    except ParamsError:
        return EngineProfile()
    return load(root).serve


def profile_for(folder: Path, options: Mapping[str, object], place: str) -> tuple[EngineProfile, str]:
    """The defaults with these options, checked against the folder's model, and which of LMDeploy's engines runs it."""
    shape = read_shape(folder)
    require_lmdeploy_s(shape, str(folder))
    return fitted(changed(default_profile(), options, place), shape, str(folder)), backend(shape)


def refuse_foreign(engine: str, options: Iterable[str]) -> None:
    """Refuses options that another engine than LMDeploy would not hear."""
    if foreign := [flag for option, flag in FLAGS.items() if option in set(options)]:
        raise ParamsError(f"--engine {engine}: does not hear {', '.join(foreign)}; leave it out, or serve by lmdeploy")


def changed(profile: EngineProfile, options: Mapping[str, object], place: str) -> EngineProfile:
    """The profile with these options; one that is none of LMDeploy's, or out of range, is refused."""
    try:
        return EngineProfile.model_validate({**profile.model_dump(), **options})
    except ValidationError as error:
        raise ParamsError("; ".join(f"{place}: {_wrong(problem)}" for problem in error.errors())) from None


def _wrong(problem: Mapping[str, object]) -> str:
    name = ".".join(map(str, problem["loc"]))  # type: ignore[call-overload]  # a tuple, by pydantic's promise
    if problem["type"] == "extra_forbidden":
        return f"{name} is no option of the engine; choose {', '.join(EngineProfile.model_fields)}"
    message = str(problem["msg"])
    return f"{name}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"
