"""Where a base comes from: a folder, a Hugging Face id, or a ModelScope id.

A base is the first digest of every lineage, so a name that can point elsewhere tomorrow is no source: a hub id is
taken only with the commit it meant. And a base is data: weights, configuration, tokenizer, template. The Python files
that published InternLM2 models carry are never fetched, let alone run.

    examples/demo/base                      a folder, relative to the repository
    internlm/internlm2-chat-1_8b            Hugging Face
    modelscope:Shanghai_AI_Laboratory/...   ModelScope, with the extra turbopress[modelscope]
"""

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from compress.errors import CompressError, first_line

MODELSCOPE = "modelscope:"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
BRANCHES = ("main", "master")
FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja"]
OLD_WEIGHTS = ["*.bin"]
SUBFOLDERS = ["*/*"]  # other formats of the same weights

Fetch = Callable[[list[str]], str]


def resolve(source: str, revision: str | None, root: Path) -> Path:
    """Returns the local folder of the model, fetched from its hub where it is no folder already."""
    if (root / source).is_dir():
        folder = _local(source, revision, root)
    elif source.startswith(MODELSCOPE):
        folder = _from_modelscope(source.removeprefix(MODELSCOPE), revision)
    elif HUB_ID.fullmatch(source):
        folder = _from_hugging_face(source, revision, root)
    else:
        raise CompressError(
            f"base.source: {source!r} is no folder under {root} and no hub id; write a folder or org/name"
        )
    return _whole(folder)


def _local(source: str, revision: str | None, root: Path) -> Path:
    if revision is not None:
        raise CompressError(
            f"base.revision: {revision!r}, but base.source {source!r} is a folder; write revision: null"
        )
    return root / source


def _whole(folder: Path) -> Path:
    """Returns the folder, if there is a model in it."""
    if not (folder / "config.json").is_file():
        raise CompressError(f"{folder}: no config.json; base.source must name a model's own folder")
    if not any(path for suffix in (*FILES[:1], *OLD_WEIGHTS) for path in folder.glob(suffix)):
        raise CompressError(f"{folder}: no *.safetensors and no *.bin; fetch the weights too")
    return folder


def _from_hugging_face(name: str, revision: str | None, root: Path) -> Path:
    """Returns the folder in the Hugging Face cache that holds the commit."""
    if revision is None or not COMMIT.fullmatch(revision):
        raise CompressError(
            f"base.source: {name!r} is no folder under {root}; as a Hugging Face id it needs its commit and "
            f"base.revision is {revision!r}; write in params.yaml `revision: <40 hex digits>` under base "
            f"(https://huggingface.co/{name}/commits/main lists them)"
        )
    place = f"base.source: {name} at {revision}"
    try:
        return _fetched(lambda patterns: _hugging_face_files(name, revision, patterns))
    except GatedRepoError:
        raise CompressError(f"{place}: the repository is gated; accept its terms and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise CompressError(f"{place}: no such repository on Hugging Face; correct base.source") from None
    except RevisionNotFoundError:
        raise CompressError(f"{place}: no such commit; correct base.revision") from None
    except (HTTPError, OSError) as error:
        raise CompressError(f"{place}: {_unreachable('Hugging Face', error)}") from None


def _hugging_face_files(name: str, revision: str, patterns: list[str]) -> str:
    return str(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=SUBFOLDERS))


def _from_modelscope(name: str, revision: str | None) -> Path:
    """Returns the folder in the ModelScope cache that holds the revision."""
    if not HUB_ID.fullmatch(name):
        raise CompressError(f"base.source: {MODELSCOPE}{name} is no ModelScope id; write {MODELSCOPE}org/name")
    if not revision or revision in BRANCHES:
        raise CompressError(
            f"base.source: {MODELSCOPE}{name} needs a commit or tag and base.revision is {revision!r}; write in "
            f"params.yaml `revision: <tag or commit>` under base (https://modelscope.cn/models/{name} lists them)"
        )
    place = f"base.source: {MODELSCOPE}{name} at {revision}"
    try:
        download = import_module("modelscope.hub.snapshot_download").snapshot_download
    except ImportError:
        raise CompressError(f"{place}: modelscope is not installed; pip install 'turbopress[modelscope]'") from None
    try:
        return _fetched(
            lambda patterns: download(name, revision=revision, allow_patterns=patterns, ignore_patterns=SUBFOLDERS)
        )
    except Exception as error:
        raise CompressError(f"{place}: {_unreachable('ModelScope', error)}") from None


def _fetched(fetch: Fetch) -> Path:
    """Returns the fetched folder; pickled weights are fetched only where there are no safetensors."""
    folder = Path(fetch(FILES))
    return folder if any(folder.glob("*.safetensors")) else Path(fetch(OLD_WEIGHTS))


def _unreachable(hub: str, error: Exception) -> str:
    remedy = "connect, or copy the model here and write its folder as base.source"
    return f"{hub} gave no files ({first_line(error)}); {remedy}"
