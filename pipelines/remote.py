"""The config.json of a model on Hugging Face, and nothing else of it: enough to plan its memory before a download."""

from pathlib import Path

from compress.errors import first_line
from pipelines.params import ParamsError

HEX_DIGITS = 40  # of a commit


def remote_configuration(name: str, revision: str) -> Path:
    """The file, in the hub's own cache; a name that could point elsewhere tomorrow is refused."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415

    if len(revision) != HEX_DIGITS or not set(revision) <= set("0123456789abcdef"):
        commits = f"https://huggingface.co/{name}/commits/main lists them"
        raise ParamsError(f"--revision {revision}: is no commit; write its 40 hex digits ({commits})")
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (HTTPError, OSError, ValueError) as error:
        told = f"{name} at {revision}: Hugging Face gave no config.json ({first_line(error)})"
        raise ParamsError(f"{told}; correct name and revision, or connect") from None
